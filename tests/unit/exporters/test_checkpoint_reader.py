"""Checkpoints as training code saves them, read back; and files that aren't any."""

import argparse
import enum
import io
import os
import struct
import tarfile
import types
import zipfile
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from exporters.checkpoints.identify import FileKind, identify
from exporters.checkpoints.reader import open_checkpoint
from exporters.errors import CorruptCheckpoint, FileTooLarge, UnsupportedCheckpoint
from tests.support.checkpoints import SMALL, random_state, save_checkpoint
from tests.unit.exporters.crafted import document, tensor, text, zip_checkpoint


class FusionMode(enum.Enum):
    CROSS = "cross"


@dataclass
class TrainerConfig:
    rate: float = 0.5
    sizes: list[int] = field(default_factory=lambda: [3, 5])
    mode: FusionMode = FusionMode.CROSS
    folder: Path = Path("/data/runs")
    nothing: None = None
    score: object = field(default_factory=lambda: np.float64(0.25))
    count: object = field(default_factory=lambda: np.int64(7))
    scale: object = field(default_factory=lambda: np.array([1.0, 2.0], dtype=np.float32))
    offset: object = field(default_factory=lambda: torch.tensor([3.0, 4.0]))
    device: object = torch.device("cpu")
    dtype: object = torch.float32
    shape: object = torch.Size([2, 3])
    nested: object = field(default_factory=lambda: argparse.Namespace(depth=2))


PLAIN = {
    "rate": 0.5, "sizes": [3, 5], "mode": "cross", "folder": "/data/runs", "nothing": None, "score": 0.25, "count": 7,
    "scale": [1.0, 2.0], "offset": [3.0, 4.0], "device": "cpu", "dtype": "float32", "shape": [2, 3],
    "nested": {"depth": 2},
}  # fmt: skip


@dataclass(slots=True)
class SlotsConfig:
    rate: float = 0.5


@dataclass(slots=True, frozen=True)
class FrozenSlotsConfig:
    rate: float = 0.5


FORMATS = {
    "zip": {},
    "zip_protocol_4": {"pickle_protocol": 4},
    "zip_protocol_5": {"pickle_protocol": 5},
    "legacy": {"_use_new_zipfile_serialization": False},
    "legacy_protocol_4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_open_of_a_pickled_configuration_object_gives_its_plain_attributes(tmp_path, options):
    path = tmp_path / "model.pth"
    torch.save({"model_state_dict": {"w": torch.ones(2)}, "config": TrainerConfig()}, path, **options)

    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config == PLAIN


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool]
)
def test_arrays_equal_what_torch_saved(tmp_path, options, dtype):
    path = tmp_path / "model.pth"
    base = (torch.arange(24) - 5).reshape(4, 6).to(dtype)
    state = {
        "whole": base,
        "slice": base[1:3, ::2],
        "turned": base.T,
        "scalar": base[0, 0],
        "empty": base[:0],
    }
    torch.save({"state_dict": state, "config": {}}, path, **options)

    with open_checkpoint(path) as checkpoint:
        arrays = checkpoint.arrays()

    assert arrays.keys() == state.keys()
    for key, expected in state.items():
        assert arrays[key].dtype == expected.numpy().dtype
        np.testing.assert_array_equal(arrays[key], expected.numpy())
        assert arrays[key].flags["C_CONTIGUOUS"]


def test_arrays_of_bfloat16_are_widened_exactly(tmp_path):
    path = tmp_path / "model.pth"
    values = torch.randn(50).bfloat16()
    torch.save({"state_dict": {"w": values}, "config": {}}, path)

    with open_checkpoint(path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.arrays()["w"], values.float().numpy())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("state_key", ["model_state_dict", "state_dict"])
def test_open_of_a_hybrid_gives_configuration_and_weights(tmp_path, legacy, pickled, state_key):
    state = random_state()
    path = save_checkpoint(
        tmp_path / "model.pth", state, legacy=legacy, pickled_config=pickled, state_key=state_key
    )

    with open_checkpoint(path) as checkpoint:
        arrays = checkpoint.arrays()
        assert SMALL.items() <= checkpoint.config.items()

    assert arrays.keys() == state.keys()
    for key, expected in state.items():
        np.testing.assert_array_equal(arrays[key], expected.numpy())


