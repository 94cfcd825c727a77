"""Runs an artefact on small inputs, to see that it loads, runs, and gives the tensors that it declares.

Says nothing of whether its numbers are right: `exporters.verification` compares them with torch where there is a
module to compare with.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.card import CardTensor
from exporters.errors import InvalidModel
from exporters.runtimes import Run, open_artefact
from exporters.spec import DATATYPES, ModelFormat

BATCH_SIZES = (1, 2)
_LENGTHS = (8, 32, 64, 1)
"""Tried for dynamic axes in turn, where nothing says how long they may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What ran: batch sizes, the length of dynamic axes (None without any), and each output's shape and datatype
    without the batch axis."""

    batch_sizes: tuple[int, ...]
    length: int | None
    output_shapes: tuple[tuple[int, ...], ...]
    output_types: tuple[str, ...]


def try_artefact(
    path: Path,
    model_format: ModelFormat,
    inputs: tuple[CardTensor, ...],
    *,
    max_batch_size: int,
    lengths: tuple[int, ...] = (),
) -> Trial:
    """Loads an artefact and runs it with a batch of one and of two.

    Args:
        path: `.onnx` or TorchScript.
        model_format: which of the two.
        inputs: the tensors to feed, in order.
        max_batch_size: two rows are tried where it allows them.
        lengths: to try for dynamic axes, best first; common ones follow.

    Raises:
        InvalidModel: it doesn't load, or runs with none of the lengths.
        UnsafeCheckpoint: TorchScript graphs that touch files.
    """
    run = open_artefact(path, model_format).run
    dynamic = any(-1 in tensor.shape for tensor in inputs)
    candidates: tuple[int | None, ...] = (None,)
    if dynamic:
        candidates = tuple(dict.fromkeys((*lengths, *_LENGTHS)))
    failure: Exception | None = None
    for length in candidates:
        try:
            return _try_length(run, inputs, length, max_batch_size)
        except InvalidModel:
            raise
        except Exception as error:  # noqa: BLE001 - both runtimes raise classes of their own for any failing operator
            failure = error
    raise InvalidModel(
        "The model loads, but doesn't run on a small input.",
        expected="a run with inputs " + "; ".join(f"{t.name} {t.datatype} {[-1, *t.shape]}" for t in inputs),
        got=str(failure).strip()[-300:],
        remedy="Check the inputs' names, shapes and datatypes, and that the first axis is the batch.",
    ) from failure


def _try_length(run: Run, inputs: tuple[CardTensor, ...], length: int | None, max_batch_size: int) -> Trial:
    shapes: tuple[tuple[int, ...], ...] = ()
    types: tuple[str, ...] = ()
    batch_sizes = tuple(size for size in BATCH_SIZES if size <= max_batch_size)
    for batch in batch_sizes:
        outputs = run([_example(tensor, batch, length) for tensor in inputs])
        for index, output in enumerate(outputs):
            if output.ndim == 0 or output.shape[0] != batch:
                raise InvalidModel(
                    f"Output {index} of the model doesn't have the batch as its first axis.",
                    expected=f"a first axis of {batch} for {batch} rows of input",
                    got=f"shape {list(output.shape)}",
                    remedy="Export the model so that each output has one row for each row of input.",
                )
        shapes = tuple(tuple(map(int, output.shape[1:])) for output in outputs)
        types = tuple(_type_name(output) for output in outputs)
    return Trial(batch_sizes=batch_sizes, length=length, output_shapes=shapes, output_types=types)


def _type_name(array: NDArray[Any]) -> str:
    return DATATYPES.get(array.dtype.name, array.dtype.name)


def _example(tensor: CardTensor, batch: int, length: int | None) -> NDArray[Any]:
    shape = (batch, *(length or 1 if size == -1 else size for size in tensor.shape))
    dtype = next((name for name, datatype in DATATYPES.items() if datatype == tensor.datatype), None)
    if dtype is None:
        raise InvalidModel(f"Tensors of type {tensor.datatype} can't be tried here.", got=tensor.datatype)
    if dtype == "object":
        return np.full(shape, b"", dtype=object)
    if dtype.startswith("float"):
        return np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return np.zeros(shape, dtype=dtype)  # zero is a valid index, class or flag
