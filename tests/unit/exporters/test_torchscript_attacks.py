"""TorchScript archives built to get past the screen: each would write a file, were it loaded and run."""

import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from exporters.errors import CorruptCheckpoint, ExportError, UnsafeCheckpoint
from exporters.pipeline import export
from exporters.protocol import ExportRequest
from exporters.runtimes import open_artefact
from exporters.spec import ModelFormat
from exporters.torchscript_archive import screen, screen_loaded
from tests.unit.exporters.ready_made_files import DECLARED, Level, assert_nothing_published, jit, take

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning"),
]

Member = tuple[str, bytes]


class Add(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> list[Member]:
    path = tmp_path_factory.mktemp("script") / "m.pt"
    torch.jit.save(torch.jit.script(Add()), str(path))
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "marker"


def edited(members: list[Member], statement: str, *, rename: Callable[[str], str] = str) -> list[Member]:
    """The code with a statement before its return."""
    line = f"{statement}\n    return torch.add(x, 1)".encode()
    changed = [
        (rename(name), data.replace(b"return torch.add(x, 1)", line))
        if name.endswith(".py")
        else (name, data)
        for name, data in members
    ]
    assert any(line in data for _, data in changed)
    return changed


def write(path: Path, members: list[Member]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def two_directories(path: Path, shown: list[Member], hidden: list[Member]) -> Path:
    """One directory where the end record's offset points (torch's), one just before the end record (Python's)."""
    data = bytearray()

    def local(name: str, content: bytes) -> int:
        offset = len(data)
        head = (b"PK\3\4", 20, 0, 0, 0, 0x21, zlib.crc32(content), len(content), len(content), len(name), 0)
        data.extend(struct.pack("<4sHHHHHIIIHH", *head) + name.encode() + content)
        return offset

    def central(name: str, content: bytes, offset: int) -> bytes:
        head = (b"PK\1\2", 20, 20, 0, 0, 0, 0x21, zlib.crc32(content), len(content), len(content), len(name))
        return struct.pack("<4sHHHHHHIIIHHHHHII", *head, 0, 0, 0, 0, 0, offset) + name.encode()

    local("pad", bytes(5000))
    places = [[local(*member) for member in listing] for listing in (shown, hidden)]
    for_torch = b"".join(central(*member, at) for member, at in zip(hidden, places[1], strict=True))
    moved = len(for_torch)
    for_python = b"".join(central(*member, at - moved) for member, at in zip(shown, places[0], strict=True))
    start, count = len(data), len(shown)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(for_python), start, 0)
    path.write_bytes(bytes(data) + for_torch + for_python + end)
    return path


SAVE = 'torch.save(x, "{marker}")'


def code_in_capitals(path: Path, members: list[Member], marker: Path) -> Path:
    return write(
        path,
        edited(members, SAVE.format(marker=marker), rename=lambda name: name.removesuffix(".py") + ".PY"),
    )


def twin_in_capitals(path: Path, members: list[Member], marker: Path) -> Path:
    hostile = edited(members, SAVE.format(marker=marker))
    return write(
        path, [(name.upper() if name.endswith(".py") else name, data) for name, data in hostile] + members
    )


def comment_in_parentheses(path: Path, members: list[Member], marker: Path) -> Path:
    return write(path, edited(members, f'_0 = (torch. # c\n   save(x, "{marker}"))'))


def joined_text(path: Path, members: list[Member], marker: Path) -> Path:
    return write(path, edited(members, f'_0 = getattr(torch, "sa" "ve")(x, "{marker}")'))


def escape_behind_parentheses(path: Path, members: list[Member], marker: Path) -> Path:
    return write(path, edited(members, f'_0 = getattr((torch), "s\\141ve")(x, "{marker}")'))


def second_directory(path: Path, members: list[Member], marker: Path) -> Path:
    return two_directories(path, members, edited(members, SAVE.format(marker=marker)))


REAL = [
    code_in_capitals, twin_in_capitals, comment_in_parentheses, joined_text, escape_behind_parentheses,
    second_directory,
]  # fmt: skip


@pytest.mark.parametrize("attack", REAL)
def test_attack_that_writes_a_file_in_torch_is_refused_before_it_is_loaded(tmp_path, members, marker, attack):
    path = attack(tmp_path / "m.pt", members, marker)
    torch.jit.load(str(path))(torch.ones(2, 3))
    assert marker.exists()  # the attack is real
    marker.unlink()

    with pytest.raises((UnsafeCheckpoint, CorruptCheckpoint)):
        screen(path, max_bytes=1 << 30)
    with pytest.raises(ExportError):
        take(tmp_path, path, config=DECLARED)

    assert not marker.exists()
    assert_nothing_published(tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "_0 = torch.add # save",
        '_0 = "load"',
        "_0 = ops # c\n    .custom.run(x)",
        "_0 = ops",
        "_0 = ops.custom.run(x)",
        "_0 = ops .aten.add(x, 1)",
        "_0 = ops.debugprims.load_tensor(x)",
        "_0 = torch.from_file('/etc/hostname', False, 3)",
        "_0 = torch.sa\\\n    ve(x, 'm'); load",
        'g = getattr\n    _0 = g(torch, "x")',
        "_0 = ésave",
        "def __setstate__(self, x: Tensor) -> None:",
    ],
)
def test_code_with_a_word_that_could_reach_a_file_is_refused(tmp_path, members, statement):
    path = write(tmp_path / "m.pt", edited(members, statement))

    with pytest.raises(UnsafeCheckpoint, match=r"code/"):
        screen(path, max_bytes=1 << 30)