def test_open_with_an_optimizer_beside_the_model_ignores_it(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    history = defaultdict(list, {"loss": [1.0, float("nan")]})
    path = tmp_path / "model.pth"
    torch.save(
        {
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "config": types.SimpleNamespace(a=1),
            "metrics": history | {"accuracy": np.float32(0.5)},
            "history": OrderedDict(history),
        },
        path,
    )

    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config == {"a": 1}
        assert checkpoint.metrics == {"loss": [1.0, None], "accuracy": 0.5}
        assert set(checkpoint.arrays()) == {"weight", "bias"}


def test_open_of_a_bare_state_dict_has_no_configuration(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)

    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config is None
        assert set(checkpoint.arrays()) == {"weight", "bias"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_open_of_a_wrapped_model_strips_the_wrappers_prefix(tmp_path, prefix):
    path = tmp_path / "model.pth"
    torch.save(
        {"state_dict": {f"{prefix}a.w": torch.ones(1), f"{prefix}b.w": torch.ones(1)}, "config": {}}, path
    )

    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.tensors) == {"a.w", "b.w"}


def test_open_of_parameters_reads_them_as_tensors(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {"w": torch.nn.Parameter(torch.ones(2))}, "config": {}}, path)

    with open_checkpoint(path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.arrays()["w"], [1, 1])


def test_open_of_a_slots_dataclass_gives_its_fields(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {"w": torch.ones(1)}, "config": SlotsConfig()}, path)

    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config == {"rate": 0.5}


def test_open_of_a_frozen_slots_dataclass_says_that_its_field_names_are_missing(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {"w": torch.ones(1)}, "config": FrozenSlotsConfig()}, path)

    with pytest.raises(UnsupportedCheckpoint) as raised, open_checkpoint(path):
        pass

    assert "field names" in raised.value.got
    assert "asdict" in raised.value.remedy


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_arrays_with_a_value_that_is_not_finite_names_the_tensor(tmp_path, value):
    path = tmp_path / "model.pth"
    torch.save(
        {"state_dict": {"ok": torch.ones(2), "head.bias": torch.tensor([1.0, value])}, "config": {}}, path
    )

    with open_checkpoint(path) as checkpoint, pytest.raises(UnsupportedCheckpoint, match=r"head\.bias"):
        checkpoint.arrays()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9, 0.99, 0.999])
def test_open_of_a_truncated_file_calls_it_corrupt(tmp_path, legacy, kept):
    path = save_checkpoint(tmp_path / "model.pth", random_state(), legacy=legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])

    with pytest.raises(CorruptCheckpoint) as raised, open_checkpoint(path) as checkpoint:
        checkpoint.arrays()

    assert raised.value.remedy


def test_arrays_with_a_flipped_bit_calls_it_corrupt(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {"w": torch.arange(1000.0)}, "config": {}}, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(1000.0).numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(data)

    with open_checkpoint(path) as checkpoint, pytest.raises(CorruptCheckpoint):
        checkpoint.arrays()


ROOTS = {
    "tensor": (torch.ones(2), "dict"),
    "list": ([1, 2], "dict"),
    "empty": ({}, "dict"),
    "no_state": ({"epoch": 3, "config": {}}, "no state dict"),
    "mixed": ({"w": torch.ones(1), "epoch": 3}, "no state dict"),
    "state_of_numbers": ({"state_dict": {"w": 1.0}, "config": {}}, "isn't a tensor"),
    "state_empty": ({"state_dict": {}, "config": {}}, "isn't a state dict"),
    "state_none": ({"state_dict": None, "config": {}}, "isn't a state dict"),
    "config_text": ({"state_dict": {"w": torch.ones(1)}, "config": "x"}, "config"),
}


@pytest.mark.parametrize("case", ROOTS)
def test_open_of_a_file_without_a_model_says_what_it_lacks(tmp_path, case):
    root, message = ROOTS[case]
    path = tmp_path / "model.pth"
    torch.save(root, path)

    with pytest.raises(UnsupportedCheckpoint, match=message) as raised, open_checkpoint(path):
        pass

    assert "torch.save" in raised.value.remedy


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO(b""))


