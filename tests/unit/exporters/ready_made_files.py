"""Ready-made model files, made on the spot, and taken over."""

from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from exporters.card import Card
from exporters.pipeline import ExportResult, export
from exporters.protocol import ExportRequest

FLOAT = TensorProto.FLOAT
SHAPES = {"x": ("batch", 4), "y": ("batch", 2)}


def value(name: str, shape: tuple[object, ...] | None, datatype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, datatype, shape)


def linear(
    path: Path, *, opset: int = 17, ir_version: int = 8, shapes: dict = SHAPES, domain: str = ""
) -> Path:
    """y = x W, float32 [batch, 4] to [batch, 2]."""
    weight = numpy_helper.from_array(np.ones((4, 2), dtype=np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], domain=domain)
    graph = helper.make_graph([node], "g", [value("x", shapes["x"])], [value("y", shapes["y"])], [weight])
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=ir_version), str(path))
    return path


def take(tmp_path: Path, path: Path, **changes: object) -> ExportResult:
    values = {
        "model_type": "volatility",
        "version": "v1",
        "file_path": str(path),
        "repository": str(tmp_path / "repository"),
    }
    return export(ExportRequest(**(values | changes)))


def folder_of(tmp_path: Path, name: str = "volatility-v1") -> Path:
    return tmp_path / "repository" / name


def published_config(tmp_path: Path):
    text = (folder_of(tmp_path) / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def assert_nothing_published(tmp_path: Path) -> None:
    assert not (tmp_path / "repository").exists()


class Hybrid(torch.nn.Module):
    """Gives tensors of a hybrid's shapes: K=3, R=1, T=4, M=2."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        row = x.mean(dim=(1, 2))[:, None]
        return (
            row.expand(-1, 3).softmax(1), row * 1, row[:, None].expand(-1, 4, 1) * 1, row[:, None].expand(-1, 4, 3) * 1,
            row[:, None].expand(-1, 2, 3) * 1, row[:, None].expand(-1, 2, 1) * 1, row.expand(-1, 2) * 1,
            x.mean(dim=1).softmax(1),
        )  # fmt: skip


OUTPUTS = [
    "classification_probs", "regression_pred", "mc_regression", "mc_probs", "member_probs", "member_regression",
    "ensemble_weights", "attention_weights",
]  # fmt: skip


def hybrid_onnx(path: Path, names: list[str] = OUTPUTS) -> Path:
    torch.onnx.export(
        Hybrid(), (torch.ones(2, 5, 7),), str(path), dynamo=False, opset_version=17, input_names=["x"],
        output_names=names,
        dynamic_axes={"x": {0: "b", 2: "t"}, names[-1]: {0: "b", 1: "t"}} | {name: {0: "b"} for name in names[:-1]},
    )  # fmt: skip
    return path


def jit(path: Path, module: torch.nn.Module | None = None, *, shape: tuple[int, ...] = (2, 5, 7)) -> Path:
    torch.jit.save(torch.jit.trace(module or Hybrid(), torch.ones(*shape)), str(path))
    return path


def shapes_of(card: Card) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in card.outputs}


HYBRID_SHAPES = dict(zip(OUTPUTS, [(3,), (1,), (4, 1), (4, 3), (2, 3), (2, 1), (2,), (-1,)], strict=True))


DECLARED = {
    "inputs": [{"name": "window", "shape": [5, -1], "datatype": "FP32"}],
    "outputs": [{"name": "level", "shape": [2]}],
}


class Level(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=2)[:, :2]
