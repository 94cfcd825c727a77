"""Precedence, names and errors of the settings."""

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from control_plane.settings import SHORT_NAMES, Settings, SettingsError, load_settings

ROOT = Path(__file__).parent.parent.parent


def test_settings_without_anything_are_the_defaults(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert load_settings({}, config_file=empty) == Settings()


def test_settings_environment_wins_over_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("api: {port: 9000, host: 0.0.0.0}\nmodel_cache: {max_models: 3}\n")
    settings = load_settings(
        {"API_PORT": "9001", "MODEL_SERVING__MODEL_CACHE__TTL_SECONDS": "5"}, config_file=file
    )
    assert (settings.api.port, settings.api.host) == (9001, "0.0.0.0")
    assert (settings.model_cache.max_models, settings.model_cache.ttl_seconds) == (3, 5.0)


@pytest.mark.parametrize(("name", "value"), [("API_DEBUG", "true"), ("MODEL_SERVING__API__DEBUG", "1")])
def test_settings_debug_by_either_name(name: str, value: str) -> None:
    assert load_settings({name: value}).api.debug is True


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"MODEL_SERVING__API__PROT": "1"}, ["api.prot", "MODEL_SERVING__API__PROT", "'port'", "workers"]),
        ({"MODEL_SERVING__APU__PORT": "1"}, ["apu", "MODEL_SERVING__APU__PORT", "'api'"]),
        ({"API_PORT": "eighty"}, ["api.port", "API_PORT", "'eighty'", "integer"]),
        ({"API_PORT": "70000"}, ["api.port", "65535", "'70000'"]),
        ({"MODEL_SERVING__API": "3"}, ["api", "MODEL_SERVING__API"]),
        ({"MODEL_SERVING__A__B__C": "3"}, ["MODEL_SERVING__A__B__C", "<SECTION>__<KEY>"]),
        ({"MODEL_SERVING_CONFIG": "nowhere.yaml"}, ["nowhere.yaml"]),
        ({"REDIS_URL": "redis://a", "REDIS_HOST": "b"}, ["redis.url", "redis.host"]),
    ],
)
def test_settings_wrong_key_or_value_is_named(environment: dict[str, str], told: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environment)
    for text in told:
        assert text in str(caught.value)


@pytest.mark.parametrize("content", ["- a\n", "api: {port: 1", "api: 5", "api: {color: red}"])
def test_settings_broken_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=r"broken\.yaml"):
        load_settings({}, config_file=file)


def test_settings_wrong_password_is_not_shown() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"REDIS_PASSWORD": "[hunter2]"})
    assert "hunter2" not in str(caught.value)


def test_settings_documented_file_has_every_key_at_its_default() -> None:
    content = yaml.safe_load((ROOT / "config/model_serving.yaml").read_text())
    assert load_settings({}, config_file=ROOT / "config/model_serving.yaml") == Settings()
    for section, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            assert set(content[section]) == set(field.annotation.model_fields)


def test_settings_short_names_lead_to_existing_keys() -> None:
    for section, key in SHORT_NAMES.values():
        annotation = Settings.model_fields[section].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        assert key in annotation.model_fields
