"""`.npy` bodies: one array, without pickle. The header is checked against the body before anything is made of it.

Source: NEP 1 and numpy.lib.format (versions 1.0, 2.0 and 3.0).
"""

import ast
import math
import re
from functools import lru_cache

import numpy as np

from control_plane.errors import FieldError, InvalidInput, MalformedRequest
from control_plane.inference.tensors import MAX_DIMENSIONS, Array

NPY = "application/x-npy"
_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER_BYTES = 10_000
_DTYPE = re.compile(r"[<>|=](?:f[248]|[iu][1248]|b1)")
_REMEDY = "Write the body with numpy.save(file, array, allow_pickle=False)."
_PARSE_FAULTS = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)


def read_npy(body: bytes) -> Array:
    """The array of a `.npy` file.

    Returns:
        A read-only view of the body where its order and byte order allow, else a copy; its elements are unchecked.

    Raises:
        MalformedRequest: no `.npy` file, or its length isn't what its header says.
        InvalidInput: a dtype other than float16 to float64, integers and booleans; empty, 0-D or over 8-D.
    """
    major = body[6] if len(body) > 6 else 0
    if body[:6] != _MAGIC or major not in (1, 2, 3):
        raise _malformed("no magic of version 1.0 to 3.0 at its start", f"{body[:8]!r}")
    begin = 10 if major == 1 else 12
    length = int.from_bytes(body[8:begin], "little")
    if length > _LONGEST_HEADER_BYTES or len(body) < begin + length:
        raise _malformed("an unusable header", f"a header of {length:,} bytes in a body of {len(body):,}")
    dtype, shape, is_fortran = _read_header(body[begin : begin + length], major)
    expected = math.prod(shape) * dtype.itemsize
    found = len(body) - begin - length
    if found != expected:
        raise _malformed(
            f"not as long as its header says: {expected:,} bytes of data", f"{found:,} bytes of data"
        )
    array: Array = np.frombuffer(body, dtype=dtype, offset=begin + length)
    array = array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


@lru_cache(maxsize=256)
def _read_header(header: bytes, major: int) -> tuple["np.dtype[np.generic]", tuple[int, ...], bool]:
    """dtype, shape, and whether the first index changes fastest."""
    try:
        fields = ast.literal_eval(header.decode("utf-8" if major == 3 else "latin-1").strip())
        descr, is_fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
        is_sound = (
            len(fields) == 3
            and isinstance(is_fortran, bool)
            and isinstance(shape, tuple)
            and all(type(axis) is int and 0 <= axis < 2**48 for axis in shape)
        )
    except (*_PARSE_FAULTS, KeyError) as error:
        raise _malformed("an unreadable header", f"{header[:60]!r}") from error
    if not is_sound:
        raise _malformed("an unusable header", f"{header[:60]!r}")
    if not isinstance(descr, str) or not _DTYPE.fullmatch(descr):
        raise _invalid(
            "has elements of the wrong type",
            "float16, float32, float64, integers or booleans",
            str(descr)[:80],
        )
    if not 1 <= len(shape) <= MAX_DIMENSIONS or 0 in shape:
        raise _invalid(
            "has the wrong shape",
            f"1 to {MAX_DIMENSIONS} dimensions, and no empty one",
            str(list(shape))[:80],
        )
    return np.dtype(descr), shape, is_fortran


def _malformed(fault: str, got: str) -> MalformedRequest:
    return MalformedRequest(
        f"The body is not a valid .npy file: {fault}.", expected="a .npy file", got=got, remedy=_REMEDY
    )


def _invalid(fault: str, expected: str, got: str) -> InvalidInput:
    return InvalidInput(
        f"data {fault}.",
        expected=expected,
        got=got,
        remedy=_REMEDY,
        errors=[FieldError(path="data", message=f"expected {expected}, got {got}")],
    )