def _zip_of(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for entry in names:
            archive.writestr(entry, "{}")


OTHER_FILES = {
    "text": (lambda path: path.write_text("hello, this is no model"), FileKind.OTHER, CorruptCheckpoint),
    "png": (
        lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50)),
        FileKind.OTHER,
        CorruptCheckpoint,
    ),
    "zeros": (lambda path: path.write_bytes(bytes(100)), FileKind.OTHER, CorruptCheckpoint),
    "one_byte": (lambda path: path.write_bytes(b"P"), FileKind.OTHER, CorruptCheckpoint),
    "pickle_head": (lambda path: path.write_bytes(b"\x80\x02garbage"), FileKind.PICKLE, CorruptCheckpoint),
    "plain_pickle": (lambda path: path.write_bytes(b"\x80\x02}."), FileKind.PICKLE, UnsupportedCheckpoint),
    "hdf5": (
        lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)),
        FileKind.HDF5,
        UnsupportedCheckpoint,
    ),
    "tar": (_tar, FileKind.TAR, UnsupportedCheckpoint),
    "zip_head": (
        lambda path: path.write_bytes(b"PK\x03\x04" + bytes(60)),
        FileKind.TORCH_ZIP,
        CorruptCheckpoint,
    ),
    "office": (lambda path: _zip_of(path, "word/document.xml"), FileKind.ZIP, UnsupportedCheckpoint),
    "agents": (
        lambda path: _zip_of(path, "data", "policy.pth"),
        FileKind.STABLE_BASELINES3,
        UnsupportedCheckpoint,
    ),
    "safetensors": (
        lambda path: path.write_bytes((2).to_bytes(8, "little") + b"{}"),
        FileKind.SAFETENSORS,
        UnsupportedCheckpoint,
    ),
}


@pytest.mark.parametrize("case", OTHER_FILES)
def test_open_of_another_kind_of_file_is_refused_whatever_its_name(tmp_path, case):
    make, kind, error = OTHER_FILES[case]
    path = tmp_path / "model.pth"
    make(path)

    assert identify(path) is kind
    with pytest.raises(error), open_checkpoint(path):
        pass


@pytest.mark.parametrize("case", ["missing", "empty", "folder", "pipe", "unreadable_name"])
def test_open_of_a_path_without_a_file_is_refused_at_once(tmp_path, case):
    path = tmp_path / "model.pth"
    if case == "empty":
        path.touch()
    elif case == "folder":
        path.mkdir()
    elif case == "pipe":
        os.mkfifo(path)
    elif case == "unreadable_name":
        path = tmp_path / ("x" * 300)

    with pytest.raises(CorruptCheckpoint), open_checkpoint(path):
        pass


def test_open_of_a_file_beyond_the_limit_is_refused_before_reading(tmp_path):
    path = tmp_path / "model.pth"
    with path.open("wb") as stream:
        stream.truncate(3 << 30)  # sparse

    with pytest.raises(FileTooLarge) as raised, open_checkpoint(path):
        pass

    assert "3,221,225,472" in raised.value.got


def test_open_of_a_file_that_changes_meanwhile_is_refused(tmp_path):
    path = save_checkpoint(tmp_path / "model.pth", random_state())

    with pytest.raises(CorruptCheckpoint, match="changed"), open_checkpoint(path), path.open("ab") as stream:
        stream.write(b"x")


def _archive(tmp_path: Path, **options: object) -> Path:
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {"w": torch.ones(4)}, "config": {}}, path)
    with zipfile.ZipFile(path, "a") as archive:
        for entry, data in options.items():
            archive.writestr(entry.replace("DOTS", "..").replace("SLASH", "/"), data)
    return path


@pytest.mark.parametrize(
    "entry", ["DOTSSLASHescape", "SLASHetcSLASHx", "modelSLASHDOTSSLASHx", "C:x", "a\\b"]
)
def test_open_with_an_entry_outside_the_archive_calls_it_corrupt(tmp_path, entry):
    path = _archive(tmp_path, **{entry: b"x"})

    with pytest.raises(CorruptCheckpoint, match="outside"), open_checkpoint(path):
        pass


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_open_with_two_entries_of_one_name_calls_it_corrupt(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {"w": torch.ones(4)}, "config": {}}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")

    with pytest.raises(CorruptCheckpoint, match="two entries"), open_checkpoint(path):
        pass


