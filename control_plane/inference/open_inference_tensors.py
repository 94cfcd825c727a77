"""Open Inference Protocol (v2): the tensors of a decoded request, checked against a model's signature.

Raw tensors: unlike `POST /predict`, binary data may hold NaN and infinities, as it may where Triton is called directly.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from control_plane.errors import FieldError, InvalidInput
from control_plane.inference.decisions import WeightsSource
from control_plane.inference.json_arrays import read_floats
from control_plane.inference.open_inference import (
    InferRequest,
    WantedOutput,
    WireTensor,
    invalid,
    unsupported,
)
from control_plane.inference.plans import Plan
from control_plane.inference.requests import HYBRID, RL_ENSEMBLE
from control_plane.inference.tensors import Array, cast_array, decode_nested, flatten, format_shape, to_array
from control_plane.models.card import CardTensor, ModelCard

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}

_LANE = "v2"


def plan_tensors(request: InferRequest, card: ModelCard, *, weights: WeightsSource, max_rows: int) -> Plan:
    """Checks the tensors against the model, and says what to send.

    An `rl_ensemble` without its input `weights` is mixed by those in force.

    Raises:
        InvalidInput: a tensor is missing, unknown, given twice, or of the wrong datatype, shape or size.
    """
    known = {tensor.name: tensor for tensor in card.inputs}
    given = [tensor.name for tensor in request.inputs]
    optional = {"weights"} if card.model_type == RL_ENSEMBLE else set[str]()
    faults = [
        FieldError(path=f"inputs.{one[:80]}", message="unknown input") for one in given if one not in known
    ]
    faults += [
        FieldError(path=f"inputs.{one}", message="is missing")
        for one in known
        if one not in given and one not in optional
    ]
    faults += [
        FieldError(path=f"inputs.{one}", message="is given twice") for one in known if given.count(one) > 1
    ]
    if faults:
        raise InvalidInput(
            f"The inputs are not the model's: {faults[0].path} {faults[0].message}.",
            expected=", ".join(known),
            got=", ".join(one[:80] for one in given[:20]),
            errors=faults[:20],
        )
    longest = card.config.get("sequence_length") if card.model_type == HYBRID else None
    arrays = {
        known[tensor.name].triton_name: _array(tensor, known[tensor.name], max_rows, longest)
        for tensor in request.inputs
    }
    rows = {len(array) for array in arrays.values()}
    if len(rows) > 1:
        raise invalid(
            "inputs",
            "differ in their number of rows",
            expected="the same first length in every shape",
            got=", ".join(f"{tensor.name}: {tensor.shape[0]}" for tensor in request.inputs),
        )
    count = rows.pop()
    warnings: tuple[str, ...] = ()
    for one in optional - set(given):
        if (tensor := known.get(one)) is not None:
            current = weights.current(card)
            arrays[tensor.triton_name] = np.repeat(current.weights[None], count, axis=0)
            warnings += current.warnings
    outputs = _triton_outputs(request.outputs, card)
    arrays = {tensor.triton_name: arrays[tensor.triton_name] for tensor in card.inputs}
    return Plan(
        inputs=arrays,
        outputs=outputs,
        rows=count,
        lane=(_LANE, outputs, *(array.shape[1:] for array in arrays.values())),
        warnings=warnings,
    )


def _triton_outputs(wanted: Sequence[WantedOutput], card: ModelCard) -> tuple[str, ...]:
    names = {tensor.name: tensor.triton_name for tensor in card.outputs}
    given = [output.name for output in wanted]
    wrong = next((one for one in given if one not in names or given.count(one) > 1), None)
    if wrong is not None:
        raise invalid(
            f"outputs.{wrong[:80]}",
            "is given twice" if wrong in names else "is no output of the model",
            expected=f"outputs among {', '.join(names)}, each at most once",
            got=", ".join(one[:80] for one in given[:20]),
        )
    return tuple(names[one] for one in given) or tuple(names.values())


def _array(tensor: WireTensor, known: CardTensor, max_rows: int, longest: int | None) -> Array:
    path = f"inputs.{tensor.name}"
    if known.datatype not in DTYPES:
        raise unsupported(
            path, f"Tensors of datatype {known.datatype}", "Call Triton directly for this model."
        )
    if tensor.datatype != known.datatype:
        raise invalid(
            f"{path}.datatype", "is not the model's", expected=known.datatype, got=tensor.datatype[:80]
        )
    axes = ", ".join("any" if length < 0 else str(length) for length in known.shape)
    if longest is not None:
        axes = axes.replace("any", f"1..{longest}")
    shape = tensor.shape
    if (
        len(shape) != 1 + len(known.shape)
        or 0 in shape
        or any(
            (expected >= 0 and expected != found)
            or (expected < 0 and longest is not None and found > longest)
            for expected, found in zip(known.shape, shape[1:], strict=False)
        )
    ):
        raise invalid(
            f"{path}.shape", "doesn't fit the model", expected=f"[batch, {axes}]", got=format_shape(shape)
        )
    if shape[0] > max_rows:
        raise invalid(
            f"{path}.shape", "has too many rows", expected=f"at most {max_rows} rows", got=f"{shape[0]} rows"
        )
    if tensor.binary is not None:
        return _from_binary(tensor.binary, shape, DTYPES[known.datatype], path)
    return _from_json(tensor.json or b"", shape, known.datatype, f"{path}.data")


def _from_binary(data: memoryview, shape: tuple[int, ...], dtype: np.dtype[Any], path: str) -> Array:
    size = math.prod(shape) * dtype.itemsize
    if len(data) != size:
        raise invalid(
            f"{path}.parameters.binary_data_size",
            "is not the size of the shape",
            expected=f"{size} bytes for {format_shape(shape)}",
            got=f"{len(data)} bytes",
        )
    if dtype == np.bool_ and int(np.frombuffer(data, np.uint8).max()) > 1:
        raise invalid(f"{path}", "has a byte that is no BOOL", expected="bytes of 0 or 1", got="a larger one")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _from_json(data: bytes, shape: tuple[int, ...], datatype: str, path: str) -> Array:
    """Flat in row-major order, or nested as `shape` says."""
    fast = read_floats(data) if datatype.startswith("FP") else None
    if fast is not None:
        _check_nesting(fast.shape, fast.size, shape, path)
        return cast_array(fast.reshape(shape), datatype, path=path)
    nested, depth = decode_nested(data, datatype, path=path)
    found, flat = flatten(nested, depth, path=path)
    _check_nesting(found, len(flat), shape, path)
    return to_array(flat, shape, datatype, path=path)


def _check_nesting(found: tuple[int, ...], count: int, shape: tuple[int, ...], path: str) -> None:
    if len(found) != 1 and found != shape:
        raise invalid(
            path, "is not nested as shape says", expected=format_shape(shape), got=format_shape(found)
        )
    wanted = math.prod(shape)
    if count != wanted:
        raise invalid(
            path,
            "has another number of elements than shape says",
            expected=f"{wanted} elements for {format_shape(shape)}",
            got=f"{count} elements",
        )
