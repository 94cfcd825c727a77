"""The model repository as a worker sees it."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from control_plane.errors import RedisUnavailable, UnknownModel, UnknownVersion
from control_plane.models.aliases import Aliases
from control_plane.models.registry import ModelRegistry
from control_plane.settings import RedisSettings
from control_plane.store.redis import RedisStore
from control_plane.store.redis import _client as redis_client
from tests.support.repository import write_identity_like_model


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    settings = RedisSettings(url=SecretStr(f"unix://{tmp_path.parent}/no-redis.sock"))
    client, _ = redis_client(settings)
    return ModelRegistry(tmp_path, Aliases(RedisStore(client, settings)))


async def test_versions_are_found_by_every_name(registry: ModelRegistry, tmp_path: Path) -> None:
    for version in ("v1.0", "v1.10", "v1.9", "2.0rc1"):
        write_identity_like_model(tmp_path, "echo", version)
    write_identity_like_model(tmp_path, "other", "prod")
    await registry.refresh()
    assert registry.model_types() == ("echo", "other")
    assert [model.version for model in registry.versions("echo")] == ["2.0rc1", "v1.10", "v1.9", "v1.0"]
    assert registry.resolve("echo").version == "v1.10"
    assert registry.resolve("echo", "1.9").version == "v1.9"
    assert registry.resolve("echo", "v2.0rc1").version == "2.0rc1"
    assert registry.resolve("other").version == "prod"
    assert registry.resolve("echo", "v1.0").key == "echo-v1.0"
    assert registry.get("echo-v1.0") is registry.resolve("echo", "1.0")
    assert registry.get("echo-1.0") is None


async def test_unknown_names_say_what_there_is(registry: ModelRegistry, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="nothing"):
        registry.resolve("nothing")
    write_identity_like_model(tmp_path, "echo", "v1.0")
    await registry.refresh()
    with pytest.raises(RedisUnavailable):  # it may be an alias, and Redis was never reached
        registry.resolve("echo", "v9")
    registry._aliases._loaded = True
    with pytest.raises(UnknownVersion) as raised:
        registry.resolve("echo", "v9")
    assert "v1.0" in (raised.value.expected or "")


async def test_broken_folders_are_skipped(registry: ModelRegistry, tmp_path: Path) -> None:
    for version in ("v1", "v2", "v3", "v4", "v5", "v6"):
        write_identity_like_model(tmp_path, "echo", version)
    (tmp_path / "echo-v2" / "model.json").unlink()
    (tmp_path / "echo-v3" / "model.json").write_text("{")
    (tmp_path / "echo-v4" / "1" / "model.onnx").write_bytes(b"cut")
    (tmp_path / "echo-v5" / "config.pbtxt").unlink()
    (tmp_path / "echo-v6").rename(tmp_path / "echo-v7")
    (tmp_path / "file").write_text("x")
    await registry.refresh()
    assert [model.version for model in registry.versions("echo")] == ["v1"]


async def test_refresh_sees_additions_changes_and_removals(registry: ModelRegistry, tmp_path: Path) -> None:
    write_identity_like_model(tmp_path, "echo", "v1")
    await registry.refresh()
    first = registry.resolve("echo", "v1")
    write_identity_like_model(tmp_path, "echo", "v2")
    await registry.refresh()
    assert registry.resolve("echo").version == "v2"
    assert registry.resolve("echo", "v1") is first
    write_identity_like_model(tmp_path, "echo", "v1", revision=1)
    await registry.refresh()
    assert registry.resolve("echo", "v1").card.content_digest != first.card.content_digest
    (tmp_path / "echo-v2").rename(tmp_path / ".gone")
    await registry.refresh()
    assert registry.resolve("echo").version == "v1"


async def test_missing_repository_is_empty(registry: ModelRegistry, tmp_path: Path) -> None:
    tmp_path.rmdir()  # noqa: ASYNC240  a test
    await registry.refresh()
    assert registry.model_types() == ()


async def test_version_published_by_others_is_found_before_it_is_called_unknown(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    with pytest.raises(UnknownModel):
        await registry.resolve_fresh("echo", "v1")
    write_identity_like_model(tmp_path, "echo", "v1")
    registry._refreshed_at = 0.0  # as if half a second had passed since the last look
    assert (await registry.resolve_fresh("echo", "v1")).version == "v1"
