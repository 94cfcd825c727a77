"""Which globals a checkpoint's pickle may name, and what each becomes. Everything else is refused by name.

The table is the whole of what a file can bring about: tensors of a storage, ordered dicts, numpy scalars and arrays,
paths and enumeration members as their values, and objects of configuration classes as `Namespace`s. Each entry is a
function of ours over inert values; the global itself is never imported.
"""

import re
import struct
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from exporters.checkpoints.values import (
    ITEM_BYTES,
    ArrayData,
    DtypeData,
    Global,
    Namespace,
    StorageRef,
    TensorRef,
)
from exporters.errors import UnsafeCheckpoint, UnsupportedCheckpoint, shown

REMEDY = (
    "If you trust the checkpoint, save it again where it was trained: torch.save({'model_state_dict': "
    "model.state_dict(), 'config': dataclasses.asdict(config)}, path)."
)
MAX_ARRAY_BYTES = 4 << 20

_CONFIG_CLASS = re.compile(
    r"(?:[A-Z]\w*?)?(?:Config|Cfg|Configuration|Settings|Params|Parameters|Args|Arguments|Options)(?:V?\d+)?"
)
_ENUM_CLASS = re.compile(r"[A-Z]\w*?(Enum|Type|Mode|Kind|Method|Strategy|Level)")
_PLAIN_CLASSES = frozenset({"argparse.Namespace", "types.SimpleNamespace"})
_PATHS = frozenset(
    f"{module}.{name}"
    for module in ("pathlib", "pathlib._local")
    for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")
)

STORAGES: dict[str, str] = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
_NAMES_ONLY = frozenset({
    *STORAGES, "builtins.object", "__builtin__.object", "numpy.ndarray", "builtins.list", "builtins.dict",
    "builtins.int", "builtins.float", "__builtin__.list", "__builtin__.dict",
    "__builtin__.int", "__builtin__.float",
})  # fmt: skip
"""Globals that may be an argument (a storage's type, a defaultdict's factory) but are never called."""


def refused(value: Any, action: str) -> UnsafeCheckpoint:
    """The error for a global that may not be used so."""
    name = shown(str(value)) if isinstance(value, Global) else type(value).__name__
    return UnsafeCheckpoint(
        f"The checkpoint is refused: its pickle has {name} {action}, which could run code.",
        expected="tensors, plain values, and configuration objects that are attributes only",
        got=name,
        remedy=REMEDY,
    )


def admit(name: Global) -> Any:
    """Checks a global that the pickle names, before it is used for anything."""
    full = str(name)
    if full.startswith("torch.") and full.removeprefix("torch.") in _DTYPES:
        return full.removeprefix("torch.")
    if full in _CALLS or full in _NAMES_ONLY or full in _PATHS or _is_config(name) or _is_enum(name):
        return name
    raise refused(name, "imported")


def _foreign(name: Global) -> bool:
    """Whether the module isn't Python's own, torch's or numpy's: those hold no user's configuration."""
    root = name.module.partition(".")[0]
    return root not in sys.stdlib_module_names and root not in {"torch", "numpy", "__builtin__", "copy_reg"}


def _is_config(name: Global) -> bool:
    return str(name) in _PLAIN_CLASSES or (_foreign(name) and _CONFIG_CLASS.fullmatch(name.name) is not None)


def _is_enum(name: Global) -> bool:
    return _foreign(name) and _ENUM_CLASS.fullmatch(name.name) is not None


def reduce(function: Any, args: Any) -> Any:
    """What calling `function(*args)` stands for.

    Raises:
        UnsafeCheckpoint: not in the table, or in it but not with such arguments.
    """
    if not isinstance(function, Global) or type(args) is not tuple:
        raise refused(function, "called")
    full = str(function)
    if full in _CALLS:
        try:
            return _CALLS[full](*args)
        except (TypeError, ValueError, AttributeError, struct.error) as error:
            raise refused(function, "called with unexpected arguments") from error
    if full in _PATHS and all(type(part) is str for part in args):
        return "/".join(args).replace("//", "/", 1) if args else "."
    if _is_config(function) and args == ():
        return Namespace(function)
    if _is_enum(function) and len(args) == 1 and isinstance(args[0], str | int | float):
        return args[0]  # a member is pickled as its class called with its value
    raise refused(function, "called")


def new_object(cls: Any, args: Any) -> Namespace:
    """An empty configuration object. Its class is a name; nothing of it runs."""
    if not isinstance(cls, Global) or not _is_config(cls):
        raise refused(cls, "constructed")
    if args != ():
        raise refused(cls, "constructed with arguments")
    return Namespace(cls)


def build(target: Any, state: Any) -> None:
    """Gives an object its state: attributes of a configuration, the layout of a numpy dtype or array."""
    if isinstance(target, Namespace):
        parts = state if type(state) is tuple and len(state) == 2 else (state,)
        for part in parts:
            if type(part) is dict and all(type(key) is str for key in part):
                target.fields.update(part)
            elif type(part) is list:  # a slots dataclass pickles its values without their names
                target.positional = True
            elif part is not None:
                raise refused(target.cls, "given a state that isn't attributes")
    elif isinstance(target, DtypeData):
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise refused(target, "given an unexpected state")
        target.order = "<" if state[1] == "=" else state[1]
    elif isinstance(target, ArrayData):
        _fill_array(target, state)
    elif type(target) is dict and type(state) is dict:
        pass  # a state dict's `_metadata`
    else:
        raise refused(target, "given a state")


