"""JSON arrays of numbers to float64, without a Python object for every number.

simdjson parses and flattens; the shape is read off the parsed document. What it can't take, and what is no rectangular
array of finite numbers, gives None: the caller reads it again the slow way, which says what is wrong with it.
"""

import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import simdjson

MAX_FAST_DIMENSIONS = 3
_OPENING = re.compile(rb"[\s\[]*")
_BRACKET = ord("[")
_LARGE_BYTES = 256 * 1024
_kept = simdjson.Parser()


def read_floats(text: bytes) -> npt.NDArray[np.float64] | None:
    """The array that `text` holds, when it is a rectangular one of 1 to 3 dimensions.

    Numbers are what `float` makes of their text, but that the integer -0 gives 0.

    Args:
        text: JSON that begins with a bracket.

    Returns:
        A C-contiguous array of at least one element, or None.
    """
    opening = _OPENING.match(text)
    depth = opening.group().count(b"[") if opening else 0
    if not 1 <= depth <= MAX_FAST_DIMENSIONS:
        return None
    # A parser keeps memory for the largest text that it has seen.
    parser = _kept if len(text) <= _LARGE_BYTES else simdjson.Parser()
    try:
        return _flatten(parser, text, depth)
    except (
        ValueError,
        TypeError,
        RuntimeError,
    ):  # not JSON, not a number, beyond uint64 or nested too deeply
        return None


def _flatten(parser: simdjson.Parser, text: bytes, depth: int) -> npt.NDArray[np.float64] | None:
    document: Any = parser.parse(text)
    rows = len(document)
    shape: tuple[int, ...]
    if depth == 1:
        shape, arrays = (rows,), 1
    elif depth == 2:
        shape, arrays = (rows, len(document[0])), 1 + rows
        lengths = {len(row) for row in document}
    else:
        middle = len(document[0])
        shape, arrays = (rows, middle, len(document[0][0])), 1 + rows + rows * middle
        if any(len(sample) != middle for sample in document):
            return None
        lengths = {len(row) for sample in document for row in sample}
    # Each bracket beyond those counted would be an array in the place of a number.
    if (depth > 1 and len(lengths) != 1) or _opened(text) != arrays:
        return None
    flat = np.frombuffer(document.as_buffer(of_type="d"), dtype=np.float64)
    del document
    if flat.size == 0 or flat.size != math.prod(shape):
        return None
    return flat.reshape(shape)


def _opened(text: bytes) -> int:
    """Opening brackets in the text; numpy counts them several times as fast as `bytes.count`."""
    return int(np.count_nonzero(np.frombuffer(text, dtype=np.uint8) == _BRACKET))
