"""Triton's datatypes and numpy's: those that travel as raw bytes, so all but BYTES and BF16."""

from typing import Any

import numpy as np
import numpy.typing as npt

from control_plane.errors import InvalidInput

Array = npt.NDArray[Any]

DTYPES: dict[str, "np.dtype[Any]"] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "FP32": np.float32,
        "FP64": np.float64,
        "FP16": np.float16,
        "INT8": np.int8,
        "INT16": np.int16,
        "INT32": np.int32,
        "INT64": np.int64,
        "UINT8": np.uint8,
        "UINT16": np.uint16,
        "UINT32": np.uint32,
        "UINT64": np.uint64,
        "BOOL": np.bool_,
    }.items()
}
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_of(datatype: str) -> "np.dtype[Any]":
    """numpy's type for one of Triton's names (`FP32`).

    Raises:
        InvalidInput: it has none that travels as raw bytes.
    """
    if datatype not in DTYPES:
        raise InvalidInput(
            f"Tensors of type {datatype} aren't supported.", expected=", ".join(DTYPES), got=datatype
        )
    return DTYPES[datatype]
