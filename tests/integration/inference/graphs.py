"""A graph that chokes on some values: what one bad request does to those merged with it."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from tests.unit.inference.cards import card, tensor

TABLE = np.array([[10.0], [11.0], [12.0]], dtype=np.float32)


def write_lookup_model(repository: Path, model_type: str, version: str) -> str:
    """Publishes `y = TABLE[x]`, INT64 [batch] to FP32 [batch, 1]: an index outside the table fails its whole call.

    Returns:
        Triton's name of the model.
    """
    name = f"{model_type}-{version}"
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["x", "last"], ["flat"]),
            helper.make_node("Gather", ["table", "flat"], ["y"]),
        ],
        "lookup",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(TABLE, "table"), numpy_helper.from_array(np.array([1]), "last")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    artefact = model.SerializeToString()
    config = model_config_pb2.ModelConfig(name=name, backend="onnxruntime", max_batch_size=64)
    config.input.add(name="x", data_type=model_config_pb2.TYPE_INT64, dims=[1])
    config.output.add(name="y", data_type=model_config_pb2.TYPE_FP32, dims=[1])
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
    config.dynamic_batching.SetInParent()
    described = card(
        model_type,
        version,
        inputs=(tensor("x", (1,), "INT64"),),
        outputs=(tensor("y", (1,)),),
        checksums={"1/model.onnx": hashlib.sha256(artefact).hexdigest()},
        size_bytes=len(artefact),
    )
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(artefact)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    (folder / "model.json").write_bytes(msgspec.json.encode(described))
    return name
