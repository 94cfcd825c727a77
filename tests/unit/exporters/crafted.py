"""Checkpoints put together byte by byte: hostile pickles in torch's containers."""

import struct
import zipfile
from pathlib import Path

LEGACY_HEAD = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # magic number
    b"\x80\x02M\xe9\x03."  # protocol 1001
    b"\x80\x02}(X\x0d\x00\x00\x00little_endian\x88u."  # system information
)


def zip_checkpoint(path: Path, pickle: bytes, **members: bytes) -> Path:
    """A zip as torch.save writes it, with this data.pkl and these `data/<key>` members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for key, data in members.items():
            archive.writestr(f"archive/data/{key.removeprefix('_')}", data)
    return path


def legacy_checkpoint(path: Path, pickle: bytes) -> Path:
    """torch's legacy stream with this object pickle and no storages."""
    path.write_bytes(LEGACY_HEAD + pickle + b"\x80\x02].")
    return path


def text(value: str) -> bytes:
    """Pushes a string."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(full: str) -> bytes:
    """Pushes a global, `module.name`."""
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(full: str, *arguments: bytes) -> bytes:
    """Calls a global with already pickled arguments."""
    return name(full) + b"(" + b"".join(arguments) + b"tR"


def document(config: bytes, state: bytes = b"}") -> bytes:
    """A checkpoint dict with this config and state."""
    return b"\x80\x02}(" + text("model_state_dict") + state + text("config") + config + b"u."


def storage(key: str, elements: int, kind: str = "torch.FloatStorage") -> bytes:
    """Pushes a storage by persistent id."""
    number = b"\x8a\x08" + struct.pack("<q", elements)
    return b"(" + text("storage") + name(kind) + text(key) + text("cpu") + number + b"tQ"


def tensor(
    key: str, elements: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0
) -> bytes:
    """Pushes a tensor of a storage."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    return call(
        "torch._utils._rebuild_tensor_v2",
        storage(key, elements),
        b"\x8a\x08" + struct.pack("<q", offset),
        numbers(shape),
        numbers(strides),
        b"\x89",
        call("collections.OrderedDict"),
    )
