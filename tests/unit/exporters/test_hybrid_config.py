"""The hybrid's configuration: defaults, strict reading, schema."""

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.errors import InvalidConfig
from exporters.hybrid.config import ConfigOrigin, HybridConfig, config_schema

DOCUMENTED_DEFAULTS = {
    "input_dim": 50,
    "sequence_length": 60,
    "prediction_horizon": 10,
    "num_classes": 3,
    "regression_targets": 1,
    "feature_fusion_dim": 256,
    "cnn_filter_sizes": [3, 5, 7, 11],
    "cnn_num_filters": 64,
    "cnn_attention_heads": 8,
    "lstm_hidden_dim": 128,
    "lstm_num_layers": 3,
    "lstm_bidirectional": True,
    "num_ensemble_models": 5,
    "use_monte_carlo_dropout": True,
    "mc_dropout_samples": 100,
    "dropout_rate": 0.3,
    "ensemble_dropout_rate": 0.1,
}


def test_defaults_are_the_documented_ones() -> None:
    assert HybridConfig().as_mapping() == DOCUMENTED_DEFAULTS


def test_empty_mapping_gives_the_defaults() -> None:
    assert HybridConfig.from_mapping({}) == HybridConfig()


def test_as_mapping_read_again_gives_the_same() -> None:
    config = HybridConfig.from_mapping({"input_dim": 7, "cnn_filter_sizes": [1, 4], "dropout_rate": 0})
    assert HybridConfig.from_mapping(json.loads(json.dumps(config.as_mapping()))) == config


def test_unknown_key_of_a_request_is_named_with_the_allowed_ones() -> None:
    with pytest.raises(InvalidConfig, match="'lstm_layers'") as caught:
        HybridConfig.from_mapping({"lstm_layers": 3})
    assert caught.value.got == "lstm_layers"
    assert caught.value.expected is not None
    assert "lstm_num_layers" in caught.value.expected


def test_unknown_key_of_a_checkpoint_is_ignored() -> None:
    recorded = {"learning_rate": 1e-3, "input_dim": 9, "num_classes": None}
    config = HybridConfig.from_mapping(recorded, origin=ConfigOrigin.CHECKPOINT)
    assert (config.input_dim, config.num_classes) == (9, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_dim", 0),
        ("input_dim", "50"),
        ("input_dim", 50.0),
        ("input_dim", True),
        ("num_classes", 1),
        ("mc_dropout_samples", 10_001),
        ("dropout_rate", 1),
        ("dropout_rate", -0.1),
        ("dropout_rate", float("nan")),
        ("dropout_rate", True),
        ("lstm_bidirectional", 1),
        ("cnn_filter_sizes", []),
        ("cnn_filter_sizes", 3),
        ("cnn_filter_sizes", "357"),
        ("cnn_filter_sizes", [3, 0]),
        ("class_names", ["sell", 1, "buy"]),
        ("class_names", ["sell", "", "buy"]),
    ],
)
@pytest.mark.parametrize("origin", list(ConfigOrigin))
def test_unusable_value_is_refused_and_named(key: str, value: Any, origin: ConfigOrigin) -> None:
    with pytest.raises(InvalidConfig, match=f"'{key}'") as caught:
        HybridConfig.from_mapping({key: value}, origin=origin)
    assert caught.value.expected is not None
    assert caught.value.expected.startswith(key)


def test_null_is_unusable_in_a_request() -> None:
    with pytest.raises(InvalidConfig, match="'input_dim'"):
        HybridConfig.from_mapping({"input_dim": None})


@pytest.mark.parametrize(
    ("mapping", "named"),
    [
        ({"cnn_num_filters": 3, "cnn_filter_sizes": [3]}, "cnn_attention_heads"),
        ({"cnn_attention_heads": 7}, "cnn_attention_heads"),
        ({"feature_fusion_dim": 100}, "feature_fusion_dim"),
        ({"class_names": ["up", "down"]}, "class_names"),
        ({"input_dim": 2, "feature_names": ["close"]}, "feature_names"),
    ],
)
def test_values_that_do_not_go_together_are_refused(mapping: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidConfig, match=named):
        HybridConfig.from_mapping(mapping)


def test_schema_describes_every_field_with_its_default() -> None:
    schema = config_schema()
    assert set(schema["properties"]) == {field.name for field in fields(HybridConfig)}
    assert schema["additionalProperties"] is False
    documented = {key: prop["default"] for key, prop in schema["properties"].items()}
    assert documented == DOCUMENTED_DEFAULTS | {"class_names": None, "feature_names": None}
    assert all(prop["description"] for prop in schema["properties"].values())
    json.dumps(schema)


def test_monte_carlo_dropout_off_leaves_one_sample() -> None:
    assert HybridConfig(use_monte_carlo_dropout=False).samples == 1


_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(st.dictionaries(st.sampled_from([*DOCUMENTED_DEFAULTS, "other"]), _VALUES))
def test_any_mapping_is_read_as_it_is_or_refused_with_a_reason(mapping: dict[str, Any]) -> None:
    refusal: InvalidConfig | None = None
    try:
        config = HybridConfig.from_mapping(mapping)
    except InvalidConfig as error:
        refusal = error
    if refusal is None:
        assert {key: config.as_mapping()[key] for key in mapping} == mapping
    else:
        assert refusal.expected is not None
        assert refusal.got is not None
