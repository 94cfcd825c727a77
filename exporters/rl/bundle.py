"""The files of an ensemble, read by name: out of a folder, an archive of agents, or one agent's own zip.

Says nothing of what the files mean. Nothing is extracted to disk, and all that is read together is bounded.
"""

import hashlib
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

from exporters.checkpoints.archive import open_zip_safely, read_entry
from exporters.checkpoints.identify import open_regular
from exporters.checkpoints.reader import fingerprint, stream_sha256
from exporters.errors import CorruptCheckpoint, FileTooLarge, InvalidConfig, UnsupportedCheckpoint, shown

MANIFEST = "manifest.json"
POLICY = "policy.pth"
MAX_FILE_BYTES = 256 << 20
"""Of one agent's zip, or another file of the ensemble."""
MAX_TOTAL_BYTES = 1 << 30
"""Of all that is read of an ensemble."""
MAX_ENTRIES = 4096


class Bundle(Protocol):
    """An open ensemble. `names`: its files, relative, sorted; `archives`: those that may be agents."""

    file_name: str
    names: tuple[str, ...]

    def read(self, name: str, *, limit_bytes: int = MAX_FILE_BYTES) -> bytes:
        """Reads a file whole.

        Raises:
            CorruptCheckpoint: not there, unreadable, or an archive's entry of another size than declared.
            FileTooLarge: beyond the limits.
            InvalidConfig: the name leads out of the ensemble.
        """
        ...

    @property
    def sha256(self) -> str:
        """Of the archive; of a folder: of the names and contents of what was read, in the names' order."""
        ...

    @property
    def size_bytes(self) -> int:
        """Of the archive, or of what was read of a folder."""
        ...


@contextmanager
def open_bundle(path: Path, *, max_bytes: int) -> Iterator[Bundle]:
    """Opens an ensemble's files.

    Args:
        path: a folder with agents' zips, an archive of such zips, or one agent's zip.
        max_bytes: limit on the archive's size, and on the total of what is read.

    Raises:
        CorruptCheckpoint: not a readable archive, or it changed while it was being read.
        FileTooLarge: beyond `max_bytes`.
        UnsupportedCheckpoint: too many files.
    """
    limit = min(max_bytes, MAX_TOTAL_BYTES)
    if path.is_dir():
        yield _Folder(path, limit)
        return
    stream, size_bytes = open_regular(path, max_bytes=max_bytes)
    with stream:
        before = fingerprint(stream)
        archive = open_zip_safely(stream, size_bytes)
        names = tuple(sorted(entry.filename for entry in archive.infolist() if not entry.is_dir()))
        _check_count(len(names), path.name)
        sha256 = stream_sha256(stream)
        if any(PurePosixPath(name).name == POLICY for name in names):
            yield _Single(path.name, archive, sha256, size_bytes, limit)
        else:
            yield _Archive(path.name, archive, names, sha256, size_bytes, limit)
        if fingerprint(stream) != before:
            raise CorruptCheckpoint(
                f"{path.name} changed while it was being read.", remedy="Export again once it is written."
            )


