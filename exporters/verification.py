"""Runs an exported graph beside the torch module that it came from, and refuses it when they differ.

Batch size and time length both vary, since exporters have been seen to freeze either at the example's.
Knows nothing of the model families beyond their tensors' names and shapes.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor

from exporters.errors import VerificationFailed
from exporters.spec import ExportableModel, ModelFormat

TOLERANCE = 1e-4
"""Largest relative error in float32."""

SCALE_FLOOR = 1e-6
"""Least scale that an error is related to, so that outputs of zero do not divide by zero."""

REAL_INPUT_GLOB = "*_windows.npz"
"""Files beside a checkpoint that hold real input: `x` float32 [windows, channels, time]."""

_BATCH_SIZES = (1, 2, 33)

Array = npt.NDArray[np.generic]
Runner = Callable[[tuple[Tensor, ...]], Sequence[Array]]

_RUNTIME_ERRORS: tuple[type[Exception], ...] = (
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

    Runs batches of 1, 2, 33 (where the server's largest allows) and the largest, each with all of
    `model.time_lengths`, on random input and on `real_input`. The relative error of an output is
    `max |artefact - module| / max |module|`, both over all elements and batch sizes of one time length and
    one kind of input: a scale for each tensor, so that single elements near zero do not blow it up.

    Args:
        model: What was exported; its module is the reference.
        artefact: The written file.
        model_format: Decides the runtime: ONNX Runtime on the CPU, or `torch.jit`.
        max_batch_size: The largest batch that will be served.
        real_input: Float32 like the model's first input with a batch axis, recycled to each batch size. Of
            longer windows the last steps are taken; lengths beyond the windows' run on random input only.

    Raises:
        VerificationFailed: The artefact does not run, or its outputs differ in number, name, shape or value.
    """
    run = _open(model, artefact, model_format)
    batch_sizes = tuple(sorted({*(size for size in _BATCH_SIZES if size < max_batch_size), max_batch_size}))
    worst = 0.0
    for time in model.time_lengths or (None,):
        for case in _cases(model, time, real_input):
            worst = max(worst, _compare(model, run, case, batch_sizes))
    return Verification(
        max_relative_error=worst, batch_sizes=batch_sizes, time_lengths=tuple(model.time_lengths)
    )


def find_real_input(folder: Path, model: ExportableModel) -> Tensor | None:
    """Finds windows of real input beside a checkpoint that fit the model's first input.

    Takes the first `*_windows.npz` whose `x` has the model's channels and whose `feature_names`, where both
    sides have them, are the model's. Files that are no such archive are passed over: they are not the
    export's business.

    Returns:
        Float32 [windows, channels, time], or None.
    """
    for path in sorted(folder.glob(REAL_INPUT_GLOB)):
        try:
            with np.load(path, allow_pickle=False) as archive:
                x = archive["x"]
                names = tuple(map(str, archive["feature_names"])) if "feature_names" in archive else None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue
        same_names = names is None or model.feature_names is None or names == model.feature_names
        if same_names and x.dtype == np.float32 and _fits(x.shape, model) and bool(np.isfinite(x).all()):
            return torch.from_numpy(x)
    return None


def _fits(shape: Sequence[int], model: ExportableModel) -> bool:
    wanted = model.inputs[0].shape
    return (
        len(shape) == len(wanted) + 1
        and all(shape)
        and all(axis in (-1, size) for axis, size in zip(wanted, shape[1:], strict=True))
    )


def _cases(model: ExportableModel, time: int | None, real_input: Tensor | None) -> Iterator[_Case]:
    suffix = "" if time is None else f", time {time}"
    yield _Case(where=f"random input{suffix}", inputs=lambda batch: model.example(batch, time))
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

        yield _Case(where=f"real input{suffix}", inputs=recycled)


def _compare(model: ExportableModel, run: Runner, case: _Case, batch_sizes: Sequence[int]) -> float:
    errors = dict.fromkeys((spec.name for spec in model.outputs), 0.0)
    scales = dict(errors)
    for batch in batch_sizes:
        where = f"{case.where}, batch {batch}"
        inputs = case.inputs(batch)
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in model.module(*inputs)]
        with _as_verification_failure(where):
            got = run(inputs)
        if len(got) != len(expected):
            raise _different("number of outputs", where, str(len(expected)), str(len(got)))
        for spec, ours, theirs in zip(model.outputs, expected, got, strict=True):
            if ours.shape != theirs.shape:
                raise _different(
                    f"shape of '{spec.name}'", where, str(list(ours.shape)), str(list(theirs.shape))
                )
            if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
                raise _different(f"'{spec.name}'", where, "finite values", "NaN or infinity")
            difference = np.abs(theirs.astype(np.float64) - ours.astype(np.float64))
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


def _open(model: ExportableModel, artefact: Path, model_format: ModelFormat) -> Runner:
    opener = {ModelFormat.ONNX: _open_onnx, ModelFormat.TORCHSCRIPT: _open_torchscript}[model_format]
    with _as_verification_failure("loading"):
        return opener(model, artefact)


def _open_onnx(model: ExportableModel, artefact: Path) -> Runner:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(artefact), options, providers=["CPUExecutionProvider"])
    for what, specs, nodes in (
        ("inputs", model.inputs, session.get_inputs()),
        ("outputs", model.outputs, session.get_outputs()),
    ):
        wanted, got = [spec.name for spec in specs], [node.name for node in nodes]
        if wanted != got:
            raise _different(f"the names of the {what}", "loading", ", ".join(wanted), ", ".join(got))

    def run(inputs: tuple[Tensor, ...]) -> Sequence[Array]:
        feed: Mapping[str, Any] = {
            spec.name: tensor.numpy() for spec, tensor in zip(model.inputs, inputs, strict=True)
        }
        outputs: Sequence[Array] = session.run(None, feed)
        return outputs

    return run


def _open_torchscript(model: ExportableModel, artefact: Path) -> Runner:
    del model  # TorchScript's inputs and outputs have no names to check.
    with catch_warnings():
        filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning)
        module = torch.jit.load(str(artefact), map_location="cpu")  # type: ignore[no-untyped-call]

    def run(inputs: tuple[Tensor, ...]) -> Sequence[Array]:
        with torch.no_grad():
            return [tensor.numpy() for tensor in module(*inputs)]

    return run


@contextmanager
def _as_verification_failure(where: str) -> Iterator[None]:
    try:
        yield
    except _RUNTIME_ERRORS as error:
        raise VerificationFailed(
            f"The exported graph does not run on {where}: {error!s:.300}",
            remedy="Try the other format; if it fails too, report the model's architecture.",
        ) from error
