"""Both writers: parity with torch across configurations, dynamic axes, and what the servers can read."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from exporters.errors import ExportFailed
from exporters.hybrid.build import build_hybrid
from exporters.spec import ExportableModel, ModelFormat, Normalization
from exporters.verification import verify
from exporters.writers.onnx import write_onnx
from exporters.writers.torchscript import write_torchscript
from tests.support.checkpoints import SMALL, random_state

WRITERS: Mapping[ModelFormat, Callable[[ExportableModel, Path], Mapping[str, Any]]] = {
    ModelFormat.ONNX: write_onnx,
    ModelFormat.TORCHSCRIPT: write_torchscript,
}
both_formats = pytest.mark.parametrize("model_format", list(ModelFormat))


def small_model(**changes: Any) -> ExportableModel:
    config = {**SMALL, **changes}
    return build_hybrid(random_state(config), {}, config)


@both_formats
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lstm_bidirectional": False},
        {"lstm_num_layers": 1, "num_ensemble_models": 1, "mc_dropout_samples": 1},
        {"cnn_filter_sizes": [2, 5], "cnn_attention_heads": 4},
        {"sequence_length": 1},
        {"use_monte_carlo_dropout": False, "num_classes": 5, "regression_targets": 3},
    ],
    ids=str,
)
def test_written_graph_agrees_with_torch(
    tmp_path: Path, model_format: ModelFormat, changes: dict[str, Any]
) -> None:
    model = small_model(**changes)
    path = tmp_path / "model"
    WRITERS[model_format](model, path)
    verification = verify(model, path, model_format, max_batch_size=40, real_input=None)
    assert verification.max_relative_error < 1e-4
    assert verification.batch_sizes == (1, 2, 33, 40)


@both_formats
def test_written_default_configuration_agrees_with_torch(tmp_path: Path, model_format: ModelFormat) -> None:
    normalization = Normalization(mean=(3.0,) * 50, scale=(0.5,) * 50)
    model = build_hybrid(random_state({}), {}, None, normalization=normalization)
    WRITERS[model_format](model, tmp_path / "model")
    assert verify(model, tmp_path / "model", model_format, max_batch_size=4).time_lengths == (1, 30, 60)


def test_onnx_reads_any_time_length_and_batch(tmp_path: Path) -> None:
    model = small_model()
    path = tmp_path / "model.onnx"
    write_onnx(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch, time in ((1, 1), (3, 5), (7, 12), (2, 31)):
        outputs = session.run(None, {"x": model.example(batch, time)[0].numpy()})
        assert outputs[7].shape == (batch, time)
        assert {output.shape[0] for output in outputs} == {batch}


def test_torchscript_reads_any_time_length_and_batch(tmp_path: Path) -> None:
    model = small_model()
    path = tmp_path / "model.pt"
    write_torchscript(model, path)
    with pytest.warns(DeprecationWarning, match=r"torch\.jit\.load"):
        module = torch.jit.load(str(path))
    for batch, time in ((1, 1), (3, 5), (7, 12), (2, 31)):
        outputs = module(*model.example(batch, time))
        assert outputs[7].shape == (batch, time)
        assert {output.shape[0] for output in outputs} == {batch}


def test_torchscript_names_no_device(tmp_path: Path) -> None:
    # A device in the graph would pin it to the exporting machine's.
    path = tmp_path / "model.pt"
    write_torchscript(small_model(), path)
    with pytest.warns(DeprecationWarning, match=r"torch\.jit\.load"):
        module = torch.jit.load(str(path))
    assert "Device = prim::Constant" not in str(module.inlined_graph)
    assert "def forward" in module.code


def test_onnx_is_of_an_opset_and_ir_version_that_servers_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    versions = write_onnx(small_model(), path)
    written = onnx.load(str(path))
    assert versions == {"opset": 17, "ir_version": written.ir_version}
    assert written.ir_version <= 10
    assert {entry.domain for entry in written.opset_import} == {""}
    random_operators = {"RandomNormal", "RandomUniform", "Bernoulli", "Dropout", "Multinomial"}
    assert not random_operators & {node.op_type for node in written.graph.node}


def test_onnx_axes_are_named_batch_and_time(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(small_model(), path)
    graph = onnx.load(str(path)).graph
    (x,) = graph.input
    axes = x.type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["batch", 12, "time"]
    assert [output.type.tensor_type.shape.dim[0].dim_param for output in graph.output] == ["batch"] * 8


def test_torchscript_has_no_versions(tmp_path: Path) -> None:
    assert write_torchscript(small_model(), tmp_path / "m.pt") == {"opset": None, "ir_version": None}


@both_formats
def test_writing_twice_gives_the_same_outputs(tmp_path: Path, model_format: ModelFormat) -> None:
    for name in ("first", "second"):
        WRITERS[model_format](small_model(), tmp_path / name)
    if model_format is ModelFormat.ONNX:
        assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    model = small_model()
    for name in ("first", "second"):
        verify(model, tmp_path / name, model_format, max_batch_size=2)


class _Unwritable(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(f"no such operator for {type(x).__name__}")


@both_formats
def test_module_that_cannot_be_written_is_an_export_failure(
    tmp_path: Path, model_format: ModelFormat
) -> None:
    model = replace(copy.copy(small_model()), module=_Unwritable())
    with pytest.raises(ExportFailed, match="no such operator"):
        WRITERS[model_format](model, tmp_path / "model")
