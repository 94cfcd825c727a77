"""Verification passes what is right and refuses what is wrong, by name and place."""

import io
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from exporters.errors import VerificationFailed
from exporters.hybrid.build import build_hybrid
from exporters.spec import ExportableModel, ModelFormat, TensorSpec
from exporters.verification import MAX_REAL_INPUT_BYTES, find_real_input, verify
from exporters.writers.onnx import write_onnx
from exporters.writers.torchscript import write_torchscript
from tests.support.checkpoints import SMALL, random_state

WRITERS: dict[ModelFormat, Callable[[ExportableModel, Path], Any]] = {
    ModelFormat.ONNX: write_onnx,
    ModelFormat.TORCHSCRIPT: write_torchscript,
}
both_formats = pytest.mark.parametrize("model_format", list(ModelFormat))


class Scaled(nn.Module):
    """Two outputs of one input [batch, 3, time]: a scaled mean over time, and the input's last step."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean(dim=2) * self.factor, x[:, :, -1]


class FrozenTime(Scaled):
    """Divides by the example's time length, as an exporter that freezes it would."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sum(dim=2) / 8 * self.factor, x[:, :, -1]


class NotFinite(Scaled):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean(dim=2) * self.factor, x[:, :, -1] / 0.0


class BatchLeak(Scaled):
    """Right for a batch of one only."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean(dim=2) * self.factor, x[:, :, -1] + x[:1, :, -1] - x[-1:, :, -1]


class OneOutput(Scaled):
    def forward(self, x: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (x.mean(dim=2) * self.factor,)


def scaled_model(module: nn.Module) -> ExportableModel:
    def example(batch: int, time: int | None) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 3, time or 8, generator=torch.Generator().manual_seed(0)),)

    return ExportableModel(
        module=module.eval(),
        inputs=(TensorSpec(name="x", shape=(3, -1)),),
        outputs=(TensorSpec(name="mean", shape=(3,)), TensorSpec(name="last", shape=(3,))),
        example=example,
        config={},
        time_lengths=(1, 4, 8),
    )


@both_formats
def test_right_graph_passes_and_reports_what_was_run(tmp_path: Path, model_format: ModelFormat) -> None:
    model = scaled_model(Scaled(2.0))
    WRITERS[model_format](model, tmp_path / "model")
    result = verify(
        model, tmp_path / "model", model_format, max_batch_size=64, real_input=torch.ones(5, 3, 8)
    )
    assert result.max_relative_error < 1e-6
    assert result.batch_sizes == (1, 2, 33, 64)
    assert result.time_lengths == (1, 4, 8)


@pytest.mark.parametrize(
    ("max_batch_size", "batches"),
    [(1, (1,)), (2, (1, 2)), (8, (1, 2, 8)), (33, (1, 2, 33)), (40, (1, 2, 33, 40))],
)
def test_batches_stay_within_the_servers_largest(
    tmp_path: Path, max_batch_size: int, batches: tuple[int, ...]
) -> None:
    model = scaled_model(Scaled(2.0))
    write_onnx(model, tmp_path / "model")
    assert (
        verify(model, tmp_path / "model", ModelFormat.ONNX, max_batch_size=max_batch_size).batch_sizes
        == batches
    )


@both_formats
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (Scaled(2.001), "'mean'"),
        (FrozenTime(2.0), "time 1"),
        (BatchLeak(2.0), "'last'"),
        (NotFinite(2.0), "'last'"),
    ],
    ids=["value", "frozen-time", "batch-leak", "not-finite"],
)
def test_wrong_graph_is_refused_by_place(
    tmp_path: Path, model_format: ModelFormat, wrong: nn.Module, named: str
) -> None:
    WRITERS[model_format](scaled_model(wrong), tmp_path / "model")
    with pytest.raises(VerificationFailed, match=named):
        verify(scaled_model(Scaled(2.0)), tmp_path / "model", model_format, max_batch_size=4)


def test_smallest_difference_above_the_tolerance_is_refused(tmp_path: Path) -> None:
    write_onnx(scaled_model(Scaled(1.00005)), tmp_path / "near")
    write_onnx(scaled_model(Scaled(1.0002)), tmp_path / "far")
    model = scaled_model(Scaled(1.0))
    near = verify(model, tmp_path / "near", ModelFormat.ONNX, max_batch_size=2)
    assert 4e-5 < near.max_relative_error < 1e-4
    with pytest.raises(VerificationFailed, match="relative error"):
        verify(model, tmp_path / "far", ModelFormat.ONNX, max_batch_size=2)


def test_torchscript_with_another_number_of_outputs_is_refused(tmp_path: Path) -> None:
    write_torchscript(scaled_model(OneOutput(2.0)), tmp_path / "model")
    with pytest.raises(VerificationFailed, match="number of outputs"):
        verify(scaled_model(Scaled(2.0)), tmp_path / "model", ModelFormat.TORCHSCRIPT, max_batch_size=2)


def test_onnx_with_other_names_is_refused(tmp_path: Path) -> None:
    model = scaled_model(Scaled(2.0))
    swapped = replace(model, outputs=model.outputs[::-1])
    write_onnx(swapped, tmp_path / "model")
    with pytest.raises(VerificationFailed, match="names of the outputs"):
        verify(model, tmp_path / "model", ModelFormat.ONNX, max_batch_size=2)


def test_onnx_with_a_fixed_time_axis_is_refused(tmp_path: Path) -> None:
    model = scaled_model(Scaled(2.0))
    write_onnx(model, tmp_path / "model")
    graph = onnx.load(str(tmp_path / "model"))
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 8
    onnx.save(graph, str(tmp_path / "model"))
    with pytest.raises(VerificationFailed, match="does not run on random input, time 1"):
        verify(model, tmp_path / "model", ModelFormat.ONNX, max_batch_size=2)


@both_formats
def test_file_that_is_no_graph_is_refused(tmp_path: Path, model_format: ModelFormat) -> None:
    (tmp_path / "model").write_bytes(b"nothing of the kind")
    with pytest.raises(VerificationFailed, match="loading"):
        verify(scaled_model(Scaled(2.0)), tmp_path / "model", model_format, max_batch_size=2)


@both_formats
@pytest.mark.parametrize(
    "name",
    [
        "network.feature_fusion.fusion_layers.4.bias",
        "network.lstm_processor.lstm_layers.1.bias_hh_l0_reverse",
        "heads.mask_regression_second",
        "ensemble.weights",
    ],
)
def test_hybrid_graph_with_one_changed_tensor_is_refused(
    tmp_path: Path, model_format: ModelFormat, name: str
) -> None:
    changed = build_hybrid(random_state(), {}, SMALL)
    tensor = changed.module.get_parameter(name) if "network" in name else changed.module.get_buffer(name)
    tensor[..., 0] += 0.05
    WRITERS[model_format](changed, tmp_path / "model")
    with pytest.raises(VerificationFailed):
        verify(build_hybrid(random_state(), {}, SMALL), tmp_path / "model", model_format, max_batch_size=2)


def test_real_input_is_used(tmp_path: Path) -> None:
    class WrongWhenLarge(Scaled):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.mean(dim=2) * self.factor, x[:, :, -1].clamp(max=100.0)

    write_onnx(scaled_model(WrongWhenLarge(2.0)), tmp_path / "model")
    model = scaled_model(Scaled(2.0))
    verify(model, tmp_path / "model", ModelFormat.ONNX, max_batch_size=2)
    with pytest.raises(VerificationFailed, match="real input"):
        verify(
            model,
            tmp_path / "model",
            ModelFormat.ONNX,
            max_batch_size=2,
            real_input=torch.full((4, 3, 8), 1e3),
        )


@pytest.mark.parametrize("shape", [(4, 2, 8), (4, 3), (0, 3, 8)])
def test_real_input_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = scaled_model(Scaled(2.0))
    write_onnx(model, tmp_path / "model")
    with pytest.raises(VerificationFailed, match="does not fit"):
        verify(model, tmp_path / "model", ModelFormat.ONNX, max_batch_size=2, real_input=torch.zeros(shape))


def test_find_real_input_takes_the_first_archive_that_fits(tmp_path: Path) -> None:
    model = replace(scaled_model(Scaled(2.0)), feature_names=("a", "b", "c"))
    x = np.arange(48, dtype=np.float32).reshape(2, 3, 8)
    assert find_real_input(tmp_path, model) is None
    (tmp_path / "a_windows.npz").write_bytes(b"not an archive")
    np.savez(tmp_path / "b_windows.npz", y=x)
    np.savez(tmp_path / "c_windows.npz", x=x[:, :2])
    np.savez(tmp_path / "d_windows.npz", x=x.astype(np.float64))
    np.savez(tmp_path / "e_windows.npz", x=x, feature_names=np.array(["a", "b", "other"]))
    np.savez(tmp_path / "f_windows.npz", x=np.full_like(x, np.nan))
    assert find_real_input(tmp_path, model) is None
    np.savez(tmp_path / "g_windows.npz", x=x, feature_names=np.array(["a", "b", "c"]))
    found = find_real_input(tmp_path, model)
    assert found is not None
    assert torch.equal(found, torch.from_numpy(x))


def npz(path: Path, shape: tuple[int, ...], data_bytes: int, *, descr: str = "<f4") -> None:
    """An archive whose `x` has this header, and so many zeros as its data, compressed."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        member.write(header.getvalue())
        for _ in range(data_bytes >> 20):
            member.write(bytes(1 << 20))


