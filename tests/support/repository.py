"""Small, real model versions for tests: an ONNX graph, its config.pbtxt and its model card.

`write_identity_like_model` writes what an exporter would, in milliseconds and without torch. Its output tells which
version answered, and `work` makes each call cost time, so that requests can be caught in flight.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

FEATURES = 4
_WORK_SIZE = 64


def marker_of(model_type: str, version: str, *, revision: int = 0) -> float:
    """What the model of that version adds to its input: a whole number below 10,000, different for each."""
    digest = hashlib.sha256(f"{model_type}-{version}-{revision}".encode()).digest()
    return float(int.from_bytes(digest[:4], "big") % 9_999 + 1)


def identity_like_onnx(marker: float, *, work: int = 0) -> bytes:
    """The ONNX file of a model `y = x + marker`, FP32 `[batch, 4]` both ways."""
    return bytes(_graph(marker, work).SerializeToString())


def write_identity_like_model(
    repository: Path,
    model_type: str,
    version: str,
    *,
    revision: int = 0,
    work: int = 0,
    max_batch_size: int = 64,
    instance_count: int = 1,
    broken: bool = False,
) -> Path:
    """Publishes a model `y = x + marker_of(type, version)`, FP32 `[batch, 4]` both ways.

    Args:
        repository: The model repository.
        model_type: The type's name.
        version: The version, as given.
        revision: Another revision answers with another marker and has another digest.
        work: Loop turns of a 64x64 product in each call, about 20 µs each on one core.
        max_batch_size: Most rows of a call.
        instance_count: Triton instances.
        broken: The artefact is not an ONNX file, so Triton cannot load it.

    Returns:
        The version's folder.
    """
    name = f"{model_type}-{version}"
    marker = marker_of(model_type, version, revision=revision)
    staging = repository / ".staging" / f"{name}.0.test"
    (staging / "1").mkdir(parents=True, exist_ok=True)
    artefact = b"not a model" if broken else identity_like_onnx(marker, work=work)
    (staging / "1" / "model.onnx").write_bytes(artefact)
    config = model_config_pb2.ModelConfig(name=name, backend="onnxruntime", max_batch_size=max_batch_size)
    config.input.add(name="x", data_type=model_config_pb2.TYPE_FP32, dims=[FEATURES])
    config.output.add(name="y", data_type=model_config_pb2.TYPE_FP32, dims=[FEATURES])
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=instance_count)
    config.dynamic_batching.SetInParent()
    text = text_format.MessageToString(config)
    (staging / "config.pbtxt").write_text(text)
    card = _card(
        model_type, version, artefact, text, max_batch_size=max_batch_size, instance_count=instance_count
    )
    (staging / "model.json").write_text(json.dumps(card))
    folder = repository / name
    if folder.exists():
        old = repository / ".staging" / f"{name}.0.old"
        folder.rename(old)
        staging.rename(folder)
        _remove(old)
    else:
        staging.rename(folder)
    return folder


def _graph(marker: float, work: int) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", FEATURES])]
    constants = [numpy_helper.from_array(np.array([marker], np.float32), "marker")]
    nodes = []
    source = "x"
    if work:
        # x + 0 * sum(loop of products): the same answer, later. A Loop is neither folded nor dropped.
        rng = np.random.default_rng(0)
        matrix = (rng.standard_normal((_WORK_SIZE, _WORK_SIZE)) / 100).astype(np.float32)
        constants += [
            numpy_helper.from_array(matrix, "matrix"),
            numpy_helper.from_array(np.array(work, np.int64), "turns"),
            numpy_helper.from_array(np.array(True), "go_on"),
            numpy_helper.from_array(np.array([0.0], np.float32), "zero"),
        ]
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["condition"], ["condition_out"]),
                helper.make_node("MatMul", ["state", "matrix"], ["state_out"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("turn", TensorProto.INT64, []),
                helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
                helper.make_tensor_value_info("state", TensorProto.FLOAT, [_WORK_SIZE, _WORK_SIZE]),
            ],
            [
                helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
                helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [_WORK_SIZE, _WORK_SIZE]),
            ],
        )
        nodes += [
            helper.make_node("Loop", ["turns", "go_on", "matrix"], ["product"], body=body),
            helper.make_node("ReduceMean", ["product"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("Add", ["x", "nothing"], ["worked"]),
        ]
        source = "worked"
    nodes.append(helper.make_node("Add", [source, "marker"], ["y"]))
    graph = helper.make_graph(nodes, "identity_like", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _card(
    model_type: str, version: str, artefact: bytes, config: str, *, max_batch_size: int, instance_count: int
) -> dict[str, Any]:
    digest = hashlib.sha256(artefact).hexdigest()
    tensor = {"datatype": "FP32", "shape": [FEATURES]}
    return {
        "schema_version": 1,
        "model_type": model_type,
        "version": version,
        "triton_model": f"{model_type}-{version}",
        "description": "adds a number that names its version",
        "format": "onnx",
        "created_at": "2026-01-02T03:04:05Z",
        "source": {"file_name": "model.onnx", "sha256": digest, "size_bytes": len(artefact)},
        "content_digest": digest,
        "inputs": [{"name": "x", "triton_name": "x", **tensor}],
        "outputs": [{"name": "y", "triton_name": "y", **tensor}],
        "max_batch_size": max_batch_size,
        "device": "cpu",
        "instance_count": instance_count,
        "config": {},
        "normalization": None,
        "mc_dropout": None,
        "class_names": None,
        "feature_names": None,
        "metrics": {},
        "calibration": None,
        "checksums": {"config.pbtxt": hashlib.sha256(config.encode()).hexdigest(), "1/model.onnx": digest},
        "size_bytes": len(artefact),
        "verification": {},
        "versions": {},
        "warnings": [],
    }


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    folder.rmdir()
