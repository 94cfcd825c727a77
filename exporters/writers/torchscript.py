"""Writes TorchScript by tracing and freezing.

Tracing keeps sizes symbolic as long as the module takes them from its tensors; `exporters.verification`
proves it on other batch sizes and time lengths. Not `optimize_for_inference`: it rewrites the graph for the
exporting machine's CPU, while the file may be served on a GPU.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import torch
from torch.jit._trace import TracerWarning

from exporters.errors import ExportFailed
from exporters.spec import ExportableModel

_EXAMPLE_BATCH = 2


class TorchScriptVersions(TypedDict):
    """TorchScript files carry no opset or IR; both null, as the card wants them."""

    opset: None
    ir_version: None


def write_torchscript(model: ExportableModel, path: Path) -> TorchScriptVersions:
    """Writes `model` to `path`; its inputs and outputs are positional, in the order of the specs.

    Raises:
        ExportFailed: torch cannot trace the module.
    """
    example = model.example(_EXAMPLE_BATCH, max(model.time_lengths, default=None))
    try:
        with torch.no_grad(), _expected_warnings():
            # The tracer's own check runs the example only; verification does more.
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                model.module.eval(), example, check_trace=False
            )
            frozen = torch.jit.freeze(traced)
            torch.jit.save(frozen, str(path))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExportFailed(f"torch could not write the model as TorchScript: {error!s:.300}") from error
    return {"opset": None, "ir_version": None}


@contextmanager
def _expected_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for message, category in (
            # TorchScript is what Triton's PyTorch backend reads, deprecated or not.
            (r"`torch\.jit\.\w+` is deprecated", DeprecationWarning),
            # nn.LSTM compares its input's shape with its own sizes.
            ("Converting a tensor to a Python boolean", TracerWarning),
        ):
            warnings.filterwarnings("ignore", message=message, category=category)
        yield
