"""Runs an artefact on small inputs, to see that it loads, runs, and gives the tensors that it declares.

Says nothing of whether its numbers are right: `exporters.verification` compares them with torch where there is a
module to compare with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.card import CardTensor
from exporters.errors import InvalidModel
from exporters.spec import ModelFormat

NUMPY_TYPES: Mapping[str, str] = {
    "FP64": "float64", "FP32": "float32", "FP16": "float16", "INT64": "int64", "INT32": "int32", "INT16": "int16",
    "INT8": "int8", "UINT64": "uint64", "UINT32": "uint32", "UINT16": "uint16", "UINT8": "uint8", "BOOL": "bool",
    "BYTES": "object",
}  # fmt: skip
BATCH_SIZES = (1, 2)
_LENGTHS = (8, 32, 64, 1)
"""Tried for dynamic axes in turn, where nothing says how long they may be."""

Run = Callable[[Sequence[NDArray[Any]]], list[NDArray[Any]]]


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
    """
    opener = {ModelFormat.ONNX: open_onnx, ModelFormat.TORCHSCRIPT: open_torchscript}[model_format]
    run = opener(path)
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
    names = {numpy_name: name for name, numpy_name in NUMPY_TYPES.items()}
    return names.get(array.dtype.name, array.dtype.name)


def _example(tensor: CardTensor, batch: int, length: int | None) -> NDArray[Any]:
    shape = (batch, *(length or 1 if size == -1 else size for size in tensor.shape))
    dtype = NUMPY_TYPES.get(tensor.datatype)
    if dtype is None:
        raise InvalidModel(f"Tensors of type {tensor.datatype} can't be tried here.", got=tensor.datatype)
    if dtype == "object":
        return np.full(shape, b"", dtype=object)
    if dtype.startswith("float"):
        return np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return np.zeros(shape, dtype=dtype)  # zero is a valid index, class or flag


def open_onnx(path: Path) -> Run:
    """Opens an ONNX model on the CPU, with one thread.

    Raises:
        InvalidModel: ONNX Runtime refuses it.
    """
    import onnxruntime  # noqa: PLC0415 - checks of other formats do without

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InvalidModel(
            "ONNX Runtime can't load the model.",
            got=str(error).strip()[-300:],
            remedy="Check it with onnx.checker, and that it uses standard operators only.",
        ) from error
    names = [entry.name for entry in session.get_inputs()]

    def run(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        return [np.asarray(output) for output in session.run(None, dict(zip(names, arrays, strict=True)))]

    return run


def open_torchscript(path: Path) -> Run:
    """Opens a TorchScript archive on the CPU. Screen it first: `exporters.torchscript_archive`.

    Raises:
        InvalidModel: torch refuses it.
    """
    import warnings  # noqa: PLC0415

    import torch  # noqa: PLC0415 - slow to import

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning
            )
            module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
            module.eval()
    except Exception as error:
        raise InvalidModel(
            "torch can't load the TorchScript archive.",
            got=str(error).strip()[:300],
            remedy="Save it again with torch.jit.save, from the torch version that Triton's image has or an older one.",
        ) from error

    def run(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        with torch.inference_mode():
            result = module(*(torch.from_numpy(array) for array in arrays))
        outputs = [result] if isinstance(result, torch.Tensor) else list(result)
        if not all(isinstance(output, torch.Tensor) for output in outputs) or isinstance(result, dict):
            raise InvalidModel(
                "The TorchScript model's forward doesn't return a tensor, or a tuple or list of tensors.",
                got=type(result).__name__,
                remedy="Wrap it in a module whose forward returns a tuple of tensors.",
            )
        return [output.numpy() for output in outputs]

    return run