@pytest.mark.parametrize(
    "statement",
    [
        "_0 = self.loader",
        "saved = 1",
        '_0 = getattr(self, "0")',
        "_0 = ops.prim.dtype(x)",
        "_0 : int = 1  # type: int",
    ],
)
def test_code_with_a_harmless_word_passes(tmp_path, members, statement):
    screen(write(tmp_path / "m.pt", edited(members, statement)), max_bytes=1 << 30)


def test_archive_of_the_oldest_format_is_refused(tmp_path, members):
    root = members[0][0].partition("/")[0]
    path = write(tmp_path / "m.pt", [*members, (f"{root}/Model.JSON", b"{}")])

    with pytest.raises(UnsafeCheckpoint, match="oldest format"):
        screen(path, max_bytes=1 << 30)


@pytest.mark.parametrize("extra", [b"x", b"PK\5\6" + bytes(18), bytes(22)])
def test_archive_with_bytes_behind_its_end_record_is_refused(tmp_path, members, extra):
    path = write(tmp_path / "m.pt", members)
    path.write_bytes(path.read_bytes() + extra)

    with pytest.raises(CorruptCheckpoint):
        screen(path, max_bytes=1 << 30)


def test_archive_with_a_comment_is_refused(tmp_path, members):
    path = write(tmp_path / "m.pt", members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\5\6" + bytes(18)

    with pytest.raises(CorruptCheckpoint):
        screen(path, max_bytes=1 << 30)


def test_archive_whose_zip64_record_is_elsewhere_is_refused(tmp_path, members):
    data = write(tmp_path / "m.pt", members).read_bytes()
    size, start = struct.unpack_from("<II", data, len(data) - 10)
    record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, len(members), len(members), size, start)
    for stated, refused in ((len(data) - 22, False), (0, True)):
        locator = b"PK\6\7" + struct.pack("<IQI", 0, stated, 1)
        path = tmp_path / "zip64.pt"
        path.write_bytes(data[:-22] + record + locator + data[-22:])
        if not refused:
            screen(path, max_bytes=1 << 30)
            continue
        with pytest.raises(CorruptCheckpoint):
            screen(path, max_bytes=1 << 30)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archive_with_an_entry_that_torch_cannot_decompress_is_refused(tmp_path, members, compression):
    path = write(tmp_path / "m.pt", members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("extra/x", b"x", compress_type=compression)

    with pytest.raises(CorruptCheckpoint, match="compressed"):
        screen(path, max_bytes=1 << 30)


def test_pickles_share_one_limit_on_operations(tmp_path, members):
    root = members[0][0].partition("/")[0]
    path = write(tmp_path / "m.pt", [*members, *((f"{root}/{i}.pkl", b"N0" * 300 + b"N.") for i in range(4))])

    screen(path, max_bytes=1 << 30, max_operations=3000)
    with pytest.raises(CorruptCheckpoint, match="too long"):
        screen(path, max_bytes=1 << 30, max_operations=2000)


def test_pickle_of_millions_of_operations_is_refused_in_seconds(tmp_path, members):
    root = members[0][0].partition("/")[0]
    path = write(tmp_path / "m.pt", members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{root}/x.pkl", b"N0" * (10 << 20) + b".", compress_type=zipfile.ZIP_DEFLATED)

    start = time.process_time()
    with pytest.raises(CorruptCheckpoint):
        screen(path, max_bytes=1 << 30, max_operations=10_000)
    assert time.process_time() - start < 5


def test_pickles_share_one_limit_on_bytes(tmp_path, members, monkeypatch):
    monkeypatch.setattr("exporters.torchscript_archive.MAX_PICKLE_BYTES", 100_000)
    root = members[0][0].partition("/")[0]
    text = b"X" + struct.pack("<I", 60_000) + bytes(60_000) + b"."
    path = write(tmp_path / "m.pt", [*members, *((f"{root}/{i}.pkl", text) for i in range(2))])

    with pytest.raises(CorruptCheckpoint, match="declares more"):
        screen(path, max_bytes=1 << 30)


class Saves(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            torch.save(x, "marker")
        return x


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Saves()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Forks(Outer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.jit.wait(torch.jit.fork(self.inner, x))


@pytest.mark.parametrize("module", [Saves, Outer, Forks])
def test_loaded_module_that_saves_is_refused_before_it_runs(tmp_path, monkeypatch, module):
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(module()), "m.pt")

    with pytest.raises(UnsafeCheckpoint, match="operator"):
        open_artefact(Path("m.pt"), ModelFormat.TORCHSCRIPT)
    assert not Path("marker").exists()


def test_loaded_modules_of_torch_layers_pass(tmp_path):
    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
            self.lstm = torch.nn.LSTM(4, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(self.layers(x)[:, None])[0]

    for index, module in enumerate(
        (torch.jit.script(Layers()), torch.jit.freeze(torch.jit.script(Layers().eval())))
    ):
        path = tmp_path / f"{index}.pt"
        torch.jit.save(module, str(path))
        screen(path, max_bytes=1 << 30)
        screen_loaded(torch.jit.load(str(path)))


def test_jit_of_a_traced_module_passes(tmp_path):
    path = jit(tmp_path / "m.pt", Level())

    screen(path, max_bytes=1 << 30)
    screen_loaded(torch.jit.load(str(path)))


def test_archive_swapped_after_the_screen_is_neither_run_nor_published(tmp_path, members, marker):
    path = write(tmp_path / "m.pt", members)
    request = ExportRequest(
        model_type="adder", version="v1", file_path=str(path), repository=str(tmp_path / "repository"),
        config={"inputs": [{"name": "x", "shape": [3]}], "outputs": [{"name": "y", "shape": [3]}]},
    )  # fmt: skip
    original = path.read_bytes()

    def swap(stage: str) -> None:
        if stage == "building":
            comment_in_parentheses(path, members, marker)

    export(request, on_stage=swap)

    assert not marker.exists()
    assert (tmp_path / "repository" / "adder-v1" / "1" / "model.pt").read_bytes() == original
