"""The size of a zip's directory, before `zipfile` reads it: each of its entries costs ten times its bytes in memory.

Source: PKWARE's APPNOTE.TXT, 4.3.14 to 4.3.16 (end of central directory, and its zip64 form).
"""

import struct
from typing import BinaryIO

from exporters.errors import CorruptCheckpoint

MAX_DIRECTORY_BYTES = 16 << 20
_END_BYTES = 22
_LOCATOR_BYTES = 20
_RECORD_BYTES = 56
_MAX_COMMENT_BYTES = 0xFFFF
_IN_ZIP64 = 0xFFFFFFFF


def check_directory(stream: BinaryIO) -> None:
    """Refuses an archive whose directory is larger than any checkpoint's.

    An archive without a directory passes: `zipfile` then says what is wrong with it.

    Raises:
        CorruptCheckpoint: the directory is too large.
    """
    size_bytes = stream.seek(0, 2)
    start = max(0, size_bytes - _END_BYTES - _MAX_COMMENT_BYTES - _LOCATOR_BYTES)
    stream.seek(start)
    tail = stream.read(size_bytes - start)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + _END_BYTES:
        return
    sizes = [struct.unpack_from("<I", tail, end + 12)[0]]
    locator = start + end - _LOCATOR_BYTES
    if tail[max(0, end - _LOCATOR_BYTES) :].startswith(b"PK\x06\x07"):
        # readers differ in where they look for the zip64 record: by the locator's offset, or just before it
        stated = struct.unpack_from("<Q", tail, end - _LOCATOR_BYTES + 8)[0]
        zip64 = [_zip64_size(stream, offset) for offset in (stated, locator - _RECORD_BYTES)]
        sizes = [size for size in sizes if size != _IN_ZIP64] + [size for size in zip64 if size is not None]
    largest = max(sizes, default=0)
    if largest > MAX_DIRECTORY_BYTES:
        raise CorruptCheckpoint(
            "The archive declares more entries than a checkpoint has.",
            expected=f"a directory of at most {MAX_DIRECTORY_BYTES:,} bytes",
            got=f"{largest:,} bytes",
            remedy="Check where the file comes from; it may be a decompression bomb.",
        )


def _zip64_size(stream: BinaryIO, offset: int) -> int | None:
    if not 0 <= offset < 1 << 62:
        return None
    stream.seek(offset)
    record = stream.read(_RECORD_BYTES)
    if len(record) < _RECORD_BYTES or not record.startswith(b"PK\x06\x06"):
        return None
    return int(struct.unpack_from("<Q", record, 40)[0])
