"""What a model family hands to the writers: a torch module with its named tensors.

Holds no logic beyond shapes; the families (`exporters.hybrid`, …) build it, the writers and the
verification consume it. Importing it doesn't import torch: the card and the CLI use its enums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn


DATATYPES: Mapping[str, str] = {
    "float64": "FP64", "float32": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32", "int16": "INT16",
    "int8": "INT8", "uint64": "UINT64", "uint32": "UINT32", "uint16": "UINT16", "uint8": "UINT8", "bool": "BOOL",
    "object": "BYTES",
}  # fmt: skip
"""Triton's name of each of numpy's types."""
OPSET = 17
"""Of the ONNX that is written here."""


class ModelFormat(StrEnum):
    """File format of the published artefact."""

    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"


class Device(StrEnum):
    """Where Triton places the model's instances (`auto`: GPU where there is one, else CPU)."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A named tensor. `shape` is without the batch axis; -1 marks a dynamic axis."""

    name: str
    shape: tuple[int, ...]
    datatype: str = "FP32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
    """Per-channel standardisation folded into the graph: (x - mean) / scale, float32 [channels] each."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MCDropout:
    """The fixed Monte Carlo mask bank of a graph: number of samples and the seed it was drawn from."""

    samples: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportableModel:
    """A family's model, ready for a writer.

    `module.forward` takes the tensors of `inputs` in order, each with a leading batch axis, and returns a
    tuple in the order of `outputs`. `example(batch, time)` draws inputs of that batch size (and time length,
    where the family has a time axis) from a fixed seed; `time_lengths` is what verification walks through,
    empty for families without a time axis. Verification compares with `reference` where there is one: a module of
    the same inputs and outputs, written another way. `undecided` takes the reference's outputs and tells by name
    which elements rounding alone decides (the index of the larger of two equal scores); those aren't compared.
    """

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: Callable[[int, int | None], tuple[Tensor, ...]]
    config: Mapping[str, Any]
    time_lengths: tuple[int, ...] = ()
    description: str = ""
    normalization: Normalization | None = None
    mc_dropout: MCDropout | None = None
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    reference: nn.Module | None = None
    undecided: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[np.bool_]]] | None = None
