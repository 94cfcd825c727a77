"""Nested JSON arrays, and arrays that came in binary, to tensors: C-contiguous numpy arrays of the tensor's datatype,
finite and not ragged.

Nothing here knows a model; `shapes.py` says which shapes one takes.
"""

import math
import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from control_plane.errors import FieldError, InvalidInput
from control_plane.inference.explanations import explain

Array = npt.NDArray[Any]
Nested = list[Any]

MAX_DIMENSIONS = 8
_OPENING = re.compile(rb"\s*(?:\[\s*)*")
_FLOATS: dict[str, Any] = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}
_INTEGERS: dict[str, Any] = {
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
}  # fmt: skip
_REMEDY = "Send numbers in arrays of equal length."


def decode_nested(raw: msgspec.Raw | bytes, datatype: str, *, path: str) -> tuple[Nested, int]:
    """Decodes raw JSON as nested arrays of the datatype's kind of element.

    Returns:
        The nested lists and their depth (the number of dimensions).

    Raises:
        InvalidInput: no array, nested too deeply, or an element of another kind; names its path.
    """
    text = bytes(raw)
    opening = _OPENING.match(text)
    depth = opening.group().count(b"[") if opening else 0
    if depth == 0:
        raise InvalidInput(
            f"{path} is not an array.",
            expected="an array of numbers",
            got=_head(text),
            remedy=_REMEDY,
            errors=[FieldError(path=path, message="expected an array")],
        )
    if depth > MAX_DIMENSIONS:
        raise InvalidInput(
            f"{path} is nested too deeply.",
            expected=f"at most {MAX_DIMENSIONS} dimensions",
            got=f"{depth} dimensions",
            remedy=_REMEDY,
            errors=[FieldError(path=path, message="nested too deeply")],
        )
    try:
        return _decoder(datatype, depth).decode(text), depth
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise explain(error, text, {}, base=path) from error


def depth_of(nested: Nested) -> int:
    """Dimensions of nested lists, judged by their first elements."""
    depth = 0
    value: Any = nested
    while isinstance(value, list):
        depth += 1
        if not value:
            break
        value = value[0]
    return depth


