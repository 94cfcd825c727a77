"""Ready-made TorchScript archives: named tensors, and nothing that touches files."""

import zipfile
from pathlib import Path

import pytest
import torch

from exporters.errors import (
    CorruptCheckpoint,
    InvalidConfig,
    InvalidModel,
    UnsafeCheckpoint,
)
from exporters.repository_check import check_version
from exporters.spec import ModelFormat
from tests.unit.exporters.ready_made_files import (
    DECLARED,
    HYBRID_SHAPES,
    Level,
    assert_nothing_published,
    folder_of,
    jit,
    published_config,
    shapes_of,
    take,
)

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
]


def test_torchscript_of_a_known_type_needs_only_its_channels(tmp_path):
    path = jit(tmp_path / "model.pt")

    card = take(tmp_path, path, model_type="cnn_lstm_hybrid", config={"input_dim": 5}).card

    assert shapes_of(card) == HYBRID_SHAPES
    assert [tensor.triton_name for tensor in card.inputs] == ["x__0"]
    assert card.format is ModelFormat.TORCHSCRIPT
    assert check_version(folder_of(tmp_path, "cnn_lstm_hybrid-v1")).problems == ()


def test_torchscript_of_a_new_type_takes_its_tensors_from_the_configuration(tmp_path):
    card = take(tmp_path, jit(tmp_path / "m.pt", Level()), config=DECLARED).card

    assert [tensor.triton_name for tensor in (*card.inputs, *card.outputs)] == ["window__0", "level__0"]
    assert card.inputs[0].shape == (5, -1)


def test_torchscript_of_a_new_type_takes_its_tensors_from_a_config_pbtxt(tmp_path):
    (tmp_path / "config.pbtxt").write_text("""
        platform: "pytorch_libtorch"
        input { name: "window__0" data_type: TYPE_FP32 dims: [5, -1] }
        output { name: "level__0" data_type: TYPE_FP32 dims: [2] }
    """)

    card = take(tmp_path, jit(tmp_path / "m.pt", Level())).card

    assert [tensor.name for tensor in (*card.inputs, *card.outputs)] == ["window", "level"]
    assert (published_config(tmp_path).backend, published_config(tmp_path).platform) == ("pytorch", "")


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"inputs": DECLARED["inputs"]},
        DECLARED | {"inputs": []},
        DECLARED | {"inputs": "x"},
        DECLARED | {"inputs": [{"name": "x"}]},
        DECLARED | {"inputs": [{"name": "", "shape": [5]}]},
        DECLARED | {"inputs": [{"name": "x", "shape": [0]}]},
        DECLARED | {"inputs": [{"name": "x", "shape": [5], "kind": 1}]},
        DECLARED | {"outputs": DECLARED["outputs"] * 2},
    ],
)
def test_torchscript_without_a_valid_declaration_is_an_invalid_configuration(tmp_path, config):
    with pytest.raises(InvalidConfig) as raised:
        take(tmp_path, jit(tmp_path / "m.pt", Level()), config=config)

    assert "shape" in raised.value.expected
    assert_nothing_published(tmp_path)


@pytest.mark.parametrize(
    "outputs",
    [
        [{"name": "level", "shape": [3]}],
        [{"name": "level", "shape": [2, 1]}],
        [*DECLARED["outputs"], {"name": "b", "shape": [2]}],
        [{"name": "level", "shape": [2], "datatype": "FP16"}],
    ],
)
def test_torchscript_that_gives_other_tensors_than_declared_is_refused(tmp_path, outputs):
    with pytest.raises(InvalidModel):
        take(tmp_path, jit(tmp_path / "m.pt", Level()), config=DECLARED | {"outputs": outputs})


def rewrite(path: Path, suffix: str, edit) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in members.items():
            archive.writestr(entry, edit(data) if entry.endswith(suffix) else data)


FILE_ACCESS = {
    "from_file": "    q = torch.from_file('/etc/hostname', False, 3)\n",
    "save": "    q = torch.save(x, '{marker}')\n",
    "aliased": "    t = torch\n    q = t . save(x, '{marker}')\n",
    "ops": "    q = ops.aten.save(x, '{marker}')\n",
    "getattr": "    q = getattr(torch, 'save')(x, '{marker}')\n",
    "escaped": "    q = getattr(torch, 's\\x61ve')(x, '{marker}')\n",
    "custom": "    q = ops.custom.run(x)\n",
}


@pytest.mark.parametrize("case", FILE_ACCESS)
def test_torchscript_that_could_touch_files_is_refused_before_it_is_loaded(tmp_path, case):
    marker = tmp_path / "marker"
    path = jit(tmp_path / "m.pt", Level())
    line = FILE_ACCESS[case].format(marker=marker).encode()
    rewrite(path, ".py", lambda code: code.replace(b"-> Tensor:\n", b"-> Tensor:\n" + line, 1))
    with zipfile.ZipFile(path) as archive:
        assert any(line in archive.read(entry) for entry in archive.namelist())

    with pytest.raises(UnsafeCheckpoint) as raised:
        take(tmp_path, path, config=DECLARED)

    assert "code/" in raised.value.detail
    assert not marker.exists()
    assert_nothing_published(tmp_path)


class Saves(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "marker")
        return x


def test_torchscript_scripted_with_a_save_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(Saves()), str(path))

    with pytest.raises(UnsafeCheckpoint):
        take(tmp_path, path, config=DECLARED)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("member", ["data.pkl", "constants.pkl"])
def test_torchscript_whose_pickle_names_a_foreign_global_is_refused(tmp_path, member):
    marker = tmp_path / "marker"
    path = jit(tmp_path / "m.pt", Level())
    attack = (
        b"cos\nsystem\n(X"
        + len(str(marker) + "touch ").to_bytes(4, "little")
        + f"touch {marker}".encode()
        + b"tR."
    )
    rewrite(path, member, lambda _: attack)

    with pytest.raises(UnsafeCheckpoint, match=r"os\.system"):
        take(tmp_path, path, config=DECLARED)
    assert not marker.exists()


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_torchscript_that_is_truncated_is_refused(tmp_path, kept):
    path = jit(tmp_path / "m.pt", Level())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])

    with pytest.raises((CorruptCheckpoint, InvalidModel)):
        take(tmp_path, path, config=DECLARED)


def test_torchscript_whose_code_is_damaged_is_refused(tmp_path):
    path = jit(tmp_path / "m.pt", Level())
    rewrite(path, ".py", lambda code: code.replace(b"torch.mean", b"torch.nothing_like_it"))

    with pytest.raises(InvalidModel, match="can't load"):
        take(tmp_path, path, config=DECLARED)
    assert_nothing_published(tmp_path)
