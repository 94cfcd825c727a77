"""Runs an exported graph beside the torch module that it came from, and refuses it when they differ.

Batch size and time length both vary, since exporters have been seen to freeze either at the example's.
Knows nothing of the model families beyond their tensors' names and shapes.
"""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor

from exporters.checkpoints.archive import open_zip_safely
from exporters.checkpoints.identify import open_regular
from exporters.checkpoints.npz import open_array
from exporters.errors import ExportError, InvalidModel, VerificationFailed
from exporters.runtimes import Run, open_artefact
from exporters.spec import ExportableModel, ModelFormat

TOLERANCE = 1e-4
"""Largest relative error in float32."""

SCALE_FLOOR = 1e-6
"""Least scale that an error is related to, so that outputs of zero do not divide by zero."""

REAL_INPUT_GLOB = "*_windows.npz"
"""Files beside a checkpoint that hold real input: `x` float32 [windows, channels, time]."""
OBSERVATIONS_GLOB = "*_observations.npz"
"""Files beside or among agents that hold real input: `x` float32 [observations, features]."""

MAX_REAL_INPUT_BYTES = 64 << 20
MAX_WINDOWS = 256
MAX_BATCH = 256
"""Rows of the largest batch that is run: a graph that is right for 1, 2, 33 and 256 rows hasn't frozen the batch."""
_MAX_NAME_BYTES = 800
_BATCH_SIZES = (1, 2, 33)
_NOT_WINDOWS = (
    ExportError, OSError, ValueError, KeyError, EOFError, SyntaxError, RecursionError, NotImplementedError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading a file that holds no windows raises."""

_RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    InvalidModel,
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,  # TorchScript's
    ValueError,  # names that the graph does not have
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was run, and the largest relative error that was seen."""

    max_relative_error: float
    batch_sizes: tuple[int, ...]
    time_lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """Inputs of one kind (random, real), by batch size; `where` says which in errors."""

    where: str
    real: bool
    inputs: Callable[[int], tuple[Tensor, ...]]


def verify(
    model: ExportableModel,
    artefact: Path,
    model_format: ModelFormat,
    *,
    max_batch_size: int,
    real_input: Tensor | None = None,
) -> Verification:
    """Compares the artefact's outputs with the module's.

    Runs batches of 1, 2, 33 (where the server's largest allows) and the largest up to 256, each with all of
    `model.time_lengths`, on random input and on `real_input`. The relative error of an output is
    `max |artefact - module| / max |module|`, both over all elements and batch sizes of one time length and
    one kind of input: a scale for each tensor, so that single elements near zero do not blow it up.

    Args:
        model: What was exported; its module is the reference, if it has no other.
        artefact: The written file.
        model_format: Decides the runtime: ONNX Runtime on the CPU, or `torch.jit`.
        max_batch_size: The largest batch that will be served.
        real_input: Float32 like the model's first input with a batch axis, recycled to each batch size. Of
            longer windows the last steps are taken; lengths beyond the windows' run on random input only, and
            so do those at which the module itself gives NaN or infinity on the windows.

    Raises:
        VerificationFailed: The artefact does not run, or its outputs differ in number, name, shape or value.
    """
    run = _open(model, artefact, model_format)
    largest = min(max_batch_size, MAX_BATCH)
    batch_sizes = tuple(sorted({*(size for size in _BATCH_SIZES if size < largest), largest}))
    worst = 0.0
    for time in model.time_lengths or (None,):
        for case in _cases(model, time, real_input):
            worst = max(worst, _compare(model, run, case, batch_sizes))
    return Verification(
        max_relative_error=worst, batch_sizes=batch_sizes, time_lengths=tuple(model.time_lengths)
    )


def find_real_input(folder: Path, model: ExportableModel, *, pattern: str = REAL_INPUT_GLOB) -> Tensor | None:
    """Finds windows of real input beside a checkpoint that fit the model's first input.

    Takes the first `*_windows.npz` (or other `pattern`) whose `x` has the model's channels and whose
    `feature_names`, where both sides have them, are the model's. Files that are no such archive, or are larger than
    64 MiB, are passed over: they are not the export's business. What an array's header says is checked before any of
    it is read.

    Returns:
        Float32 [windows, channels, time], or [observations, features], the first 256; or None.
    """
    for path in sorted(folder.glob(pattern)):
        try:
            x = _read_windows(path, model)
        except _NOT_WINDOWS:
            continue
        if x is not None and bool(np.isfinite(x).all()):
            return torch.from_numpy(x)
    return None


def _read_windows(path: Path, model: ExportableModel) -> npt.NDArray[np.float32] | None:
    stream, size_bytes = open_regular(path, max_bytes=MAX_REAL_INPUT_BYTES)
    with stream, open_zip_safely(stream, size_bytes) as archive:
        if "feature_names.npy" in archive.namelist() and model.feature_names is not None:
            shape, dtype, member = open_array(archive, "feature_names.npy")
            with member:
                if (
                    shape != (len(model.feature_names),)
                    or dtype.kind != "U"
                    or dtype.itemsize > _MAX_NAME_BYTES
                ):
                    return None
                names = np.frombuffer(member.read(shape[0] * dtype.itemsize), dtype=dtype)
            if tuple(map(str, names)) != model.feature_names:
                return None
        shape, dtype, member = open_array(archive, "x.npy")
        with member:
            read = (min(shape[0], MAX_WINDOWS), *shape[1:]) if shape else shape
            needed = math.prod(read) * dtype.itemsize
            if dtype != np.dtype("<f4") or not _fits(shape, model) or needed > MAX_REAL_INPUT_BYTES:
                return None
            return np.frombuffer(bytearray(member.read(needed)), dtype=np.float32).reshape(read)


def _fits(shape: Sequence[int], model: ExportableModel) -> bool:
    wanted = model.inputs[0].shape
    return (
        len(shape) == len(wanted) + 1
        and all(shape)
        and all(axis in (-1, size) for axis, size in zip(wanted, shape[1:], strict=True))
    )


def _cases(model: ExportableModel, time: int | None, real_input: Tensor | None) -> Iterator[_Case]:
    suffix = "" if time is None else f", time {time}"
    yield _Case(where=f"random input{suffix}", real=False, inputs=lambda batch: model.example(batch, time))
    if real_input is None:
        return
    if not _fits(real_input.shape, model):
        raise VerificationFailed(
            "The real input does not fit the model.",
            expected=f"shape [windows, {', '.join(map(str, model.inputs[0].shape))}]",
            got=f"shape {list(real_input.shape)}",
        )
    if time is None or real_input.shape[-1] >= time:
        windows = real_input if time is None else real_input[..., -time:].contiguous()

        def recycled(batch: int) -> tuple[Tensor, ...]:
            rows = torch.arange(batch) % windows.shape[0]
            return (windows[rows], *model.example(batch, time)[1:])

        yield _Case(where=f"real input{suffix}", real=True, inputs=recycled)


def _compare(model: ExportableModel, run: Run, case: _Case, batch_sizes: Sequence[int]) -> float:
    errors = dict.fromkeys((spec.name for spec in model.outputs), 0.0)
    scales = dict(errors)
    for batch in batch_sizes:
        where = f"{case.where}, batch {batch}"
        inputs = case.inputs(batch)
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in (model.reference or model.module)(*inputs)]
        if case.real and not all(np.isfinite(ours).all() for ours in expected):
            return 0.0  # windows of another scale than the model's say nothing of the graph
        with _as_verification_failure(where):
            got = run([tensor.numpy() for tensor in inputs])
        if len(got) != len(expected):
            raise _different("number of outputs", where, str(len(expected)), str(len(got)))
        names = [spec.name for spec in model.outputs]
        undecided = (
            {} if model.undecided is None else model.undecided(dict(zip(names, expected, strict=True)))
        )
        for spec, ours, theirs in zip(model.outputs, expected, got, strict=True):
            if ours.shape != theirs.shape:
                raise _different(
                    f"shape of '{spec.name}'", where, str(list(ours.shape)), str(list(theirs.shape))
                )
            if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
                raise _different(f"'{spec.name}'", where, "finite values", "NaN or infinity")
            difference = np.abs(theirs.astype(np.float64) - ours.astype(np.float64))
            if spec.name in undecided:
                difference[undecided[spec.name]] = 0.0
            errors[spec.name] = max(errors[spec.name], float(difference.max(initial=0.0)))
            scales[spec.name] = max(scales[spec.name], float(np.abs(ours).max(initial=0.0)))
    relative = {name: error / max(scales[name], SCALE_FLOOR) for name, error in errors.items()}
    name, worst = max(relative.items(), key=lambda item: item[1])
    if worst >= TOLERANCE:
        raise _different(
            f"'{name}'", case.where, f"relative error under {TOLERANCE:g}", f"relative error {worst:.3g}"
        )
    return worst


def _different(what: str, where: str, expected: str, got: str) -> VerificationFailed:
    return VerificationFailed(
        f"The exported graph differs from the torch module in {what} on {where}: expected {expected}, got {got}.",
        expected=expected,
        got=got,
        remedy="Try the other format; if it fails too, report the model's architecture.",
    )


def _open(model: ExportableModel, artefact: Path, model_format: ModelFormat) -> Run:
    with _as_verification_failure("loading"):
        opened = open_artefact(artefact, model_format)
    for what, specs, got in (
        ("inputs", model.inputs, opened.inputs),
        ("outputs", model.outputs, opened.outputs),
    ):
        wanted = tuple(spec.name for spec in specs)
        if got is not None and wanted != got:
            raise _different(f"the names of the {what}", "loading", ", ".join(wanted), ", ".join(got))
    return opened.run


@contextmanager
def _as_verification_failure(where: str) -> Iterator[None]:
    try:
        yield
    except _RUNTIME_ERRORS as error:
        raise VerificationFailed(
            f"The exported graph does not run on {where}: {error.__cause__ or error!s:.300}",
            remedy="Try the other format; if it fails too, report the model's architecture.",
        ) from (error.__cause__ or error)