def flatten(nested: Nested, depth: int, *, path: str) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of nested lists and their elements in C order.

    Raises:
        InvalidInput: empty, or ragged; names the first list whose length differs.
    """
    shape = [len(nested)]
    level: list[Any] = nested
    for _ in range(depth - 1):
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise _ragged(level, shape, path)
        shape.append(lengths.pop() if lengths else 0)
        level = list(chain.from_iterable(level))
    if not level:
        raise InvalidInput(
            f"{path} is empty.",
            expected="at least one row, and no empty array",
            got=f"shape {format_shape(shape)}",
            remedy=_REMEDY,
            errors=[FieldError(path=path, message="is empty")],
        )
    return tuple(shape), level


def to_array(flat: Sequence[Any], shape: tuple[int, ...], datatype: str, *, path: str) -> Array:
    """Elements in C order as a tensor.

    Returns:
        A C-contiguous array of `shape`; read-only for FP32.

    Raises:
        InvalidInput: an element overflows in the datatype; names its path.
    """
    if datatype == "FP32":
        # struct packs doubles as float32 four times as fast as numpy converts a list, and refuses what overflows.
        try:
            packed = struct.pack(f"<{len(flat)}f", *flat)
        except OverflowError:
            raise _overflow(flat, shape, datatype, path) from None
        return np.frombuffer(packed, dtype=np.float32).reshape(shape)
    if datatype in _FLOATS:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype=np.float64).astype(_FLOATS[datatype])
        if not np.isfinite(array).all():
            raise _overflow(flat, shape, datatype, path)
        return array.reshape(shape)
    try:
        return np.array(flat, dtype=_INTEGERS.get(datatype, np.bool_)).reshape(shape)
    except OverflowError:
        raise _beyond_uint64(flat, shape, path) from None


def cast_array(array: Array, datatype: str, *, path: str) -> Array:
    """An array of numbers as a tensor.

    Args:
        array: Of any shape and of a boolean, integer or floating dtype, at least one element.
        datatype: Triton's name of the tensor's datatype.
        path: Where it stands in the request.

    Returns:
        A C-contiguous array; the given one where it is one already.

    Raises:
        InvalidInput: an element isn't finite or doesn't fit the datatype (names its path), or the dtype is of
            another kind.
    """
    if datatype in _FLOATS and array.dtype.kind in "fiu":
        wanted = _FLOATS[datatype]
        if array.dtype == wanted:
            cast = np.ascontiguousarray(array)
        else:
            with np.errstate(over="ignore"):
                cast = array.astype(wanted, order="C")
        if not np.isfinite(cast).all():
            raise _not_finite(array, cast, datatype, path)
        return cast
    if datatype in _INTEGERS and array.dtype.kind in "iu":
        bounds = np.iinfo(_INTEGERS[datatype])
        lowest, highest = int(array.min()), int(array.max())
        if lowest < bounds.min or highest > bounds.max:
            raise InvalidInput(
                f"{path} holds integers beyond {datatype}.",
                expected=f"integers from {bounds.min} to {bounds.max}",
                got=f"integers from {lowest} to {highest}",
                remedy="Send what the tensor's datatype holds.",
                errors=[FieldError(path=path, message=f"beyond {datatype}")],
            )
        return array.astype(_INTEGERS[datatype], order="C", copy=False)
    if datatype == "BOOL" and array.dtype.kind == "b":
        return np.ascontiguousarray(array)
    raise InvalidInput(
        f"{path} has the wrong type of element.",
        expected=f"elements that {datatype} holds",
        got=array.dtype.name,
        remedy="GET /api/v1/models/{type}/{version} shows the model's signature.",
        errors=[FieldError(path=path, message=f"expected {datatype}, got {array.dtype.name}")],
    )


def format_shape(shape: Sequence[int]) -> str:
    """`[1, 50, 60]`."""
    return "[" + ", ".join(map(str, shape)) + "]"


@lru_cache(maxsize=128)
def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    element: Any
    if datatype in _FLOATS:
        element = float
    elif datatype in _INTEGERS:
        bounds = np.iinfo(_INTEGERS[datatype])
        highest = int(bounds.max) if bounds.max < 2**63 else None
        element = Annotated[int, msgspec.Meta(ge=int(bounds.min), le=highest)]
    elif datatype == "BOOL":
        element = bool
    else:
        raise InvalidInput(
            f"Tensors of datatype {datatype} can't be sent as JSON.",
            expected="FP16, FP32, FP64, INT8 to INT64, UINT8 to UINT64 or BOOL",
            got=datatype,
            remedy="Call Triton directly for this model.",
        )
    for _ in range(depth):
        element = list[element]
    return msgspec.json.Decoder(element)


def _ragged(level: list[Nested], shape: list[int], path: str) -> InvalidInput:
    expected = len(level[0])
    position = next(index for index, row in enumerate(level) if len(row) != expected)
    place = path + _subscripts(position, shape)
    return InvalidInput(
        f"{path} is ragged: {place} differs in length from those before it.",
        expected=f"{expected} elements",
        got=f"{len(level[position])} elements",
        remedy=_REMEDY,
        errors=[FieldError(path=place, message=f"expected {expected} elements, got {len(level[position])}")],
    )


def _not_finite(array: Array, cast: Array, datatype: str, path: str) -> InvalidInput:
    """The first element that is no finite number, or became none."""
    position = int(np.flatnonzero(~np.isfinite(cast))[0])
    value = array.reshape(-1)[position].item()
    if math.isfinite(value):
        return _overflow(array.reshape(-1).tolist(), array.shape, datatype, path)
    place = path + _subscripts(position, array.shape)
    got = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return InvalidInput(
        f"{place} is not a finite number.",
        expected="finite numbers",
        got=got,
        remedy="Replace missing or infinite values before sending.",
        errors=[FieldError(path=place, message=f"expected finite numbers, got {got}")],
    )


def _overflow(flat: Sequence[Any], shape: tuple[int, ...], datatype: str, path: str) -> InvalidInput:
    with np.errstate(over="ignore"):
        array = np.array(flat, dtype=np.float64).astype(_FLOATS[datatype])
    position = int(np.flatnonzero(~np.isfinite(array))[0])
    place = path + _subscripts(position, shape)
    largest = float(np.finfo(_FLOATS[datatype]).max)
    return InvalidInput(
        f"{place} overflows to infinity in {datatype}.",
        expected=f"finite numbers of at most {largest:.4g} in size",
        got=repr(flat[position]),
        remedy="Rescale the feature.",
        errors=[FieldError(path=place, message=f"overflows {datatype}, got {flat[position]!r}")],
    )


def _beyond_uint64(flat: Sequence[int], shape: tuple[int, ...], path: str) -> InvalidInput:
    """The one range that msgspec's own bounds, which end at int64, leave unchecked."""
    position = next(index for index, value in enumerate(flat) if value >= 2**64)
    place = path + _subscripts(position, shape)
    return InvalidInput(
        f"{place} is too large for UINT64.",
        expected="integers from 0 to 18446744073709551615",
        got=repr(flat[position])[:80],
        remedy=_REMEDY,
        errors=[FieldError(path=place, message="too large for UINT64")],
    )


def _subscripts(position: int, shape: Sequence[int]) -> str:
    return "".join(f"[{int(index)}]" for index in np.unravel_index(position, tuple(shape)))


def _head(text: bytes) -> str:
    return {
        b"{": "an object",
        b'"': "a string",
        b"n": "null",
        b"t": "true",
        b"f": "false",
        b"": "nothing",
    }.get(text.lstrip()[:1], "a single number")
