"""The tensors that each known model type has. A type that isn't here has whatever its model declares."""

from collections.abc import Mapping
from dataclasses import dataclass

from exporters.card import CardTensor
from exporters.errors import InvalidModel

_DYNAMIC = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownType:
    """The tensors that a known type must have; letters stand for sizes that must agree, `time` for a dynamic axis."""

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


def _check_axes(tensor: CardTensor, axes: tuple[str, ...], sizes: dict[str, int], model_type: str) -> None:
    fits = tensor.datatype == "FP32" and len(tensor.shape) == len(axes)
    for axis, size in zip(axes, tensor.shape, strict=False):
        if axis == "time":
            continue
        fits = fits and size != _DYNAMIC and sizes.setdefault(axis, size) == size
    if not fits:
        raise InvalidModel(
            f"{tensor.name} doesn't have the shape that {model_type} gives it.",
            expected=f"FP32 [B, {', '.join(axes)}]" + (f" with {sizes}" if sizes else ""),
            got=f"{tensor.datatype} {[_DYNAMIC, *tensor.shape]}",
            remedy="Export the model with these shapes, or publish it under a type name of its own.",
        )
