"""torch's two containers, read without torch: the zip of `torch.save`, and the legacy stream before 1.6.

A container gives the object that its pickle holds, and the bytes of a storage by key. Nothing is extracted to disk,
compressed members are refused (torch stores them plain), and every size is checked against the file's own.

Source: torch/serialization.py, `_save` and `_legacy_save`.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Protocol

from exporters.checkpoints.allowed import STORAGES
from exporters.checkpoints.pickle_data import interpret
from exporters.checkpoints.values import ITEM_BYTES, Global, StorageRef
from exporters.checkpoints.zip_directory import check_directory
from exporters.errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedCheckpoint, shown

MAX_PICKLE_BYTES = 64 << 20
MAX_ENTRIES = 100_000
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_UTF8_NAME = 0x800
SAVE_AGAIN = "Copy the file again, or save it again with torch.save."


class Container(Protocol):
    """An open checkpoint."""

    root: Any

    def storage(self, ref: StorageRef) -> bytes:
        """The bytes of a storage, `ref.elements` of its dtype, little-endian."""
        ...


def storage_ref(pid: Any) -> StorageRef:
    """Reads torch's persistent id `('storage', type, key, location, elements[, view])`.

    Raises:
        UnsafeCheckpoint: any other persistent id.
    """
    match pid:
        case ("storage", Global() as kind, str() as key, _, int() as elements, *view) if (
            str(kind) in STORAGES and elements >= 0 and view in ([], [None])
        ):
            return StorageRef(key, STORAGES[str(kind)], elements)
        case ("storage", Global() as kind, *_):
            raise UnsupportedCheckpoint(
                f"The checkpoint stores tensors as {kind}, which isn't read here.",
                expected="float64, float32, float16, bfloat16, int, uint8 or bool tensors",
                remedy="Convert them with .float() before saving.",
            )
        case _:
            raise UnsafeCheckpoint("The checkpoint's pickle has a persistent id that isn't a tensor storage.")


def open_zip_safely(stream: BinaryIO, size_bytes: int) -> zipfile.ZipFile:
    """Opens a zip after checking its directory: where it lies, names, duplicates, compression, declared sizes.

    Names are told apart as torch's reader does, which ignores the case of ASCII letters.

    Raises:
        CorruptCheckpoint: not a zip, truncated, read differently by other readers, or built to unfold into more than
            it is.
    """
    check_directory(stream)
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise CorruptCheckpoint(
            "The file starts as a zip archive, but its directory can't be read: it is damaged or truncated.",
            got=str(error),
            remedy=SAVE_AGAIN,
        ) from error
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise _bomb(f"{len(entries):,} entries", f"at most {MAX_ENTRIES:,} entries")
    if sum(entry.file_size for entry in entries if entry.compress_type == zipfile.ZIP_STORED) > size_bytes:
        raise _bomb("entries that overlap", f"entries that fit in its {size_bytes:,} bytes")
    seen: set[bytes] = set()
    for entry in entries:
        name = entry.filename
        if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name or ":" in name:
            raise CorruptCheckpoint(f"The archive has an entry outside itself: {shown(name)}.")
        if name != entry.orig_filename:  # Python cuts a name at a NUL, or takes another from an extra field
            raise CorruptCheckpoint(f"The archive has an entry of two names: {shown(name)}.")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CorruptCheckpoint(
                f"The archive's {shown(name)} is compressed in a way that isn't read here."
            )
        raw = name.encode("utf-8" if entry.flag_bits & _UTF8_NAME else "cp437").lower()
        if raw in seen:
            raise CorruptCheckpoint(
                f"The archive has two entries of the name {shown(name)}, but for its case."
            )
        seen.add(raw)
    return archive


def read_entry(archive: zipfile.ZipFile, name: str, *, limit_bytes: int, compressed: bool = False) -> bytes:
    """Reads one entry whole, at most `limit_bytes` of it, whatever size it declares; its CRC is checked.

    Raises:
        CorruptCheckpoint: missing, too large, compressed (unless `compressed`), or damaged.
    """
    try:
        entry = archive.getinfo(name)
    except KeyError as error:
        raise CorruptCheckpoint(f"The archive has no {shown(name)}.", remedy=SAVE_AGAIN) from error
    if entry.compress_type != zipfile.ZIP_STORED and not compressed:
        raise CorruptCheckpoint(
            f"The archive's {shown(name)} is compressed, which torch.save never does.", remedy=SAVE_AGAIN
        )
    if entry.file_size > limit_bytes:
        raise _bomb(f"{shown(name)} of {entry.file_size:,} bytes", f"at most {limit_bytes:,} bytes")
    try:
        with archive.open(entry) as stream:
            data = stream.read(limit_bytes + 1)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError, OSError) as error:
        raise CorruptCheckpoint(
            f"The archive's {shown(name)} is damaged.", got=str(error), remedy=SAVE_AGAIN
        ) from error
    if len(data) != entry.file_size:
        raise CorruptCheckpoint(
            f"The archive's {shown(name)} isn't as long as it declares.", remedy=SAVE_AGAIN
        )
    return data


def _bomb(got: str, expected: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        "The archive declares more than a checkpoint of its size can hold.",
        expected=expected,
        got=got,
        remedy="Check where the file comes from; it may be a decompression bomb.",
    )


class ZipContainer:
    """`torch.save`'s zip: `<name>/data.pkl` and `<name>/data/<key>`."""

    def __init__(self, archive: zipfile.ZipFile, size_bytes: int) -> None:
        self._archive = archive
        self._size_bytes = size_bytes
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("data.pkl")]
        roots = [root for root in roots if root.count("/") <= 1]
        if len(roots) != 1:
            raise UnsupportedCheckpoint(
                "The zip archive isn't a torch checkpoint.",
                expected="one data.pkl, as torch.save writes it",
                got=f"{len(roots)} of them",
                remedy="Give the .pth file itself.",
            )
        self._root = roots[0]
        if f"{self._root}byteorder" in archive.namelist():
            order = read_entry(archive, f"{self._root}byteorder", limit_bytes=16)
            if order.strip() != b"little":
                raise UnsupportedCheckpoint(
                    "The checkpoint was saved on a big-endian machine.",
                    remedy="Save it again on a little-endian one.",
                )
        pickle = read_entry(archive, f"{self._root}data.pkl", limit_bytes=MAX_PICKLE_BYTES)
        self.root = interpret(io.BytesIO(pickle), storage=storage_ref)

    def storage(self, ref: StorageRef) -> bytes:
        """The bytes of a storage."""
        if "/" in ref.key:
            raise CorruptCheckpoint("A tensor's storage has a key that isn't a plain name.")
        data = read_entry(self._archive, f"{self._root}data/{ref.key}", limit_bytes=self._size_bytes)
        if len(data) != ref.elements * ITEM_BYTES[ref.dtype]:
            raise CorruptCheckpoint(
                f"Storage {ref.key} doesn't have the length that its tensors declare.",
                expected=f"{ref.elements:,} {ref.dtype} values",
                got=f"{len(data):,} bytes",
                remedy=SAVE_AGAIN,
            )
        return data


