"""What is known of the model types, for people: descriptions and the configuration that a load takes.

The configuration's schema is the exporters' (`exporters.hybrid.config.config_schema`), which this process may not
import; a test holds the two together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model type as GET /models/types shows it."""

    name: str
    description: str
    input_format: str
    output_format: str
    supports_uncertainty: bool
    supports_ensemble: bool
    config_schema: Mapping[str, Any] = field(default_factory=dict)


_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def _integer(description: str, default: int, maximum: int, minimum: int = 1) -> dict[str, Any]:
    return {
        "type": "integer", "minimum": minimum, "maximum": maximum, "description": description, "default": default,
    }  # fmt: skip


def _rate(description: str, default: float) -> dict[str, Any]:
    return {
        "type": "number", "minimum": 0, "exclusiveMaximum": 1, "description": description, "default": default,
    }  # fmt: skip


def _flag(description: str, *, default: bool) -> dict[str, Any]:
    return {"type": "boolean", "description": description, "default": default}


def _names(description: str) -> dict[str, Any]:
    return {
        "type": ["array", "null"],
        "items": {"type": "string", "minLength": 1},
        "minItems": 1,
        "description": description,
        "default": None,
    }


_HYBRID_PROPERTIES: dict[str, Any] = {
    "input_dim": _integer("Channels of the input.", 50, 4096),
    "sequence_length": _integer("Longest input, in time steps.", 60, 8192),
    "prediction_horizon": _integer("Steps ahead that the model was trained to predict.", 10, 100_000),
    "num_classes": _integer("Classes of the classifier.", 3, 4096, minimum=2),
    "regression_targets": _integer("Values of the regression.", 1, 4096),
    "feature_fusion_dim": _integer("Width of the fused features; a multiple of 8.", 256, 8192, minimum=8),
    "cnn_filter_sizes": {
        "type": "array",
        "items": {"type": "integer", "minimum": 1, "maximum": 1023},
        "minItems": 1,
        "description": "Kernel widths of the parallel convolutions, in time steps.",
        "default": [3, 5, 7, 11],
    },
    "cnn_num_filters": _integer("Filters of each convolution.", 64, 8192),
    "cnn_attention_heads": _integer(
        "Heads of the convolutional self-attention; divides filters x kernels.", 8, 1024
    ),
    "lstm_hidden_dim": _integer("Hidden width of each LSTM direction.", 128, 8192),
    "lstm_num_layers": _integer("Stacked LSTM layers.", 3, 64),
    "lstm_bidirectional": _flag("Whether the LSTM also reads backwards.", default=True),
    "num_ensemble_models": _integer("Members of the ensemble.", 5, 1024),
    "use_monte_carlo_dropout": _flag(
        "Off: one sample with nothing dropped, so no uncertainty.", default=True
    ),
    "mc_dropout_samples": _integer("Monte Carlo dropout samples in the graph.", 100, 10_000),
    "dropout_rate": _rate("Dropout rate of the backbone and of both heads.", 0.3),
    "ensemble_dropout_rate": _rate("Dropout rate of the members; training only.", 0.1),
    "class_names": _names("A name for each class, in the order of the logits."),
    "feature_names": _names("A name for each input channel, in order."),
}

_ENSEMBLE_PROPERTIES: dict[str, Any] = {
    "agents": {
        "type": "array",
        "items": {"type": "object", "required": ["name"]},
        "description": "As in manifest.json, which it changes agent by agent: name, algorithm, normalization, "
        "temperature, target_noise, activation, action_space, low, high.",
        "default": [],
    },
    "observation_size": {
        "type": ["integer", "null"],
        "minimum": 1,
        "description": "Features of the observation; null: as the agents say.",
        "default": None,
    },
    "class_names": _names("A name for each action, in order."),
    "feature_names": _names("A name for each feature, in order."),
    "action_thresholds": {
        "type": ["array", "null"],
        "items": {"type": "number"},
        "description": "Where a continuous action, from -1 to 1, is cut into the discrete ones; null: -1/3 and 1/3.",
        "default": None,
    },
    "q_temperature": {
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "description": "DQN's probabilities are the softmax of its action values over it; null: 1.",
        "default": None,
    },
    "weights_policy": {
        "type": ["object", "null"],
        "description": "How the weights learn, with the fields of PUT /api/v1/ensembles/{model}.",
        "default": None,
    },
}

FAMILIES: dict[str, Family] = {
    "cnn_lstm_hybrid": Family(
        name="CNN-LSTM hybrid",
        description="Class probabilities and a regression forecast of a time series window, with Monte Carlo dropout "
        "uncertainty and an ensemble of heads.",
        input_format="[batch][channels][time] or, for one sample, [channels][time]; float32; raw features where the "
        "version has a normalisation",
        output_format="class probabilities [batch][classes] and regression [batch][targets], base heads and ensemble",
        supports_uncertainty=True,
        supports_ensemble=True,
        config_schema={
            "$schema": _DRAFT,
            "type": "object",
            "additionalProperties": False,
            "properties": _HYBRID_PROPERTIES,
        },
    ),
    "rl_ensemble": Family(
        name="Reinforcement learning ensemble",
        description="A trading action from several agents (PPO, A2C, SAC, TD3, DQN), mixed by weights that learn.",
        input_format="[batch][features]; float32",
        output_format="action probabilities [batch][actions], action [batch], state value [batch][1], each agent's",
        supports_uncertainty=True,
        supports_ensemble=True,
        config_schema={
            "$schema": _DRAFT,
            "type": "object",
            "additionalProperties": False,
            "properties": _ENSEMBLE_PROPERTIES,
        },
    ),
}


def family_of(model_type: str) -> Family:
    """What is known of a type; for ready-made types, what can be said of any."""
    known = FAMILIES.get(model_type)
    if known is not None:
        return known
    return Family(
        name=model_type,
        description="A ready-made ONNX or TorchScript model.",
        input_format="as GET /api/v1/models/{type}/{version} describes its inputs",
        output_format="its outputs, by tensor name",
        supports_uncertainty=False,
        supports_ensemble=False,
        config_schema={"$schema": _DRAFT, "type": "object"},
    )