def corrupted(path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez_compressed(path, x=rng.standard_normal((200, 3, 8)).astype(np.float32))
    data = bytearray(path.read_bytes())
    data[300:340] = b"\xff" * 40
    path.write_bytes(data)


def sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(b"PK\3\4")
        stream.truncate(MAX_REAL_INPUT_BYTES + 1)


NO_WINDOWS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "larger_than_the_limit": sparse,
    "damaged_data": corrupted,
    "bomb_of_another_shape": lambda path: npz(path, (1 << 40,), 200 << 20),
    "bomb_of_one_long_window": lambda path: npz(path, (1, 3, 1 << 30), 200 << 20),
    "fewer_values_than_declared": lambda path: npz(path, (2, 3, 1 << 20), 1 << 20),
    "another_type": lambda path: npz(path, (2, 3, 8), 1 << 20, descr="<f8"),
    "objects": lambda path: npz(path, (2, 3, 8), 1 << 20, descr="|O"),
    "nested_header": lambda path: npz(path, (2, 3, 8), 0, descr="(" * 4000),
}


@pytest.mark.parametrize("case", NO_WINDOWS)
def test_find_real_input_passes_over_what_holds_no_windows(tmp_path: Path, case: str) -> None:
    NO_WINDOWS[case](tmp_path / "a_windows.npz")
    tracemalloc.start()
    try:
        assert find_real_input(tmp_path, scaled_model(Scaled(2.0))) is None
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_find_real_input_reads_at_most_256_windows(tmp_path: Path) -> None:
    npz(tmp_path / "a_windows.npz", (2 << 20, 3, 8), 192 << 20)
    tracemalloc.start()
    try:
        found = find_real_input(tmp_path, scaled_model(Scaled(2.0)))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert found is not None
    assert found.shape == (256, 3, 8)


def test_windows_that_overflow_the_module_itself_are_dropped(tmp_path: Path) -> None:
    model = scaled_model(Scaled(2.0))
    write_onnx(model, tmp_path / "model")
    huge = torch.full((2, 3, 8), 3e38)
    assert not torch.isfinite(model.module(huge)[0]).all()
    assert verify(model, tmp_path / "model", ModelFormat.ONNX, max_batch_size=2, real_input=huge)


def test_largest_batch_that_is_run_has_256_rows(tmp_path: Path) -> None:
    model = scaled_model(Scaled(2.0))
    write_onnx(model, tmp_path / "model")
    result = verify(model, tmp_path / "model", ModelFormat.ONNX, max_batch_size=1 << 20)
    assert result.batch_sizes == (1, 2, 33, 256)
