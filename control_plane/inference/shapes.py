"""Which shapes each model takes, and `data` as its input tensors. Pure; runs before the queue, so that one bad request
never reaches a call that it would share with others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from control_plane.errors import FieldError, InvalidInput
from control_plane.inference.explanations import explain
from control_plane.inference.json_arrays import read_floats
from control_plane.inference.tensors import (
    Array,
    Nested,
    cast_array,
    decode_nested,
    depth_of,
    flatten,
    format_shape,
    to_array,
)
from control_plane.models.card import CardTensor

Data = Nested | msgspec.Raw | Array
"""Nested lists, JSON, or an array whose elements are still to be checked."""

_FLOATING = frozenset({"FP16", "FP32", "FP64"})
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowInput:
    """A checked window: `array` is float32 [batch, channels, time], C-contiguous."""

    array: Array
    warnings: tuple[str, ...]


def window_input(data: Data, *, channels: int, sequence_length: int | None, max_rows: int) -> WindowInput:
    """`data` of a `cnn_lstm_hybrid`.

    Args:
        data: 3-D [batch][channels][time], or one sample: [channels][time], else [time][channels].
        channels: What the model takes.
        sequence_length: The longest window that the model takes, in steps; None for no bound.
        max_rows: The most rows of one request.

    Raises:
        InvalidInput: any other shape, a ragged or empty array, or an element that is no finite float32.
    """
    nested, depth = _nested(data, "FP32")
    longest = "time" if sequence_length is None else f"1..{sequence_length}"
    expected = f"[batch, {channels}, {longest}], or for one sample [{channels}, {longest}] or [{longest}, {channels}]"
    if depth not in (2, 3):
        raise _wrong_shape(_dimensions(nested, depth), expected)
    if depth == 3:
        _check_rows(len(nested), max_rows)
    shape, flat = _measured(nested, depth, path="data")
    warnings: list[str] = []
    is_time_first = False
    if depth == 2:
        is_time_first = shape[0] != channels and shape[1] == channels
        if shape == (channels, channels):
            warnings.append(
                f"data is {channels} by {channels}: it was read as [channels][time]. Send [[...]] as "
                "[batch][channels][time] to be sure."
            )
        steps, found_channels = (shape[0], shape[1]) if is_time_first else (shape[1], shape[0])
    else:
        found_channels, steps = shape[1], shape[2]
    if found_channels != channels:
        raise _wrong_shape(format_shape(shape), expected)
    if sequence_length is not None:
        if steps > sequence_length:
            raise _wrong_shape(
                format_shape(shape), expected, remedy=f"Send the last {sequence_length} steps."
            )
        if steps < sequence_length:
            warnings.append(
                f"The window has {steps} of the {sequence_length} steps that the model was trained on."
            )
    array = _tensor(flat, shape, "FP32", path="data")
    if is_time_first:
        array = np.ascontiguousarray(array.T)
    return WindowInput(
        array=array if depth == 3 else array.reshape(1, channels, steps), warnings=tuple(warnings)
    )


def feature_input(data: Data, *, features: int | None, max_rows: int) -> Array:
    """`data` of an `rl_ensemble`: float32 [batch, features].

    Raises:
        InvalidInput: any other shape, a ragged or empty array, or an element that is no finite float32.
    """
    nested, depth = _nested(data, "FP32")
    expected = f"[batch, {'features' if features is None else features}]"
    if depth != 2:
        raise _wrong_shape(_dimensions(nested, depth), expected)
    _check_rows(len(nested), max_rows)
    shape, flat = _measured(nested, depth, path="data")
    if features is not None and shape[1] != features:
        raise _wrong_shape(format_shape(shape), expected)
    return _tensor(flat, shape, "FP32", path="data")


def tensor_inputs(
    data: Data | Mapping[str, Array], *, inputs: Sequence[CardTensor], max_rows: int
) -> dict[str, Array]:
    """`data` of a ready-made model: arrays by the tensors' client names, each [batch, ...] of the tensor's datatype.

    Args:
        data: An array for a model with one input; an object (or mapping) of arrays by input name works for any
            number.
        inputs: The model's inputs.
        max_rows: The most rows of one request.

    Raises:
        InvalidInput: inputs missing or unknown, shapes that the tensors don't take, or unequal numbers of rows.
    """
    arrays = {
        tensor.name: _tensor_input(part, tensor, path=path, max_rows=max_rows)
        for tensor, part, path in _parts(data, inputs)
    }
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise InvalidInput(
            "The inputs have different numbers of rows.",
            expected="the same length of the first axis in every input",
            got=", ".join(f"{name}: {count}" for name, count in rows.items()),
            remedy="Send one row of every input for each sample.",
            errors=[FieldError(path="data", message="inputs differ in their number of rows")],
        )
    return arrays


def _nested(data: Any, datatype: str, *, path: str = "data") -> tuple[Nested | Array, int]:
    if isinstance(data, np.ndarray):
        return data, data.ndim
    if isinstance(data, list):
        return data, depth_of(data)
    if isinstance(data, Mapping):
        raise _wrong_shape("several arrays", "one array", path=path)
    if datatype in _FLOATING and (array := read_floats(bytes(data))) is not None:
        return array, array.ndim
    return decode_nested(data, datatype, path=path)


def _measured(nested: Nested | Array, depth: int, *, path: str) -> tuple[tuple[int, ...], list[Any] | Array]:
    """The shape, and the elements: in C order for lists."""
    if not isinstance(nested, np.ndarray):
        return flatten(nested, depth, path=path)
    return (nested.shape, nested) if nested.size else flatten([], 1, path=path)


def _tensor(elements: Sequence[Any] | Array, shape: tuple[int, ...], datatype: str, *, path: str) -> Array:
    if isinstance(elements, np.ndarray):
        return cast_array(elements, datatype, path=path)
    return to_array(elements, shape, datatype, path=path)


def _parts(
    data: Data | Mapping[str, Array], inputs: Sequence[CardTensor]
) -> list[tuple[CardTensor, Data, str]]:
    names = [tensor.name for tensor in inputs]
    if isinstance(data, Mapping):
        return _by_name(data, inputs)
    if isinstance(data, (list, np.ndarray)) or not bytes(data).lstrip().startswith(b"{"):
        if len(inputs) == 1:
            return [(inputs[0], data, "data")]
        raise InvalidInput(
            "data is not an object, and the model has several inputs.",
            expected=f"an object with the arrays {', '.join(names)}",
            got="an array"
            if isinstance(data, (list, np.ndarray)) or bytes(data).lstrip().startswith(b"[")
            else "something else",
            remedy='Send data as {"name": [...], ...}.',
            errors=[FieldError(path="data", message="expected an object")],
        )
    text = bytes(data)
    try:
        parts = _objects.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise explain(error, text, {}, base="data") from error
    return _by_name(parts, inputs)


def _by_name(parts: Mapping[str, Any], inputs: Sequence[CardTensor]) -> list[tuple[CardTensor, Data, str]]:
    names = [tensor.name for tensor in inputs]
    if set(parts) != set(names):
        faults = [
            FieldError(path=f"data.{name}", message="is missing") for name in names if name not in parts
        ]
        faults += [
            FieldError(path=f"data.{name[:80]}", message="unknown input")
            for name in parts
            if name not in names
        ]
        raise InvalidInput(
            "data doesn't hold exactly the model's inputs.",
            expected=", ".join(names),
            got=", ".join(name[:80] for name in list(parts)[:20]) or "an empty object",
            remedy="GET /api/v1/models/{type}/{version} shows the signature.",
            errors=faults[:20],
        )
    return [(tensor, parts[tensor.name], f"data.{tensor.name}") for tensor in inputs]


def _tensor_input(data: Data, tensor: CardTensor, *, path: str, max_rows: int) -> Array:
    nested, depth = _nested(data, tensor.datatype, path=path)
    axes = ["batch", *("any" if length < 0 else str(length) for length in tensor.shape)]
    expected = f"{tensor.datatype} [{', '.join(axes)}]"
    if depth != len(axes):
        raise _wrong_shape(_dimensions(nested, depth), expected, path=path)
    _check_rows(len(nested), max_rows)
    shape, flat = _measured(nested, depth, path=path)
    if any(length not in (-1, found) for length, found in zip(tensor.shape, shape[1:], strict=True)):
        raise _wrong_shape(format_shape(shape), expected, path=path)
    return _tensor(flat, shape, tensor.datatype, path=path)


def _dimensions(nested: Nested | Array, depth: int) -> str:
    return f"{depth}-D" if len(nested) else "an empty array"


def _check_rows(rows: int, max_rows: int) -> None:
    if rows > max_rows:
        raise InvalidInput(
            "data has too many rows.",
            expected=f"at most {max_rows} rows",
            got=f"{rows} rows",
            remedy="Split the request.",
            errors=[FieldError(path="data", message=f"{rows} rows, at most {max_rows} are taken")],
        )


def _wrong_shape(got: str, expected: str, *, path: str = "data", remedy: str | None = None) -> InvalidInput:
    return InvalidInput(
        f"{path} has the wrong shape.",
        expected=expected,
        got=got,
        remedy=remedy or "GET /api/v1/models/{type}/{version} shows the model's signature.",
        errors=[FieldError(path=path, message=f"expected shape {expected}, got {got}")],
    )
