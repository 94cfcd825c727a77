"""The tensors that each known model type has. A type that isn't here has whatever its model declares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporters.card import CardTensor
from exporters.errors import InvalidConfig, InvalidModel

_DYNAMIC = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownType:
    """The tensors that a known type must have; letters stand for sizes that must agree, `time`
    for a dynamic axis, digits for themselves."""

    inputs: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, tuple[str, ...]]


KNOWN_TYPES: Mapping[str, KnownType] = {
    "cnn_lstm_hybrid": KnownType(
        inputs={"x": ("channels", "time")},
        outputs={
            "classification_probs": ("K",),
            "regression_pred": ("R",),
            "mc_regression": ("T", "R"),
            "mc_probs": ("T", "K"),
            "member_probs": ("M", "K"),
            "member_regression": ("M", "R"),
            "ensemble_weights": ("M",),
            "attention_weights": ("time",),
        },
    ),
    "rl_ensemble": KnownType(
        inputs={"x": ("features",), "weights": ("A",)},
        outputs={
            "action_probs": ("K",),
            "value": ("1",),
            "agent_action_probs": ("A", "K"),
            "agent_values": ("A",),
            "agent_actions": ("A", "D"),
        },
    ),
}


def check_type(model_type: str, inputs: tuple[CardTensor, ...], outputs: tuple[CardTensor, ...]) -> None:
    """Holds a known type's tensors to its table.

    Raises:
        InvalidModel: names the tensor, and the shapes expected.
    """
    known = KNOWN_TYPES.get(model_type)
    if known is None:
        return
    sizes: dict[str, int] = {}
    for kind, wanted, tensors in (("input", known.inputs, inputs), ("output", known.outputs, outputs)):
        given = {tensor.name: tensor for tensor in tensors}
        missing = [name for name in wanted if name not in given]
        extra = [name for name in given if name not in wanted] if kind == "input" else []
        if missing or extra:
            raise InvalidModel(
                f"The model's {kind}s aren't those of {model_type}.",
                expected=", ".join(f"{name} [B, {', '.join(axes)}]" for name, axes in wanted.items()),
                got=", ".join(given),
                remedy=f"Name the {kind}s so when exporting, or publish it under a type name of its own.",
            )
        for name, axes in wanted.items():
            _check_axes(given[name], axes, sizes, model_type)


def check_agents(config: Mapping[str, Any], inputs: tuple[CardTensor, ...]) -> None:
    """Holds the agents that a ready-made `rl_ensemble`'s configuration names to its tensors; it may name none.

    Raises:
        InvalidConfig: not a list of objects with names, each once, or of another number than the model's weights.
    """
    agents = config.get("agents")
    if agents is None:
        return
    count = next((tensor.shape[0] for tensor in inputs if tensor.name == "weights"), 0)
    named = agents if isinstance(agents, list) else []
    names = [agent.get("name") if isinstance(agent, dict) else None for agent in named]
    if not all(isinstance(name, str) for name in names) or not len(names) == len(set(names)) == count:
        raise InvalidConfig(
            "config.agents aren't the model's.",
            expected=f'{count} objects with a "name", each once, in the order of the input weights',
            got=repr(agents)[:200],
            remedy="Correct it, or leave it out: the agents are then numbered.",
        )


def _check_axes(tensor: CardTensor, axes: tuple[str, ...], sizes: dict[str, int], model_type: str) -> None:
    fits = tensor.datatype == "FP32" and len(tensor.shape) == len(axes)
    for axis, size in zip(axes, tensor.shape, strict=False):
        if axis == "time":
            continue
        wanted = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
        fits = fits and size != _DYNAMIC and size == wanted
    if not fits:
        raise InvalidModel(
            f"{tensor.name} doesn't have the shape that {model_type} gives it.",
            expected=f"FP32 [B, {', '.join(axes)}]" + (f" with {sizes}" if sizes else ""),
            got=f"{tensor.datatype} {[_DYNAMIC, *tensor.shape]}",
            remedy="Export the model with these shapes, or publish it under a type name of its own.",
        )
