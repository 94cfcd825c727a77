"""What a file is, by its content: names and suffixes don't decide.

Cheap: reads the first bytes, and a zip's directory. A damaged file is called what it starts as; its reader then says
what is wrong with it.
"""

import os
import stat
import zipfile
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from exporters.checkpoints.zip_directory import check_directory
from exporters.errors import CorruptCheckpoint, FileTooLarge

DEFAULT_MAX_BYTES = 2 << 30


class FileKind(StrEnum):
    """Kinds of model file."""

    TORCH_ZIP = "a torch checkpoint"
    TORCH_LEGACY = "a torch checkpoint in the legacy format"
    TORCHSCRIPT = "a TorchScript archive"
    ONNX = "an ONNX model"
    STABLE_BASELINES3 = "Stable-Baselines3 agents"
    PICKLE = "a bare pickle"
    HDF5 = "an HDF5 file (Keras)"
    SAFETENSORS = "a safetensors file"
    TAR = "a tar archive"
    ZIP = "a zip archive"
    OTHER = "not a known model file"


def open_regular(path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> tuple[BinaryIO, int]:
    """Opens a regular file for reading and checks its size.

    Returns:
        The open file and its size in bytes.

    Raises:
        CorruptCheckpoint: missing, unreadable, empty, or not a regular file.
        FileTooLarge: beyond `max_bytes`.
    """
    try:
        # O_NONBLOCK: a named pipe would otherwise hold the open up for ever
        stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise CorruptCheckpoint(
            f"{path.name} can't be read.",
            got=error.strerror,
            remedy="Check the path and the permissions.",
        ) from error
    status = os.fstat(stream.fileno())
    problem: CorruptCheckpoint | FileTooLarge | None = None
    if not stat.S_ISREG(status.st_mode):
        problem = CorruptCheckpoint(f"{path.name} isn't a regular file.", expected="a file")
    elif status.st_size == 0:
        problem = CorruptCheckpoint(
            f"{path.name} is empty.", expected="a model file", got="0 bytes", remedy="Copy or save it again."
        )
    elif status.st_size > max_bytes:
        problem = FileTooLarge(
            f"{path.name} is larger than the limit on model files.",
            expected=f"at most {max_bytes:,} bytes",
            got=f"{status.st_size:,} bytes",
            remedy="Save only the weights and the configuration, without the optimizer's state, or raise the limit.",
        )
    if problem is not None:
        stream.close()
        raise problem
    return stream, status.st_size


def copy_regular(path: Path, target: Path, *, max_bytes: int) -> int:
    """Copies a regular file; returns its size.

    Raises:
        CorruptCheckpoint, FileTooLarge: as `open_regular`; or it became shorter meanwhile.
        OSError: from writing.
    """
    stream, size = open_regular(path, max_bytes=max_bytes)
    with stream, target.open("wb") as copy:
        left = size
        while left and (chunk := stream.read(min(left, 1 << 20))):
            left -= copy.write(chunk)
    if left:
        raise CorruptCheckpoint(f"{path.name} changed while it was being read.")
    return size


def identify(path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> FileKind:
    """Tells what a file, or a folder of agents, is.

    Raises:
        CorruptCheckpoint: missing, empty, or not a regular file.
        FileTooLarge: beyond `max_bytes`.
    """
    if os.path.isdir(path):  # noqa: PTH112 - unlike Path.is_dir, False for a name that is too long
        agents = (path / "manifest.json").is_file() or any(path.glob("*.zip"))
        return FileKind.STABLE_BASELINES3 if agents else FileKind.OTHER
    stream, _ = open_regular(path, max_bytes=max_bytes)
    with stream:
        return identify_stream(stream)


def identify_stream(stream: BinaryIO) -> FileKind:
    """Tells what an open file of at least one byte is; reads from where the stream stands."""
    head = stream.read(1024)
    if head.startswith(b"PK"):
        return _identify_zip(stream)
    return _identify_head(head)


def _identify_zip(stream: BinaryIO) -> FileKind:
    try:
        check_directory(stream)
        names = zipfile.ZipFile(stream).namelist()
    except (CorruptCheckpoint, zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return FileKind.TORCH_ZIP  # damaged; the reader says how
    tails = {name.partition("/")[2] for name in names} | set(names)
    if "constants.pkl" in tails and any(tail.startswith("code/") for tail in tails):
        return FileKind.TORCHSCRIPT
    if "data.pkl" in tails:
        return FileKind.TORCH_ZIP
    if "policy.pth" in tails or "manifest.json" in tails or any(name.endswith(".zip") for name in names):
        return FileKind.STABLE_BASELINES3
    return FileKind.ZIP


def _identify_head(head: bytes) -> FileKind:
    if head.startswith(b"\x80") and _LEGACY_MAGIC in head[:32]:
        return FileKind.TORCH_LEGACY
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return FileKind.HDF5
    if head[257:262] == b"ustar":
        return FileKind.TAR
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        return FileKind.SAFETENSORS
    # ModelProto: ir_version (field 1, varint), then a string or message field (producer, graph, opset, metadata)
    if len(head) > 4 and head[0] == 0x08 and head[1] < 0x40 and head[2] in _ONNX_FIELDS:
        return FileKind.ONNX
    if head[0] in b"\x80(cl}]i)" or head[:1] == b"\x93":
        return FileKind.PICKLE
    return FileKind.OTHER


_LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # LONG1, 10 bytes
_ONNX_FIELDS = frozenset({0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72})
