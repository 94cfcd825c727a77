"""Opens an artefact on the CPU, with one thread: an export runs beside serving."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.errors import InvalidModel
from exporters.spec import ModelFormat
from exporters.torchscript_archive import screen_loaded

Run = Callable[[Sequence[NDArray[Any]]], list[NDArray[Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An artefact that is ready to run: `run` takes and gives arrays in the graph's order. TorchScript names none."""

    run: Run
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None


def open_artefact(path: Path, model_format: ModelFormat) -> Opened:
    """Opens an artefact.

    Raises:
        InvalidModel: its runtime refuses it.
        UnsafeCheckpoint: TorchScript graphs that touch files; see `exporters.torchscript_archive`.
    """
    return {ModelFormat.ONNX: _open_onnx, ModelFormat.TORCHSCRIPT: _open_torchscript}[model_format](path)


def _open_onnx(path: Path) -> Opened:
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
    names = tuple(entry.name for entry in session.get_inputs())

    def run(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        return [np.asarray(output) for output in session.run(None, dict(zip(names, arrays, strict=True)))]

    return Opened(run=run, inputs=names, outputs=tuple(entry.name for entry in session.get_outputs()))


def _open_torchscript(path: Path) -> Opened:
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
    screen_loaded(module)

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

    return Opened(run=run)
