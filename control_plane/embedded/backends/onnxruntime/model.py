"""Python-based Triton backend `onnxruntime`: serves what NVIDIA's native backend of that name serves.

Triton uses this file for every model whose `config.pbtxt` says `backend: "onnxruntime"`. It reads the same
`<version>/model.onnx` and the same settings as the native backend: `default_model_filename`, the parameters
`intra_op_thread_count`, `inter_op_thread_count`, `execution_mode`, `enable_mem_arena`, `enable_mem_pattern` and
`session.*`, and `optimization.graph.level`.

It runs in Triton's stub process, so it imports the standard library, numpy, Triton's utilities and ONNX Runtime
only. Scheduling, batching limits and shape checks against the configuration stay with Triton.

Source: https://github.com/triton-inference-server/onnxruntime_backend (README, "Model Config Options").
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

# The native backend's values of optimization.graph.level, where 0 (absent) means all optimisations.
GRAPH_LEVELS = {
    "-1": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "1": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "2": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
EXECUTION_MODES = {"0": ort.ExecutionMode.ORT_SEQUENTIAL, "1": ort.ExecutionMode.ORT_PARALLEL}
FLAGS = {"0": False, "false": False, "1": True, "true": True}


class TritonPythonModel:
    """One instance of one ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session.

        Args:
            args: What Triton says of the instance: configuration, folder, version, kind and device.

        Raises:
            pb_utils.TritonModelException: The file is missing, a setting is unknown, the graph does not load, or
                its tensors are not those of the configuration.
        """
        config: dict[str, Any] = json.loads(args["model_config"])
        path = _model_path(args, config, default="model.onnx")
        providers = _providers(args, config)
        try:
            self._session = ort.InferenceSession(str(path), _session_options(config), providers=providers)
        except Exception as error:  # noqa: BLE001  whatever ONNX Runtime raises becomes the load's error
            raise pb_utils.TritonModelException(f"ONNX Runtime can't load {path.name}: {error}") from error
        self._batched: bool = int(config.get("max_batch_size", 0)) > 0
        self._inputs = _declared(config, "input", [node.name for node in self._session.get_inputs()])
        self._outputs = _declared(config, "output", [node.name for node in self._session.get_outputs()])
        self._is_text = {node.name: node.type == "tensor(string)" for node in self._session.get_inputs()}
        self._run_options = ort.RunOptions()
        # Outputs nobody asked for cost nothing: the nodes that only they need are not run.
        self._run_options.only_execute_path_to_fetches = True

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests that Triton's batcher put together.

        Requests with equal shapes and equal wanted outputs run as one batch. If such a batch fails, its members
        run one by one, so that each gets its own answer or its own error.

        Args:
            requests: Inference requests; tensors `[batch, ...]`, or `[...]` where `max_batch_size` is 0.

        Returns:
            One response for each request, in the same order.
        """
        responses: list[Any] = [None] * len(requests)
        groups: dict[Any, list[tuple[int, list[np.ndarray]]]] = {}
        for position, request in enumerate(requests):
            if request.is_cancelled():
                responses[position] = _failure("The caller cancelled the request.", pb_utils.TritonError.CANCELLED)
                continue
            try:
                arrays = [self._read(request, name) for name in self._inputs]
                wanted = request.requested_output_names()
            except Exception as error:  # noqa: BLE001  one unreadable request must not spoil its neighbours
                responses[position] = _failure(str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            # Without a batch axis there is nothing to join on: every request is its own group.
            shapes = tuple(array.shape[1:] for array in arrays) if self._batched else position
            groups.setdefault((shapes, tuple(wanted)), []).append((position, arrays))
        for (_, wanted), members in groups.items():
            self._answer(list(wanted), members, responses)
        return responses

    def _read(self, request: Any, name: str) -> np.ndarray:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            raise ValueError(f"The input {name!r} is missing.")
        array = tensor.as_numpy()
        if self._is_text.get(name):
            return np.array([text.decode() for text in array.ravel()], dtype=np.object_).reshape(array.shape)
        return array

    def _answer(
        self, wanted: list[str], members: list[tuple[int, list[np.ndarray]]], responses: list[Any]
    ) -> None:
        rows = [arrays[0].shape[0] if self._batched and arrays else 1 for _, arrays in members]
        try:
            if len(members) == 1:
                arrays = members[0][1]
            else:
                columns = zip(*(arrays for _, arrays in members), strict=True)
                arrays = [np.concatenate(column) for column in columns]
            results = self._session.run(wanted, dict(zip(self._inputs, arrays, strict=True)), self._run_options)
            if len(members) > 1:
                _check_batch_axis(wanted, results, sum(rows))
        except Exception as error:  # noqa: BLE001  the boundary to Triton: every failure becomes an answer
            if len(members) == 1:
                responses[members[0][0]] = _failure(str(error))
                return
            for member in members:
                self._answer(wanted, [member], responses)
            return
        start = 0
        for (position, _), count in zip(members, rows, strict=True):
            part = results if len(members) == 1 else [result[start : start + count] for result in results]
            start += count
            tensors = [pb_utils.Tensor(name, array) for name, array in zip(wanted, part, strict=True)]
            responses[position] = pb_utils.InferenceResponse(output_tensors=tensors)


def _failure(message: str, code: int | None = None) -> Any:
    error = pb_utils.TritonError(message) if code is None else pb_utils.TritonError(message, code)
    return pb_utils.InferenceResponse(error=error)


def _check_batch_axis(names: list[str], results: list[np.ndarray], rows: int) -> None:
    for name, result in zip(names, results, strict=True):
        if result.ndim == 0 or result.shape[0] != rows:
            raise ValueError(f"The output {name!r} has shape {list(result.shape)}; its first axis must be {rows}.")


def _model_path(args: dict[str, str], config: dict[str, Any], *, default: str) -> Path:
    folder = Path(args["model_repository"]) / args["model_version"]
    path = folder / (config.get("default_model_filename") or default)
    if not path.is_file():
        raise pb_utils.TritonModelException(
            f"The model file {path.name} is not in {folder}; put it there or set default_model_filename."
        )
    return path


def _declared(config: dict[str, Any], side: str, in_graph: list[str]) -> list[str]:
    names = [tensor["name"] for tensor in config.get(side, [])]
    unknown = [name for name in names if name not in in_graph]
    if unknown or (side == "input" and set(names) != set(in_graph)):
        raise pb_utils.TritonModelException(
            f"config.pbtxt declares the {side}s {names}, the graph has {in_graph}; make them agree."
        )
    return names


def _parameter(config: dict[str, Any], key: str) -> str | None:
    entry = config.get("parameters", {}).get(key)
    return None if entry is None else str(entry["string_value"])


def _choice(config: dict[str, Any], key: str, choices: dict[str, Any]) -> Any:
    text = _parameter(config, key)
    if text is None:
        return None
    if text.lower() not in choices:
        raise pb_utils.TritonModelException(f"The parameter {key} is {text!r}; it must be one of {list(choices)}.")
    return choices[text.lower()]


def _count(config: dict[str, Any], key: str, *, default: int) -> int:
    text = _parameter(config, key)
    if text is None:
        return default
    if not text.isdigit():
        raise pb_utils.TritonModelException(f"The parameter {key} is {text!r}; it must be a whole number, 0 or more.")
    return int(text)


def _session_options(config: dict[str, Any]) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # One thread for each instance: instances, not threads, use the cores (the native default, 0, takes them all).
    options.intra_op_num_threads = _count(config, "intra_op_thread_count", default=1)
    options.inter_op_num_threads = _count(config, "inter_op_thread_count", default=1)
    # A spinning pool burns the cores that Triton and the API workers need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    mode = _choice(config, "execution_mode", EXECUTION_MODES)
    if mode is not None:
        options.execution_mode = mode
    level = str(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = GRAPH_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    arena = _choice(config, "enable_mem_arena", FLAGS)
    if arena is not None:
        options.enable_cpu_mem_arena = arena
    pattern = _choice(config, "enable_mem_pattern", FLAGS)
    if pattern is not None:
        options.enable_mem_pattern = pattern
    for key in config.get("parameters", {}):
        if key.startswith("session."):
            options.add_session_config_entry(key, _parameter(config, key))
    return options


def _providers(args: dict[str, str], config: dict[str, Any]) -> list[Any]:
    if args["model_instance_kind"] != "GPU":
        return ["CPUExecutionProvider"]
    available = ort.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        raise pb_utils.TritonModelException(
            f"The instance group asks for a GPU, ONNX Runtime here has {available}; install onnxruntime-gpu with its "
            "CUDA libraries, or export the model for cpu or auto."
        )
    device = {"device_id": args["model_instance_device_id"]}
    accelerators = config.get("optimization", {}).get("execution_accelerators", {}).get("gpu_execution_accelerator", [])
    tensorrt = any(accelerator.get("name") == "tensorrt" for accelerator in accelerators)
    preferred = [("TensorrtExecutionProvider", device)] if tensorrt else []
    return [*preferred, ("CUDAExecutionProvider", device), "CPUExecutionProvider"]
