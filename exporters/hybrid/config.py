"""Configuration of the CNN-LSTM hybrid: defaults, strict reading, and a schema for people and programs.

One table, `_RULES`, holds type, range and meaning of every key; reading, error texts and the schema are
all derived from it. Says nothing of tensors: `exporters.hybrid.architecture` reads those.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from exporters.errors import InvalidConfig

DEFAULT_SEED = 20240917
"""Of the Monte Carlo masks."""
CROSS_ATTENTION_HEADS = 8
"""Heads of the fusion's cross attention; not configurable in the checkpoints in use."""

INFERRED_FROM: Mapping[str, str] = {
    "input_dim": "cnn_extractor.conv_layers.0.weight",
    "cnn_filter_sizes": "cnn_extractor.conv_layers.*.weight",
    "cnn_num_filters": "cnn_extractor.conv_layers.0.weight",
    "lstm_hidden_dim": "lstm_processor.lstm_layers.0.weight_hh_l0",
    "lstm_num_layers": "lstm_processor.lstm_layers.*.weight_hh_l0",
    "lstm_bidirectional": "lstm_processor.lstm_layers.0.weight_hh_l0_reverse",
    "feature_fusion_dim": "feature_fusion.cnn_projection.weight",
    "num_classes": "classification_head.4.weight",
    "regression_targets": "regression_head.layers.6.weight",
    "num_ensemble_models": "ensemble_models.*.0.weight",
}
"""Keys that the tensors' shapes settle, and a tensor that tells."""


class ConfigOrigin(StrEnum):
    """Who wrote a configuration: the request's is held to the schema, a checkpoint's is other people's."""

    REQUEST = "request"
    CHECKPOINT = "checkpoint"


class _Kind(StrEnum):
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    SIZES = "sizes"
    NAMES = "names"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """Type, range and meaning of one key. `minimum` is inclusive, `below` exclusive."""

    kind: _Kind
    meaning: str
    minimum: float = 1
    maximum: float | None = None
    below: float | None = None