class LegacyContainer:
    """The stream of pickles that torch wrote before 1.6, and still does on request."""

    def __init__(self, stream: BinaryIO, size_bytes: int) -> None:
        self._stream = stream
        self._size_bytes = size_bytes
        bounded = BoundedStream(stream, MAX_PICKLE_BYTES)
        if interpret(bounded) != LEGACY_MAGIC:
            raise CorruptCheckpoint("The file isn't torch's legacy format.", remedy=SAVE_AGAIN)
        version, system = interpret(bounded), interpret(bounded)
        if version != 1001 or not isinstance(system, Mapping) or system.get("little_endian") is not True:
            raise UnsupportedCheckpoint(
                "The checkpoint is of a legacy version that isn't read here.",
                expected="protocol 1001, little-endian",
                got=f"protocol {version!r}"[:80],
                remedy="Load and save it again with a current torch.",
            )
        self._declared: dict[str, StorageRef] = {}
        self.root = interpret(bounded, storage=self._declare)
        keys = interpret(bounded)
        if not isinstance(keys, list) or not all(type(key) is str and key in self._declared for key in keys):
            raise CorruptCheckpoint("The list of the file's storages is damaged.", remedy=SAVE_AGAIN)
        self._offsets = self._locate(keys)

    def _declare(self, pid: Any) -> StorageRef:
        ref = storage_ref(pid)
        return self._declared.setdefault(ref.key, ref)

    def _locate(self, keys: list[str]) -> dict[str, int]:
        """Walks the storages: a length in elements (int64), then the data."""
        offsets: dict[str, int] = {}
        position = self._stream.tell()
        for key in keys:
            ref = self._declared[key]
            self._stream.seek(position)
            head = self._stream.read(8)
            end = position + 8 + ref.elements * ITEM_BYTES[ref.dtype]
            if len(head) != 8 or struct.unpack("<q", head)[0] != ref.elements or end > self._size_bytes:
                raise CorruptCheckpoint(
                    f"The file ends before, or disagrees about, its storage {key[:40]}.",
                    expected=f"{ref.elements:,} {ref.dtype} values at byte {position:,}",
                    got=f"a file of {self._size_bytes:,} bytes",
                    remedy=SAVE_AGAIN,
                )
            offsets[key] = position + 8
            position = end
        return offsets

    def storage(self, ref: StorageRef) -> bytes:
        """The bytes of a storage."""
        if ref.key not in self._offsets:
            raise CorruptCheckpoint(
                f"The file holds no data for its storage {ref.key[:40]}.", remedy=SAVE_AGAIN
            )
        self._stream.seek(self._offsets[ref.key])
        return self._stream.read(ref.elements * ITEM_BYTES[ref.dtype])


class BoundedStream:
    """Reads at most so many bytes in all: a pickle may claim a string of any length."""

    def __init__(self, stream: BinaryIO, limit_bytes: int) -> None:
        self._stream = stream
        self._left = limit_bytes

    def read(self, size: int, /) -> bytes:
        """Reads at most `size` bytes, or what is left of the limit."""
        data = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def readline(self) -> bytes:
        """Reads to the next line feed, or what is left of the limit."""
        data = self._stream.readline(self._left)
        self._left -= len(data)
        return data
