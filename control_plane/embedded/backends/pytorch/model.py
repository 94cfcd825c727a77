"""Python-based Triton backend `pytorch`: serves what NVIDIA's native backend of that name serves.

Triton uses this file for every model whose `config.pbtxt` says `backend: "pytorch"`. It reads the same TorchScript
`<version>/model.pt`, the same tensor names (`<anything>__<index>`, or the names of `forward`'s arguments) and the
parameters `INTRA_OP_THREAD_COUNT`, `INTER_OP_THREAD_COUNT`, `DISABLE_OPTIMIZED_EXECUTION` and `ENABLE_JIT_PROFILING`.
Requests and responses are batched_model.py's work.

Source: https://github.com/triton-inference-server/pytorch_backend (README, "Parameters" and "Naming convention").
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from batched_model import Arrays, BatchedModel

FLAGS = {"0": False, "false": False, "1": True, "true": True}
_INDEXED = re.compile(r"__(\d+)$")


class TritonPythonModel(BatchedModel):
    """One TorchScript module."""

    default_file = "model.pt"

    def open(self, path: Path, *, gpu: int | None) -> None:
        """Loads the module."""
        # Instances, not threads, use the cores.
        torch.set_num_threads(self.count("INTRA_OP_THREAD_COUNT", default=1) or 1)
        torch.set_num_interop_threads(self.count("INTER_OP_THREAD_COUNT", default=1) or 1)
        # The profiling executor compiles anew during the first calls with each shape: they would be slow ones.
        profiling = bool(self.choice("ENABLE_JIT_PROFILING", FLAGS))
        torch._C._jit_set_profiling_mode(profiling)
        torch._C._jit_set_profiling_executor(profiling)
        self._optimized = not self.choice("DISABLE_OPTIMIZED_EXECUTION", FLAGS)
        if gpu is not None and not torch.cuda.is_available():
            raise ValueError(
                "the instance group asks for a GPU, and this PyTorch sees none; install a CUDA build, or export the "
                "model for cpu or auto"
            )
        self._device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        self._module = torch.jit.load(str(path), map_location=self._device).eval()
        arguments = [argument.name for argument in self._module.forward.schema.arguments[1:]]
        self.inputs = _in_order(self.names("input"), arguments, side="input")
        self._positions = {
            name: place for place, name in enumerate(_in_order(self.names("output"), [], side="output"))
        }

    def run(self, arrays: Arrays, wanted: Sequence[str]) -> Arrays:
        """Runs the module once; it computes all its outputs, whatever is wanted."""
        tensors = [torch.from_numpy(array).to(self._device) for array in arrays]
        with torch.inference_mode(), torch.jit.optimized_execution(self._optimized):
            result = self._module(*tensors)
        outputs = [result] if isinstance(result, torch.Tensor) else list(result)
        if len(outputs) < len(self._positions):
            raise ValueError(
                f"the module returns {len(outputs)} tensors, config.pbtxt declares {len(self._positions)}"
            )
        return [np.ascontiguousarray(outputs[self._positions[name]].cpu().numpy()) for name in wanted]


def _in_order(names: list[str], arguments: list[str], *, side: str) -> list[str]:
    """The declared names in the order of the module's tensors.

    Raises:
        ValueError: they follow neither convention.
    """
    if arguments and set(names) <= set(arguments):
        return sorted(names, key=arguments.index)
    indices = [_INDEXED.search(name) for name in names]
    if all(indices):
        places = [int(match.group(1)) for match in indices if match]
        if sorted(places) == list(range(len(names))):
            return [name for _, name in sorted(zip(places, names, strict=True))]
    raise ValueError(
        f"the {side}s {names} must be named <anything>__<index>, with the indices 0 to {len(names) - 1}"
        + (f", or like forward's arguments {arguments}" if arguments else "")
    )
