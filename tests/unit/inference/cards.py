"""Model cards for tests of what is served from them."""

from pathlib import Path
from typing import Any

from control_plane.models.card import CardMCDropout, CardSource, CardTensor, ModelCard
from control_plane.models.registry import ModelVersion

CHANNELS, LENGTH, CLASSES, TARGETS, MEMBERS, SAMPLES = 4, 6, 3, 2, 5, 20


def tensor(
    name: str, shape: tuple[int, ...], datatype: str = "FP32", *, triton_name: str | None = None
) -> CardTensor:
    return CardTensor(name=name, triton_name=triton_name or name, datatype=datatype, shape=shape)


def card(model_type: str, version: str = "v1.0", **replaced: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "schema_version": 1,
        "model_type": model_type,
        "version": version,
        "triton_model": f"{model_type}-{version}",
        "description": "",
        "format": "onnx",
        "created_at": "2026-01-02T03:04:05Z",
        "source": CardSource(file_name="a.pth", sha256="00", size_bytes=1),
        "content_digest": "00",
        "inputs": (tensor("x", (4,)),),
        "outputs": (tensor("y", (4,)),),
        "max_batch_size": 64,
        "device": "cpu",
        "instance_count": 1,
        "config": {},
        "normalization": None,
        "mc_dropout": None,
        "class_names": None,
        "feature_names": None,
        "metrics": {},
        "calibration": None,
        "checksums": {"1/model.onnx": "00"},
        "size_bytes": 1,
        "verification": {},
        "versions": {},
        "warnings": (),
    }
    return ModelCard(**(fields | replaced))


def hybrid_card(version: str = "v1.0", **replaced: Any) -> ModelCard:
    """A hybrid as TorchScript: Triton's names differ from the clients'."""
    shapes = {
        "classification_probs": (CLASSES,),
        "regression_pred": (TARGETS,),
        "mc_regression": (SAMPLES, TARGETS),
        "mc_probs": (SAMPLES, CLASSES),
        "member_probs": (MEMBERS, CLASSES),
        "member_regression": (MEMBERS, TARGETS),
        "ensemble_weights": (MEMBERS,),
        "attention_weights": (-1,),
    }
    fields: dict[str, Any] = {
        "inputs": (tensor("x", (CHANNELS, -1), triton_name="x__0"),),
        "outputs": tuple(
            tensor(name, shape, triton_name=f"{name}__{index}")
            for index, (name, shape) in enumerate(shapes.items())
        ),
        "config": {"input_dim": CHANNELS, "sequence_length": LENGTH, "num_classes": CLASSES},
        "mc_dropout": CardMCDropout(samples=SAMPLES, seed=1),
    }
    return card("cnn_lstm_hybrid", version, **(fields | replaced))


def rl_card(**replaced: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "inputs": (tensor("x", (CHANNELS,)), tensor("weights", (2,))),
        "outputs": (
            tensor("action_probs", (3,)),
            tensor("value", (1,)),
            tensor("agent_action_probs", (2, 3)),
            tensor("agent_values", (2,)),
            tensor("agent_actions", (2, 1)),
        ),
        "config": {"agents": [{"name": "ppo"}, {"name": "dqn"}]},
    }
    return card("rl_ensemble", **(fields | replaced))


def version_of(of: ModelCard) -> ModelVersion:
    return ModelVersion(
        model_type=of.model_type, version=of.version, card=of, folder=Path("/nowhere"), registered_at=0.0
    )