_RULES: Mapping[str, _Rule] = {
    "input_dim": _Rule(kind=_Kind.INTEGER, maximum=4096, meaning="Channels of the input."),
    "sequence_length": _Rule(kind=_Kind.INTEGER, maximum=8192, meaning="Longest input, in time steps."),
    "prediction_horizon": _Rule(
        kind=_Kind.INTEGER, maximum=100_000, meaning="Steps ahead that the model was trained to predict."
    ),
    "num_classes": _Rule(kind=_Kind.INTEGER, minimum=2, maximum=4096, meaning="Classes of the classifier."),
    "regression_targets": _Rule(kind=_Kind.INTEGER, maximum=4096, meaning="Values of the regression."),
    "feature_fusion_dim": _Rule(
        kind=_Kind.INTEGER, minimum=8, maximum=8192, meaning="Width of the fused features; a multiple of 8."
    ),
    "cnn_filter_sizes": _Rule(
        kind=_Kind.SIZES, maximum=1023, meaning="Kernel widths of the parallel convolutions, in time steps."
    ),
    "cnn_num_filters": _Rule(kind=_Kind.INTEGER, maximum=8192, meaning="Filters of each convolution."),
    "cnn_attention_heads": _Rule(
        kind=_Kind.INTEGER,
        maximum=1024,
        meaning="Heads of the convolutional self-attention; divides filters x kernels.",
    ),
    "lstm_hidden_dim": _Rule(
        kind=_Kind.INTEGER, maximum=8192, meaning="Hidden width of each LSTM direction."
    ),
    "lstm_num_layers": _Rule(kind=_Kind.INTEGER, maximum=64, meaning="Stacked LSTM layers."),
    "lstm_bidirectional": _Rule(kind=_Kind.BOOLEAN, meaning="Whether the LSTM also reads backwards."),
    "num_ensemble_models": _Rule(kind=_Kind.INTEGER, maximum=1024, meaning="Members of the ensemble."),
    "use_monte_carlo_dropout": _Rule(
        kind=_Kind.BOOLEAN, meaning="Off: one sample with nothing dropped, so no uncertainty."
    ),
    "mc_dropout_samples": _Rule(
        kind=_Kind.INTEGER, maximum=10_000, meaning="Monte Carlo dropout samples in the graph."
    ),
    "dropout_rate": _Rule(
        kind=_Kind.NUMBER, minimum=0, below=1, meaning="Dropout rate of the backbone and of both heads."
    ),
    "ensemble_dropout_rate": _Rule(
        kind=_Kind.NUMBER, minimum=0, below=1, meaning="Dropout rate of the members; training only."
    ),
    "class_names": _Rule(kind=_Kind.NAMES, meaning="A name for each class, in the order of the logits."),
    "feature_names": _Rule(kind=_Kind.NAMES, meaning="A name for each input channel, in order."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridConfig:
    """A hybrid's training configuration. Meanings and ranges: `config_schema()`."""

    input_dim: int = 50
    sequence_length: int = 60
    prediction_horizon: int = 10
    num_classes: int = 3
    regression_targets: int = 1
    feature_fusion_dim: int = 256
    cnn_filter_sizes: tuple[int, ...] = (3, 5, 7, 11)
    cnn_num_filters: int = 64
    cnn_attention_heads: int = 8
    lstm_hidden_dim: int = 128
    lstm_num_layers: int = 3
    lstm_bidirectional: bool = True
    num_ensemble_models: int = 5
    use_monte_carlo_dropout: bool = True
    mc_dropout_samples: int = 100
    dropout_rate: float = 0.3
    ensemble_dropout_rate: float = 0.1
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_heads("cnn_attention_heads", self.cnn_attention_heads, "filters x kernels", self.cnn_width)
        _check_heads(
            "cross attention heads", CROSS_ATTENTION_HEADS, "feature_fusion_dim", self.feature_fusion_dim
        )
        _check_names("class_names", self.class_names, "num_classes", self.num_classes)
        _check_names("feature_names", self.feature_names, "input_dim", self.input_dim)

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], *, origin: ConfigOrigin = ConfigOrigin.REQUEST
    ) -> "HybridConfig":
        """Reads a configuration; keys that are not given take the defaults.

        Args:
            mapping: Configuration as decoded from JSON or from a checkpoint.
            origin: Decides what unknown keys mean: an error in a request, nothing in a checkpoint.

        Raises:
            InvalidConfig: Unknown key, wrong type or range, heads that do not divide their width, or names
                of another number than what they name.
        """
        return cls(**read_fields(mapping, origin=origin))

    @property
    def cnn_width(self) -> int:
        """Channels after the parallel convolutions: filters times kernels."""
        return self.cnn_num_filters * len(self.cnn_filter_sizes)

    @property
    def lstm_width(self) -> int:
        """Channels after an LSTM layer: both directions side by side."""
        return self.lstm_hidden_dim * (2 if self.lstm_bidirectional else 1)

    @property
    def samples(self) -> int:
        """Monte Carlo samples that the graph holds: 1 when Monte Carlo dropout is off."""
        return self.mc_dropout_samples if self.use_monte_carlo_dropout else 1

    def as_mapping(self) -> dict[str, Any]:
        """The configuration as JSON values, without the names (the card has keys of its own for those)."""
        values = asdict(self)
        values["cnn_filter_sizes"] = list(self.cnn_filter_sizes)
        del values["class_names"], values["feature_names"]
        return values


def read_fields(mapping: Mapping[str, Any], *, origin: ConfigOrigin) -> dict[str, Any]:
    """Checks and converts the known keys of a configuration; says nothing of the missing ones.

    Args:
        mapping: Configuration as decoded from JSON or from a checkpoint.
        origin: Of a checkpoint, unknown keys and nulls are skipped; of a request, both are errors.

    Returns:
        Keyword arguments for `HybridConfig`.

    Raises:
        InvalidConfig: Unknown key of a request, or a value of the wrong type or range.
    """
    fields: dict[str, Any] = {}
    for key, value in mapping.items():
        rule = _RULES.get(key)
        if origin is ConfigOrigin.CHECKPOINT and (rule is None or value is None):
            continue
        if rule is None:
            raise InvalidConfig(
                f"The configuration has the unknown key '{key}'.",
                expected=f"keys among {', '.join(_RULES)}",
                got=str(key),
                remedy="Remove the key or correct its spelling.",
            )
        fields[key] = _convert(key, value, rule, origin)
    return fields


