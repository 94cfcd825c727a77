"""The types' descriptions, and the one schema that two packages must agree on."""

from control_plane.models.families import FAMILIES, family_of
from exporters.hybrid.config import config_schema
from exporters.rl.manifest import RequestConfig


def test_hybrid_schema_is_the_exporters() -> None:
    assert FAMILIES["cnn_lstm_hybrid"].config_schema == config_schema()


def test_unknown_type_is_described_as_ready_made() -> None:
    family = family_of("mine")
    assert family.name == "mine"
    assert not family.supports_uncertainty


def test_ensemble_schema_names_the_exporters_keys() -> None:
    properties = FAMILIES["rl_ensemble"].config_schema["properties"]
    assert set(properties) == set(RequestConfig.__struct_fields__)