class _Budget:
    """Counts what is read against the limit of the whole."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = self._left = limit_bytes

    def take(self, name: str, size_bytes: int, limit_bytes: int) -> None:
        if size_bytes > limit_bytes:
            raise FileTooLarge(
                f"{shown(name)} is larger than a file of an ensemble may be.",
                expected=f"at most {limit_bytes:,} bytes",
                got=f"{size_bytes:,} bytes",
                remedy="Save the agent without its replay buffer; check where the file comes from.",
            )
        self._left -= size_bytes
        if self._left < 0:
            raise FileTooLarge(
                "The ensemble's files are larger than the limit.",
                expected=f"at most {self._limit:,} bytes in all",
                remedy="Give fewer or smaller agents, or raise the limit.",
            )


class _Folder:
    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.file_name = path.name
        self._path = path
        self._root = path.resolve()
        self._budget = _Budget(limit_bytes)
        self._read: dict[str, tuple[str, int]] = {}
        names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        _check_count(len(names), path.name)
        self.names = tuple(names)

    def read(self, name: str, *, limit_bytes: int = MAX_FILE_BYTES) -> bytes:
        _check_name(name)
        path = self._path / name
        try:
            inside = path.resolve().is_relative_to(self._root)
        except (OSError, RuntimeError):
            inside = True  # what it is, opening it says
        if not inside:
            raise _outside(name)
        if not os.path.exists(path):  # noqa: PTH110 - unlike Path.exists, False for a name that is too long
            raise _missing("folder", name)
        stream, size_bytes = open_regular(path, max_bytes=MAX_TOTAL_BYTES)
        with stream:
            self._budget.take(name, size_bytes, limit_bytes)
            data = stream.read(size_bytes)
        self._read[name] = hashlib.sha256(data).hexdigest(), len(data)
        return data

    @property
    def sha256(self) -> str:
        lines = "".join(f"{sha256}  {name}\n" for name, (sha256, _) in sorted(self._read.items()))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def size_bytes(self) -> int:
        return sum(size_bytes for _, size_bytes in self._read.values())


class _Archive:
    """An archive of agents. Its names are relative to the manifest's folder, or to the one that all agents lie in."""

    def __init__(
        self,
        file_name: str,
        archive: zipfile.ZipFile,
        entries: tuple[str, ...],
        sha256: str,
        size_bytes: int,
        limit_bytes: int,
    ) -> None:
        self.file_name = file_name
        self.sha256 = sha256
        self.size_bytes = size_bytes
        self._archive = archive
        self._budget = _Budget(limit_bytes)
        self._base = _base(entries)
        self.names = tuple(
            name.removeprefix(self._base)
            for name in entries
            if name.startswith(self._base)
            and not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
        )

    def read(self, name: str, *, limit_bytes: int = MAX_FILE_BYTES) -> bytes:
        _check_name(name)
        return read_bounded(self._archive, self._base + name, self._budget, limit_bytes)


class _Single:
    """One agent's zip: an ensemble of one, whose only file is itself."""

    def __init__(
        self, file_name: str, archive: zipfile.ZipFile, sha256: str, size_bytes: int, limit_bytes: int
    ) -> None:
        self.file_name = file_name
        self.names: tuple[str, ...] = (file_name,)
        self.sha256 = sha256
        self.size_bytes = size_bytes
        self._archive = archive
        self._budget = _Budget(limit_bytes)

    def read(self, name: str, *, limit_bytes: int = MAX_FILE_BYTES) -> bytes:
        if name != self.file_name:
            raise InvalidConfig(
                f"{shown(name)} can't be read beside a single agent's zip.",
                expected=self.file_name,
                got=shown(name),
                remedy=f"Put both into a folder with a {MANIFEST}, and export the folder.",
            )
        self._budget.take(name, self.size_bytes, limit_bytes)
        stream = self._archive.fp
        assert stream is not None  # noqa: S101 - the archive is open
        stream.seek(0)
        return stream.read(self.size_bytes)


def read_bounded(archive: zipfile.ZipFile, name: str, budget: _Budget, limit_bytes: int) -> bytes:
    """Reads an archive's entry, stored or deflated, within the limits; what it declares is checked first."""
    try:
        declared = archive.getinfo(name).file_size
    except KeyError:
        raise _missing("archive", name) from None
    budget.take(name, declared, limit_bytes)
    return read_entry(archive, name, limit_bytes=limit_bytes, compressed=True)


def _base(entries: tuple[str, ...]) -> str:
    manifests = [name for name in entries if PurePosixPath(name).name == MANIFEST]
    wanted = manifests or [name for name in entries if name.endswith(".zip")]
    folders = {name[: name.rfind("/") + 1] for name in wanted if not name.startswith("__MACOSX/")}
    if "" in folders or len(folders) != 1:
        return ""
    return folders.pop()


def _check_count(count: int, name: str) -> None:
    if count > MAX_ENTRIES:
        raise UnsupportedCheckpoint(
            f"{name} holds more files than an ensemble has.",
            expected=f"at most {MAX_ENTRIES:,}",
            got=f"{count:,}",
        )


def _check_name(name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise _outside(name)


def _missing(where: str, name: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        f"The {where} has no {shown(name)}.",
        remedy=f"Correct the name in {MANIFEST}, or put the file into the {where}.",
    )


def _outside(name: str) -> InvalidConfig:
    return InvalidConfig(
        f"{shown(name)} leads out of the ensemble's folder.",
        expected="a name relative to it, also after links are followed",
        got=shown(name),
        remedy="Copy the file into the folder.",
    )
