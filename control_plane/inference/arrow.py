"""Arrow IPC streams: `data` in, answers out. pyarrow is an extra, imported with the first such body.

What a stream may hold is narrow, and checked before its columns are touched: numbers in plain columns, in lists of
equal length, or in fixed-shape tensors; nothing compressed, no dictionaries, no nulls.

Source: https://arrow.apache.org/docs/format/Columnar.html (IPC), and `Message.fbs` for the place of `compression`.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson

from control_plane.errors import FieldError, InvalidInput, MalformedRequest, UnsupportedMediaType
from control_plane.inference.answers import PredictAnswer
from control_plane.inference.tensors import MAX_DIMENSIONS, Array

ARROW_STREAM = "application/vnd.apache.arrow.stream"
_COLUMNS = "columns of numbers, of lists of numbers of equal length, or of fixed-shape tensors"
_REMEDY = "docs/api.md shows how to write one."
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")
_RECORD_BATCH_COMPRESSION = 3
_MESSAGE_HEADER = 2


def is_available() -> bool:
    """Whether pyarrow can be imported; the first call imports it."""
    try:
        _pyarrow()
    except UnsupportedMediaType:
        return False
    return True


def read_arrow(body: bytes) -> Array | dict[str, Array]:
    """The data of a stream.

    Returns:
        For one column of lists or tensors its array, [rows, ...]; for columns of plain numbers [rows, columns]; for
        several columns of which one isn't plain, arrays by column name. Elements are unchecked.

    Raises:
        UnsupportedMediaType: pyarrow isn't installed.
        MalformedRequest: no Arrow stream.
        InvalidInput: columns of other types, ragged, empty, or with nulls.
    """
    pa = _pyarrow()
    try:
        table = _read_table(pa, body)
        names = table.column_names
        if not names or not table.num_rows:
            raise _invalid("data", "at least one column and one row", f"{table.num_rows} rows")
        arrays = {name: _column(pa, table.column(name), name, alone=len(names) == 1) for name in names}
    except (
        pa.ArrowException,
        struct.error,
        ValueError,
        TypeError,
        IndexError,
        OSError,
        MemoryError,
    ) as error:
        raise MalformedRequest(
            "The body is not a valid Arrow IPC stream.",
            expected="an Arrow IPC stream",
            got=str(error).partition("\n")[0][:200] or type(error).__name__,
            remedy=_REMEDY,
        ) from error
    if all(array.ndim == 1 for array in arrays.values()):
        return np.stack(list(arrays.values()), axis=1)
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def write_arrow(answer: PredictAnswer) -> bytes:
    """An answer as a stream of one record batch with a row for each row of the request.

    Arrays with a value for each row are columns, named by their path in the JSON answer; those with several values for
    each are lists of fixed size. The rest is JSON under `answer` in the schema's metadata.
    """
    pa = _pyarrow()
    columns: dict[str, Any] = {}
    rest: dict[str, Any] = {
        name: getattr(answer, name)
        for name in (
            "request_id",
            "model_type",
            "model_version",
            "processing_time_ms",
            "timestamp",
            "ab_test_group",
            "cached",
            "degraded",
            "warnings",
        )
    }
    if answer.uncertainty is None:
        rest["uncertainty"] = None
    parts = {
        "predictions": answer.predictions,
        "uncertainty": answer.uncertainty or {},
        "confidence_scores": answer.confidence_scores,
    }
    for path, value in _leaves(parts, ()):
        if isinstance(value, list):
            columns[".".join(path)] = pa.array(value, pa.int64())
        elif isinstance(value, np.ndarray) and path[-1] != "ensemble_weights":
            columns[".".join(path)] = _to_column(pa, value)
        else:
            _put(rest, path, value)
    schema = pa.schema(
        [pa.field(name, column.type) for name, column in columns.items()],
        metadata={"answer": orjson.dumps(rest, option=orjson.OPT_SERIALIZE_NUMPY)},
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(list(columns.values()), schema=schema))
    return bytes(sink.getvalue())


def _pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415  55 MB of memory: only for those who send Arrow
        import pyarrow.ipc  # noqa: PLC0415
    except ImportError as error:
        raise UnsupportedMediaType(
            "This server reads no Arrow: pyarrow isn't installed.",
            expected="application/json or application/x-npy",
            got=ARROW_STREAM,
            remedy="Install the extra: pip install 'model-serving[arrow]'.",
        ) from error
    return pyarrow


def _read_table(pa: Any, body: bytes) -> Any:
    schema = None
    kept: list[str] = []
    batches = []
    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
        if message.type == "schema" and schema is None:
            schema = pa.ipc.read_schema(message)
            if len(set(schema.names)) != len(schema.names):
                raise _invalid("data", "columns of different names", "several of one name")
            dropped = _index_columns(schema.metadata)
            for field in schema:
                if field.name not in dropped and not _PANDAS_INDEX.fullmatch(field.name):
                    _check_type(pa, field.type, field.name)
                    kept.append(field.name)
        elif message.type == "record batch" and schema is not None:
            if _has_compression(message.metadata.to_pybytes()):
                raise _invalid("data", "an uncompressed stream", "compressed buffers")
            batch = pa.ipc.read_record_batch(message, schema).select(kept)
            batch.validate(full=True)
            batches.append(batch)
        else:
            raise _invalid("data", "a schema and record batches", f"a message of type {message.type}")
    if schema is None:
        raise ValueError("it holds no schema")
    return pa.Table.from_batches(batches, schema=pa.schema([schema.field(name) for name in kept]))


def _index_columns(metadata: Mapping[bytes, bytes] | None) -> frozenset[str]:
    """The columns that pandas made of a frame's index, as it notes in the schema's metadata.

    Source: https://pandas.pydata.org/docs/development/developer.html (`index_columns`).
    """
    try:
        noted = orjson.loads((metadata or {})[b"pandas"])["index_columns"]
    except (LookupError, TypeError, ValueError):
        return frozenset()
    # The index that only counts the rows is no column, but an object.
    return (
        frozenset(name for name in noted if isinstance(name, str)) if isinstance(noted, list) else frozenset()
    )


def _check_type(pa: Any, kind: Any, name: str) -> None:
    inner, depth = kind, 1
    if isinstance(inner, pa.FixedShapeTensorType):
        inner, depth = inner.value_type, depth + len(kind.shape)
    while pa.types.is_list(inner) or pa.types.is_large_list(inner) or pa.types.is_fixed_size_list(inner):
        inner, depth = inner.value_type, depth + 1
    if not (pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner)):
        raise _invalid(_path(name), _COLUMNS, str(kind)[:80])
    if depth > MAX_DIMENSIONS:
        raise _invalid(_path(name), f"at most {MAX_DIMENSIONS} dimensions", f"{depth} dimensions")


def _has_compression(message: bytes) -> bool:
    """Whether a record batch names a codec: what its buffers would grow to is only known after the fact."""
    header = _field(message, struct.unpack_from("<I", message)[0], _MESSAGE_HEADER)
    if header == 0:
        return False
    table = header + struct.unpack_from("<I", message, header)[0]
    return _field(message, table, _RECORD_BATCH_COMPRESSION) != 0


def _field(message: bytes, table: int, number: int) -> int:
    """The position of a flatbuffer table's field; 0 when it isn't there."""
    vtable = table - struct.unpack_from("<i", message, table)[0]
    at = 4 + 2 * number
    if at >= struct.unpack_from("<H", message, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", message, vtable + at)[0]
    return table + offset if offset else 0


def _column(pa: Any, chunks: Any, name: str, *, alone: bool) -> Array:
    path = "data" if alone else _path(name)
    values = chunks.combine_chunks() if chunks.num_chunks != 1 else chunks.chunk(0)
    inside: tuple[int, ...] = ()
    rows = len(values)
    if isinstance(values.type, pa.FixedShapeTensorType):
        if values.type.permutation not in (None, list(range(len(values.type.shape)))):
            raise _invalid(path, "tensors in the order of their axes", "permuted tensors")
        inside, values = tuple(values.type.shape), _without_nulls(values.storage, path).flatten()
    shape: list[int] = [rows]
    while hasattr(values, "flatten") and pa.types.is_nested(values.type):
        _without_nulls(values, path)
        lengths = _lengths(pa, values)
        if lengths.size and (lengths != lengths[0]).any():
            position = int(np.flatnonzero(lengths != lengths[0])[0])
            raise _invalid(path, f"lists of {lengths[0]} elements", f"one of {lengths[position]} elements")
        shape.append(int(lengths[0]) if lengths.size else 0)
        if not shape[-1]:
            raise _invalid(path, "no empty list", "an empty list")
        values = values.flatten()
    flat: Array = _without_nulls(values, path).to_numpy(zero_copy_only=False)
    return flat.reshape((*shape, *inside))


def _lengths(pa: Any, values: Any) -> Array:
    if pa.types.is_fixed_size_list(values.type):
        return np.full(min(len(values), 1), values.type.list_size)
    offsets: Array = np.diff(values.offsets.to_numpy())
    return offsets


def _without_nulls(values: Any, path: str) -> Any:
    if values.null_count:
        raise _invalid(path, "no nulls", f"{values.null_count} nulls")
    return values


def _path(name: str) -> str:
    return f"data.{name[:80]}"


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, (*path, name))
    else:
        yield path, value


def _put(document: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        document = document.setdefault(name, {})
    document[path[-1]] = value


def _to_column(pa: Any, array: Array) -> Any:
    column = pa.array(np.ascontiguousarray(array).reshape(-1))
    for length in array.shape[:0:-1]:
        column = pa.FixedSizeListArray.from_arrays(column, length)
    return column


def _invalid(path: str, expected: str, got: str) -> InvalidInput:
    return InvalidInput(
        f"{path} is not what an Arrow body may hold.",
        expected=expected,
        got=got,
        remedy=_REMEDY,
        errors=[FieldError(path=path, message=f"expected {expected}, got {got}")],
    )
