"""Where a zip's directory lies, before `zipfile` reads it: there is one directory, and it isn't too large.

Readers differ in how they find the directory of an archive that holds two: by the end record's offset (torch), or
just before the end record (Python). They differ in how they find the zip64 record too, and in which end record they
take where a comment holds another. Where everything lies end to end they can't differ.

Source: PKWARE's APPNOTE.TXT, 4.3.12 to 4.3.16 (central directory, its end, and the zip64 form).
"""

import struct
from typing import BinaryIO

from exporters.errors import CorruptCheckpoint

MAX_DIRECTORY_BYTES = 16 << 20
"""Each of its entries costs `zipfile` ten times its bytes in memory."""
_END_BYTES = 22
_LOCATOR_BYTES = 20
_RECORD_BYTES = 56


def check_directory(stream: BinaryIO) -> None:
    """Refuses an archive unless its directory, the zip64 record and locator where it has them, and the end record
    follow each other and end the file.

    Raises:
        CorruptCheckpoint: they don't, or the directory is too large.
    """
    size_bytes = stream.seek(0, 2)
    start = max(0, size_bytes - _END_BYTES - _LOCATOR_BYTES - _RECORD_BYTES)
    stream.seek(start)
    tail = stream.read(size_bytes - start)
    end = len(tail) - _END_BYTES
    if end < 0 or not tail.startswith(b"PK\x05\x06", end) or tail[-2:] != b"\0\0":
        raise _damaged("no end record as its last 22 bytes")
    size, offset = struct.unpack_from("<II", tail, end + 12)
    directory_end = start + end
    if tail.startswith(b"PK\x06\x07", max(0, end - _LOCATOR_BYTES)):
        record = end - _LOCATOR_BYTES - _RECORD_BYTES
        stated = struct.unpack_from("<Q", tail, end - _LOCATOR_BYTES + 8)[0]
        if record < 0 or stated != start + record or not tail.startswith(b"PK\x06\x06", record):
            raise _damaged("a zip64 record that isn't where its locator says")
        size, offset = struct.unpack_from("<QQ", tail, record + 40)
        directory_end = start + record
    if size > MAX_DIRECTORY_BYTES:
        raise CorruptCheckpoint(
            "The archive declares more entries than a checkpoint has.",
            expected=f"a directory of at most {MAX_DIRECTORY_BYTES:,} bytes",
            got=f"{size:,} bytes",
            remedy="Check where the file comes from; it may be a decompression bomb.",
        )
    if offset + size != directory_end:
        raise _damaged(f"a directory that ends at byte {offset + size:,}, not at {directory_end:,}")


def _damaged(got: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        "The file starts as a zip archive, but its directory can't be read: it is damaged or truncated.",
        expected="a directory that ends where the archive's end record begins, and nothing behind that",
        got=got,
        remedy="Copy the file again, or save it again with torch.save.",
    )
