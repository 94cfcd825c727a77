"""Python-based Triton backend `onnxruntime`: serves what NVIDIA's native backend of that name serves.

Triton uses this file for every model whose `config.pbtxt` says `backend: "onnxruntime"`. It reads the same
`<version>/model.onnx` and the same settings as the native backend: `default_model_filename`, the parameters
`intra_op_thread_count`, `inter_op_thread_count`, `execution_mode`, `enable_mem_arena`, `enable_mem_pattern` and
`session.*`, and `optimization.graph.level`. Requests and responses are batched_model.py's work.

ONNX Runtime computes the whole graph whatever outputs are asked for (its `only_execute_path_to_fetches` does nothing
in inference builds, measured with 1.31), so what is not asked for is only not copied.

Source: https://github.com/triton-inference-server/onnxruntime_backend (README, "Model Config Options").
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from batched_model import Arrays, BatchedModel

# The native backend's values of optimization.graph.level; absent means all optimisations.
GRAPH_LEVELS = {
    "-1": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "1": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "2": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
EXECUTION_MODES = {"0": ort.ExecutionMode.ORT_SEQUENTIAL, "1": ort.ExecutionMode.ORT_PARALLEL}
FLAGS = {"0": False, "false": False, "1": True, "true": True}


class TritonPythonModel(BatchedModel):
    """One ONNX Runtime session."""

    default_file = "model.onnx"

    def open(self, path: Path, *, gpu: int | None) -> None:
        """Opens the session; the configuration's tensors must be the graph's."""
        wanted = self._providers(gpu)
        self._session = ort.InferenceSession(str(path), self._session_options(), providers=wanted)
        # ONNX Runtime falls back to the CPU in silence, and lists CUDA as available wherever its wheel has it.
        missing = {name for name, _ in wanted[:-1]} - set(self._session.get_providers())
        if missing:
            raise ValueError(
                f"the instance group asks for a GPU, but ONNX Runtime could not use {sorted(missing)} here; install "
                "their libraries, or export the model for cpu or auto"
            )
        self.inputs = self.names("input")
        known = [node.name for node in self._session.get_inputs()]
        if set(self.inputs) != set(known):
            raise ValueError(f"config.pbtxt declares the inputs {self.inputs}, the graph has {known}")
        known = [node.name for node in self._session.get_outputs()]
        if not set(self.names("output")) <= set(known):
            raise ValueError(
                f"config.pbtxt declares the outputs {self.names('output')}, the graph has {known}"
            )
        self._text_inputs = {
            node.name for node in self._session.get_inputs() if node.type == "tensor(string)"
        }

    def run(self, arrays: Arrays, wanted: Sequence[str]) -> Arrays:
        """Runs the graph once."""
        feed = dict(zip(self.inputs, arrays, strict=True))
        for name in self._text_inputs:
            feed[name] = np.vectorize(bytes.decode, otypes=[np.object_])(feed[name])
        return self._session.run(wanted, feed)

    def _session_options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Instances, not threads, use the cores: the native default, 0, takes them all for each instance.
        options.intra_op_num_threads = self.count("intra_op_thread_count", default=1)
        options.inter_op_num_threads = self.count("inter_op_thread_count", default=1)
        # A spinning pool burns the cores that Triton and the API workers need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        level = str(self.config.get("optimization", {}).get("graph", {}).get("level", 0))
        options.graph_optimization_level = GRAPH_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
        for attribute, key, choices in (
            ("execution_mode", "execution_mode", EXECUTION_MODES),
            ("enable_cpu_mem_arena", "enable_mem_arena", FLAGS),
            ("enable_mem_pattern", "enable_mem_pattern", FLAGS),
        ):
            value = self.choice(key, choices)
            if value is not None:
                setattr(options, attribute, value)
        for key in self.config.get("parameters", {}):
            if key.startswith("session."):
                options.add_session_config_entry(key, self.parameter(key))
        return options

    def _providers(self, gpu: int | None) -> list[Any]:
        if gpu is None:
            return ["CPUExecutionProvider"]
        device = {"device_id": str(gpu)}
        optimization = self.config.get("optimization", {})
        accelerators = optimization.get("execution_accelerators", {}).get("gpu_execution_accelerator", [])
        tensorrt = any(accelerator.get("name") == "tensorrt" for accelerator in accelerators)
        preferred = [("TensorrtExecutionProvider", device)] if tensorrt else []
        return [*preferred, ("CUDAExecutionProvider", device), "CPUExecutionProvider"]