def _fill_array(target: ArrayData, state: Any) -> None:
    match state:
        case (int(), tuple() as shape, DtypeData() as dtype, bool() as fortran, bytes() as data):
            target.values = _array(data, dtype, shape, "F" if fortran else "C").values
        case _:
            raise refused(Global("numpy", "ndarray"), "holding objects")


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> ArrayData:
    """A small array of numbers; the arguments are those of numpy's `_frombuffer`."""
    sizes = shape if type(shape) is tuple else (shape,)
    if (
        type(data) is not bytes
        or len(data) > MAX_ARRAY_BYTES
        or not isinstance(dtype, DtypeData)
        or not all(type(size) is int and size >= 0 for size in sizes)
        or order not in ("C", "F")
    ):
        raise refused(Global("numpy", "ndarray"), "of an unexpected size or type")
    try:
        return ArrayData(np.frombuffer(data, dtype=_numpy_dtype(dtype)).reshape(sizes, order=order).copy())
    except ValueError as error:
        raise refused(Global("numpy", "ndarray"), "whose shape and data disagree") from error


def _numpy_dtype(dtype: DtypeData) -> np.dtype[Any]:
    return np.dtype(dtype.order.replace("|", "<") + dtype.code)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorRef:
    ints = (offset, *shape, *strides)
    if not isinstance(storage, StorageRef) or not all(type(value) is int and value >= 0 for value in ints):
        raise ValueError("not a tensor of a storage")
    ref = TensorRef(storage, offset, tuple(shape), tuple(strides))
    if len(ref.shape) != len(ref.strides) or len(ref.shape) > 16:
        raise ValueError("shape and strides disagree")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if ref.elements and last >= storage.elements:
        raise UnsupportedCheckpoint(
            "A tensor of the checkpoint reaches beyond its own data.",
            expected=f"at most {storage.elements:,} elements",
            got=f"shape {list(shape)} with strides {list(strides)} from {offset:,}",
            remedy="Save the checkpoint again; this one is damaged or forged.",
        )
    if ref.elements > storage.elements:  # a stride of 0 makes a huge tensor out of one number
        raise UnsupportedCheckpoint(
            "A tensor of the checkpoint is larger than its own data (an expanded view).",
            expected=f"at most {storage.elements:,} elements",
            got=f"shape {list(shape)}",
            remedy="Call .contiguous() on it before saving.",
        )
    return ref


def _parameter(data: Any, *_: Any) -> TensorRef:
    if not isinstance(data, TensorRef):
        raise ValueError("a parameter that isn't a tensor")
    return data


def _ordered_dict(*args: Any) -> dict[Any, Any]:
    pairs = args[0] if args else []
    if isinstance(pairs, Global) and len(args) == 1:  # defaultdict's factory
        return {}
    result: dict[Any, Any] = {}
    for key, value in pairs.items() if type(pairs) is dict else pairs:
        if not isinstance(key, str | int | float):
            raise ValueError("key")
        result[key] = value
    return result


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("encoding")
    return text.encode("latin-1")


def _dtype(code: str, *_: Any) -> DtypeData:
    if re.fullmatch(r"f[248]|[iu][1248]|b1", code) is None:
        raise ValueError("not a numeric dtype")
    return DtypeData(code)


def _scalar(dtype: DtypeData, data: bytes) -> bool | int | float:
    result: bool | int | float = np.frombuffer(data, dtype=_numpy_dtype(dtype)).reshape(()).item()
    return result


def _reconstruct_object(cls: Any, base: Any, state: Any) -> Namespace:
    if str(base) not in ("builtins.object", "__builtin__.object") or state is not None:
        raise ValueError("not a plain object")
    return new_object(cls, ())


def _device(kind: Any, index: Any = None) -> str:
    if type(kind) is not str or len(kind) > 32 or type(index) not in (int, type(None)):
        raise ValueError("not a device")
    return kind if index is None else f"{kind}:{index}"


def _sequence(values: Any = ()) -> list[Any]:
    return list(values) if type(values) in (list, tuple) else _raise()


def _raise() -> list[Any]:
    raise ValueError("not a sequence")


_DTYPES = frozenset({*ITEM_BYTES, "double", "float", "half", "long", "int", "short"})

_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _ordered_dict,
    "collections.Counter": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": lambda size: tuple(_sequence(size)),
    "torch.device": _device,
    "_codecs.encode": _encode,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": lambda *_: ArrayData(),
    "numpy._core.multiarray._reconstruct": lambda *_: ArrayData(),
    "numpy.core.numeric._frombuffer": _array,
    "numpy._core.numeric._frombuffer": _array,
    "builtins.set": _sequence,
    "builtins.frozenset": _sequence,
    "__builtin__.set": _sequence,
    "copyreg._reconstructor": _reconstruct_object,
    "copy_reg._reconstructor": _reconstruct_object,
    "copyreg.__newobj__": lambda cls, *args: new_object(cls, args),
}
