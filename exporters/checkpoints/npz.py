"""numpy's `.npz`, read array by array: what an array's header says is checked before any of its data is read."""

import math
import zipfile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from exporters.errors import CorruptCheckpoint, shown


def open_array(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any], IO[bytes]]:
    """An array's shape and dtype, and the stream of its data.

    Raises:
        KeyError: the archive has no such entry.
        ValueError, SyntaxError, EOFError, RecursionError: not an array, or its columns come first.
    """
    member = archive.open(name)
    version = np.lib.format.read_magic(member)  # type: ignore[no-untyped-call]
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
        version
    ]
    shape, is_fortran, dtype = header(member)  # type: ignore[no-untyped-call]
    if is_fortran and len(shape) > 1:
        raise ValueError("columns first")
    return shape, dtype, member


def read_array(archive: zipfile.ZipFile, name: str, *, limit_bytes: int) -> NDArray[Any]:
    """Reads an array of numbers.

    Raises:
        CorruptCheckpoint: larger than `limit_bytes`, not of numbers, or shorter than its header says.
        KeyError, ValueError, SyntaxError, EOFError, RecursionError: as `open_array`.
    """
    shape, dtype, member = open_array(archive, name)
    with member:
        needed = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "fiu" or needed > limit_bytes:
            raise CorruptCheckpoint(
                f"The array {shown(name)} isn't one of numbers, or is too large.",
                expected=f"numbers, at most {limit_bytes:,} bytes",
                got=f"{dtype} {list(shape)}"[:100],
            )
        data = member.read(needed)
    if len(data) != needed:
        raise CorruptCheckpoint(f"The array {shown(name)} is shorter than it declares.")
    return np.frombuffer(data, dtype=dtype).reshape(shape)
