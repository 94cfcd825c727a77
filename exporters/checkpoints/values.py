"""The inert values that a checkpoint's pickle turns into, and their conversion to plain JSON values.

A configuration object of any class becomes a `Namespace` of its attributes; a tensor becomes a `TensorRef` that
names a byte range of the file. Neither has behaviour that a file could call.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.errors import UnsupportedCheckpoint, shown

MAX_NODES = 20_000
"""Values in a configuration or in metrics. A pickle can share one list many times over, so that a small file
unfolds into billions of values; this bounds the unfolding."""
MAX_DEPTH = 16
_INT_BITS = 64
MAX_TEXT_BYTES = 1 << 20
"""Of all strings and keys in a configuration, or in metrics: one string can be shared many times over too."""


@dataclass(frozen=True, slots=True)
class Global:
    """A global that a pickle names. Only its name: nothing is imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True)
class Namespace:
    """The attributes of a pickled configuration object. `positional`: its field names aren't in the file."""

    cls: Global
    fields: dict[str, Any] = field(default_factory=dict)
    positional: bool = False


@dataclass(slots=True)
class ArrayData:
    """A numpy array while it is being unpickled, and afterwards."""

    values: NDArray[Any] | None = None


@dataclass(slots=True)
class DtypeData:
    """A numpy dtype: its kind and size (`f8`), and its byte order once known."""

    code: str
    order: str = "<"


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage of the file: its key, the dtype's torch name, and its length in elements."""

    key: str
    dtype: str
    elements: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor as a view of a storage; offset, shape and strides in elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


ITEM_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint8": 1, "bool": 1,
}  # fmt: skip


def plain(value: Any, *, where: str, tensor: Callable[[TensorRef], NDArray[Any]]) -> Any:
    """Converts what the pickle held to None, bool, int, float, str, list and dict with str keys.

    Args:
        value: what `pickle_data.interpret` returned, or a part of it.
        where: the name that errors start with, e.g. `config`.
        tensor: reads a small tensor (a scaler's mean, say).

    Raises:
        UnsupportedCheckpoint: too many or too deeply nested values, too much text, or a value that JSON can't hold.
    """
    budget = MAX_NODES
    text_budget = MAX_TEXT_BYTES

    def refuse(path: str, got: str) -> UnsupportedCheckpoint:
        return UnsupportedCheckpoint(
            f"The checkpoint's {path} can't be read as plain values.",
            expected=f"numbers, strings, lists and dicts, at most {MAX_NODES:,} of them, {MAX_DEPTH} deep",
            got=got,
            remedy="Save the configuration as plain values, e.g. dataclasses.asdict(config).",
        )

    def text(item: str, path: str) -> str:
        nonlocal text_budget
        try:
            text_budget -= len(item.encode()) if len(item) <= text_budget else len(item)
        except UnicodeEncodeError:
            raise refuse(path, "text with half of a character (a surrogate)") from None
        if text_budget < 0:
            raise refuse(where, f"more than {MAX_TEXT_BYTES:,} bytes of text")
        return item

    def convert(item: Any, path: str, depth: int) -> Any:
        nonlocal budget
        budget -= 1
        if budget < 0:
            raise refuse(where, f"more than {MAX_NODES:,} values")
        if depth > MAX_DEPTH:
            raise refuse(path, "deeper nesting")
        if isinstance(item, str):
            return text(item, path)
        if isinstance(item, int) and item.bit_length() >= _INT_BITS:
            raise refuse(path, f"an integer of {item.bit_length()} bits")
        if item is None or isinstance(item, bool | int | float):
            return item
        if isinstance(item, TensorRef | ArrayData):
            array = tensor(item) if isinstance(item, TensorRef) else item.values
            if array is None or array.size > budget:
                raise refuse(path, "an array that is empty of data or too large")
            budget -= array.size
            return array.tolist()
        if isinstance(item, Namespace):
            if item.positional:
                raise refuse(
                    path,
                    f"an object of {shown(str(item.cls))} saved without its field names (a slots dataclass)",
                )
            item = item.fields
        if isinstance(item, dict):
            return {
                text(_key(key, path, refuse), path): convert(entry, f"{path}.{key}", depth + 1)
                for key, entry in item.items()
            }
        if isinstance(item, list | tuple):
            return [convert(entry, f"{path}[{index}]", depth + 1) for index, entry in enumerate(item)]
        raise refuse(path, f"a value of type {type(item).__name__.removesuffix('Data').lower()}")

    return convert(value, where, 0)


def _key(key: Any, path: str, refuse: Callable[[str, str], UnsupportedCheckpoint]) -> str:
    if isinstance(key, str) and len(key) <= 200 and not re.search(r"[\x00-\x1f]", key):
        return key
    if isinstance(key, int):
        return str(key)
    raise refuse(path, f"a key of type {type(key).__name__}")


def array_of(ref: TensorRef, storage: bytes | bytearray) -> NDArray[Any]:
    """Cuts a tensor out of its storage's bytes; bfloat16 is widened to float32.

    Returns:
        A contiguous array of the tensor's shape. Bounds were checked when the reference was made.
    """
    is_bfloat16 = ref.storage.dtype == "bfloat16"
    dtype = np.dtype("uint16" if is_bfloat16 else ref.storage.dtype).newbyteorder("<")
    if ref.elements == 0:
        return np.zeros(ref.shape, dtype=np.float32 if is_bfloat16 else dtype)
    flat = np.frombuffer(storage, dtype=dtype)
    view = np.lib.stride_tricks.as_strided(
        flat[ref.offset :], shape=ref.shape, strides=tuple(stride * flat.itemsize for stride in ref.strides)
    )
    array = np.array(view, order="C", copy=True)
    return (array.astype(np.uint32) << 16).view(np.float32) if is_bfloat16 else array
