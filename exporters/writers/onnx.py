"""Writes ONNX through torch's TorchScript-based exporter.

Not the dynamo exporter: with torch 2.13 it freezes the time length of a bidirectional LSTM at the example's,
silently. Whether a graph is right is `exporters.verification`'s to say.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import onnx
import torch
from torch.jit._trace import TracerWarning

from exporters.errors import ExportFailed
from exporters.spec import OPSET, ExportableModel

MAX_IR_VERSION = 10
"""The newest IR that ONNX Runtime in NVIDIA's image 25.07 is sure to read."""

# Not 1: a batch of one lets broadcasting hide in the graph what a larger one needs.
_EXAMPLE_BATCH = 2


class OnnxVersions(TypedDict):
    """Versions in the written file."""

    opset: int
    ir_version: int


def write_onnx(model: ExportableModel, path: Path) -> OnnxVersions:
    """Writes `model` to `path` with dynamic batch and time axes.

    Raises:
        ExportFailed: torch cannot express the module in ONNX, or the file does not pass ONNX's checker.
    """
    example = model.example(_EXAMPLE_BATCH, max(model.time_lengths, default=None))
    try:
        with torch.no_grad(), _expected_warnings():
            torch.onnx.export(
                model.module,
                example,
                str(path),
                dynamo=False,
                opset_version=OPSET,
                do_constant_folding=True,
                input_names=[spec.name for spec in model.inputs],
                output_names=[spec.name for spec in model.outputs],
                dynamic_axes={spec.name: _dynamic(spec.shape) for spec in (*model.inputs, *model.outputs)},
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
        raise ExportFailed(f"torch could not write the model as ONNX: {error!s:.300}") from error
    return _check(path)


def _dynamic(shape: tuple[int, ...]) -> dict[int, str]:
    # The same name everywhere: the families have one dynamic axis, time.
    return {0: "batch"} | {axis: "time" for axis, size in enumerate(shape, start=1) if size == -1}


def _check(path: Path) -> OnnxVersions:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportFailed(f"The written ONNX file does not pass ONNX's checker: {error!s:.300}") from error
    written = onnx.load(str(path), load_external_data=False)
    opset = next(entry.version for entry in written.opset_import if entry.domain in ("", "ai.onnx"))
    if written.ir_version > MAX_IR_VERSION:
        raise ExportFailed(
            "The written ONNX file is newer than the servers read.",
            expected=f"IR version up to {MAX_IR_VERSION}",
            got=f"IR version {written.ir_version}",
        )
    return {"opset": opset, "ir_version": written.ir_version}


@contextmanager
def _expected_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for message, category in (
            # We chose this exporter; see the module's docstring.
            ("You are using the legacy TorchScript-based ONNX export", DeprecationWarning),
            ("The feature will be removed", DeprecationWarning),
            # Verification runs other batch sizes than the example's.
            ("Exporting a model to ONNX with a batch_size other than 1", UserWarning),
            # nn.LSTM compares its input's shape with its own sizes.
            ("Converting a tensor to a Python boolean", TracerWarning),
        ):
            warnings.filterwarnings("ignore", message=message, category=category)
        yield