def config_schema() -> dict[str, Any]:
    """The configuration as JSON Schema (draft 2020-12), with defaults and meanings."""
    defaults = asdict(HybridConfig())
    properties: dict[str, Any] = {}
    for key, rule in _RULES.items():
        default = defaults[key]
        properties[key] = _schema_of(rule) | {
            "description": rule.meaning,
            "default": list(default) if isinstance(default, tuple) else default,
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _schema_of(rule: _Rule) -> dict[str, Any]:
    match rule.kind:
        case _Kind.BOOLEAN:
            return {"type": "boolean"}
        case _Kind.NAMES:
            return {"type": ["array", "null"], "items": {"type": "string", "minLength": 1}, "minItems": 1}
        case _Kind.SIZES:
            return {"type": "array", "items": {"type": "integer"} | _range_of(rule), "minItems": 1}
        case _Kind.INTEGER | _Kind.NUMBER:
            return {"type": rule.kind.value} | _range_of(rule)


def _range_of(rule: _Rule) -> dict[str, Any]:
    bounds = {"minimum": rule.minimum, "maximum": rule.maximum, "exclusiveMaximum": rule.below}
    return {name: bound for name, bound in bounds.items() if bound is not None}


def _convert(key: str, value: Any, rule: _Rule, origin: ConfigOrigin) -> Any:
    match rule.kind:
        case _Kind.BOOLEAN if isinstance(value, bool):
            return value
        case _Kind.INTEGER if _is_integer(value) and _in_range(value, rule):
            return value
        case _Kind.NUMBER if _is_number(value) and _in_range(value, rule):
            return float(value)
        case _Kind.SIZES if _is_list(value) and all(_is_integer(v) and _in_range(v, rule) for v in value):
            return tuple(value)
        case _Kind.NAMES if _is_list(value) and all(isinstance(v, str) and v for v in value):
            return tuple(value)
    raise InvalidConfig(
        f"The {origin.value}'s configuration has an unusable value for '{key}'.",
        expected=f"{key}: {_wanted(rule)}",
        got=f"{value!r:.200}",
        remedy=f"Correct '{key}', or leave it out.",
    )


def _wanted(rule: _Rule) -> str:
    upper = ""
    if rule.maximum is not None:
        upper = f" to {rule.maximum:g}"
    elif rule.below is not None:
        upper = f" to below {rule.below:g}"
    match rule.kind:
        case _Kind.BOOLEAN:
            return "true or false"
        case _Kind.NAMES:
            return "a list of non-empty strings"
        case _Kind.SIZES:
            return f"a list of integers from {rule.minimum:g}{upper}"
        case _Kind.INTEGER:
            return f"an integer from {rule.minimum:g}{upper}"
        case _Kind.NUMBER:
            return f"a number from {rule.minimum:g}{upper}"


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) > 0


def _in_range(value: float, rule: _Rule) -> bool:
    # Written so that NaN fails.
    return (
        value >= rule.minimum
        and (rule.maximum is None or value <= rule.maximum)
        and (rule.below is None or value < rule.below)
    )


def _check_heads(name: str, heads: int, width_name: str, width: int) -> None:
    if width % heads:
        raise InvalidConfig(
            f"The {name} ({heads}) do not divide {width_name} ({width}).",
            expected=f"{name} that divide {width}",
            got=str(heads),
            remedy=f"Set '{name}' as in training." if name in _RULES else None,
        )


def _check_names(key: str, names: tuple[str, ...] | None, count_key: str, count: int) -> None:
    if names is not None and len(names) != count:
        raise InvalidConfig(
            f"'{key}' has {len(names)} names, but '{count_key}' is {count}.",
            expected=f"{count} names",
            got=f"{len(names)} names",
            remedy=f"Give one name for each of '{count_key}', or leave '{key}' out.",
        )