def test_open_of_a_compressed_archive_calls_it_corrupt(tmp_path):
    source = tmp_path / "source.pth"
    torch.save({"state_dict": {"w": torch.zeros(1_000_000)}, "config": {}}, source)
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))

    with pytest.raises(CorruptCheckpoint, match="compressed"), open_checkpoint(path) as checkpoint:
        checkpoint.arrays()


def test_open_of_entries_that_overlap_calls_it_corrupt(tmp_path):
    # a quoted-overlap bomb: many directory entries for the one stored member
    path = zip_checkpoint(tmp_path / "model.pth", document(b"}"), _0=bytes(100_000))
    with zipfile.ZipFile(path, "a") as archive:
        shared = archive.getinfo("archive/data/0")
        for index in range(1, 50):
            twin = zipfile.ZipInfo(f"archive/data/{index}")
            twin.header_offset, twin.file_size, twin.compress_size = shared.header_offset, 100_000, 100_000
            twin.CRC = shared.CRC
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True

    with pytest.raises(CorruptCheckpoint, match="declares more"), open_checkpoint(path):
        pass


def test_open_with_a_declared_size_beyond_the_file_calls_it_corrupt(tmp_path):
    path = zip_checkpoint(tmp_path / "model.pth", document(b"}"), _0=b"abcdefgh")
    data = path.read_bytes()
    where = data.rindex(b"archive/data/0") - 46  # its entry in the central directory
    forged = data[: where + 20] + b"\xff\xff\xff\x7f" * 2 + data[where + 28 :]
    path.write_bytes(forged)

    with pytest.raises(CorruptCheckpoint), open_checkpoint(path):
        pass


@pytest.mark.parametrize("zip64", [False, True])
def test_open_of_a_directory_of_millions_of_entries_refuses_it_before_reading_it(tmp_path, zip64):
    path = tmp_path / "model.pth"
    size = 500_000_000
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF if zip64 else size, 64, 0)
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 10**7, 10**7, size, 64)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, 64 + size, 1)
    with path.open("wb") as stream:
        stream.write(b"PK\x03\x04".ljust(64, b"\x00"))
        stream.seek(64 + size)  # sparse
        stream.write((record + locator if zip64 else b"") + end)

    with pytest.raises(CorruptCheckpoint, match="more entries") as raised, open_checkpoint(path):
        pass

    assert raised.value.got == "500,000,000 bytes"


def _state(pickled: bytes) -> bytes:
    return document(b"}", b"}" + text("w") + pickled + b"s")


def test_arrays_of_a_storage_shorter_than_declared_calls_it_corrupt(tmp_path):
    path = zip_checkpoint(tmp_path / "model.pth", _state(tensor("0", 1 << 40, (2,), (1,))), _0=bytes(8))

    with open_checkpoint(path) as checkpoint, pytest.raises(CorruptCheckpoint):
        checkpoint.arrays()


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((1 << 40,), (0,), 0),
        ((5,), (1,), 0),
        ((2,), (4,), 0),
        ((2,), (1,), 3),
        ((2, 2), (2, 1), 1),
        ((1 << 62,), (4,), 0),
    ],
)
def test_open_with_a_tensor_beyond_its_storage_refuses_it(tmp_path, shape, strides, offset):
    path = zip_checkpoint(
        tmp_path / "model.pth", _state(tensor("0", 4, shape, strides, offset)), _0=bytes(16)
    )

    with pytest.raises(UnsupportedCheckpoint), open_checkpoint(path):
        pass


def test_arrays_of_many_views_of_one_storage_are_bounded(tmp_path):
    views = (
        b"}(" + b"".join(text(f"w{index}") + tensor("0", 1000, (1000,), (1,)) for index in range(100)) + b"u"
    )
    path = zip_checkpoint(tmp_path / "model.pth", document(b"}", views), _0=bytes(4000))

    with (
        open_checkpoint(path, max_bytes=200_000) as checkpoint,
        pytest.raises(CorruptCheckpoint, match="views of the same data"),
    ):
        checkpoint.arrays()


def test_arrays_of_a_storage_key_with_a_path_calls_it_corrupt(tmp_path):
    path = zip_checkpoint(tmp_path / "model.pth", _state(tensor("../data.pkl", 2, (2,), (1,))))

    with open_checkpoint(path) as checkpoint, pytest.raises(CorruptCheckpoint):
        checkpoint.arrays()
