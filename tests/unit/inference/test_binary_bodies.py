"""`.npy` and Arrow bodies: what was sent arrives, and nothing malformed does more than be refused."""

import io
import warnings
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from control_plane.errors import (
    InvalidInput,
    MalformedRequest,
    ServingError,
    UnsupportedMediaType,
    problem_of,
)
from control_plane.inference import arrow
from control_plane.inference.answers import PredictAnswer
from control_plane.inference.arrow import read_arrow, write_arrow
from control_plane.inference.npy import read_npy
from control_plane.inference.query_options import request_of
from control_plane.inference.requests import PREDICT_FIELDS
from control_plane.inference.shapes import tensor_inputs, window_input
from tests.unit.inference.cards import tensor

NUMBERS = ["<f2", "<f4", "<f8", ">f4", ">i4", "<i8", "<u8", "|u1", "|i1", "|b1"]
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)


def npy(array: Any, version: Any = None) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.lib.format.write_array(file, np.asanyarray(array), version=version, allow_pickle=True)
    return file.getvalue()


def stream(table: Any, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def status_of(work: Any) -> int:
    try:
        work()
    except ServingError as error:
        return problem_of(error).status
    return 200


@given(st.sampled_from(NUMBERS).flatmap(lambda kind: hnp.arrays(kind, SHAPES)), st.booleans())
def test_npy_arrives_as_it_was_sent(array: Any, fortran: bool) -> None:
    sent = np.asfortranarray(array) if fortran else array
    arrived = read_npy(npy(sent))
    assert arrived.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(arrived, array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_of_every_version_is_read(version: Any) -> None:
    np.testing.assert_array_equal(read_npy(npy([[1.0, 2.0]], version)), [[1.0, 2.0]])


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}], dtype=object), np.zeros(2, dtype=complex), np.array(["a"]), np.array([b"a"]),
        np.zeros(2, dtype="M8[s]"), np.zeros(2, dtype=[("a", "f4")]), np.float32(1), np.zeros((2, 0)),
        np.zeros((1,) * 9), np.zeros(2, dtype=np.longdouble),
    ],
)  # fmt: skip
def test_npy_of_other_elements_or_shapes_is_422(array: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_npy(npy(array))
    assert caught.value.errors[0].path == "data"


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x04\x00" + bytes(100), npy([1.0])[:-1], npy([1.0]) + b"x",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}"),
        header("{'descr': '<f4', 'fortran_order': False}"), header("__import__('os').abort()"),
        header("(" * 5000), header("[]"), header("5"), header("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}"),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    ],
)  # fmt: skip
def test_malformed_npy_is_400(body: bytes) -> None:
    with pytest.raises(MalformedRequest) as caught:
        read_npy(body)
    assert caught.value.expected
    assert caught.value.remedy


GOOD_NPY = npy(np.arange(12, dtype=np.float32).reshape(1, 3, 4))


@given(st.binary(max_size=80) | st.tuples(st.integers(0, len(GOOD_NPY) - 1), st.integers(0, 255)))
def test_any_npy_answers_or_refuses(damage: Any) -> None:
    body = damage
    if isinstance(damage, tuple):
        body = GOOD_NPY[: damage[0]] + bytes([damage[1]]) + GOOD_NPY[damage[0] + 1 :]
    assert status_of(lambda: read_npy(body)) in (200, 400, 422)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_array_with_no_finite_float32_names_the_element(value: float) -> None:
    array = np.zeros((1, 2, 3))
    array[0, 1, 2] = value
    for body in (read_npy(npy(array)), read_arrow(stream(pa.table({"data": array.tolist()})))):
        with pytest.raises(InvalidInput) as caught:
            window_input(body, channels=2, sequence_length=3, max_rows=10)
        assert caught.value.errors[0].path == "data[0][1][2]"


@pytest.mark.parametrize("datatype", ["INT8", "INT64", "UINT64", "BOOL", "FP16", "FP64"])
def test_binary_elements_have_to_fit_the_tensor(datatype: str) -> None:
    def read(array: Any) -> Any:
        return tensor_inputs(array, inputs=(tensor("a", (2,), datatype),), max_rows=1)["a"]

    good = np.array([[True, False]]) if datatype == "BOOL" else np.array([[1, 2]], dtype=np.int16)
    assert read(good).tolist() == good.tolist()
    bad: Any = np.array([[1, -(2**40)]]) if datatype in ("INT8", "UINT64") else np.array([[1 + 1j, 2]])
    with pytest.raises(InvalidInput):
        read(bad)


@given(hnp.arrays(st.sampled_from([np.float32, np.float64, np.int64, np.uint8]), SHAPES))
def test_arrow_lists_arrive_as_they_were_sent(array: Any) -> None:
    column: Any = pa.array(array.reshape(-1))
    for length in array.shape[:0:-1]:
        column = pa.FixedSizeListArray.from_arrays(column, length)
    arrived = read_arrow(stream(pa.table({"any": column})))
    np.testing.assert_array_equal(arrived, array if array.ndim > 1 else array[:, None])
    if array.ndim > 1:
        np.testing.assert_array_equal(read_arrow(stream(pa.table({"x": array.tolist()}))), array)


def test_arrow_tensors_columns_batches_and_slices_are_read() -> None:
    array = np.arange(48, dtype=np.float32).reshape(4, 3, 4)
    tensors = pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(array)})
    np.testing.assert_array_equal(read_arrow(stream(tensors)), array)
    np.testing.assert_array_equal(read_arrow(stream(tensors.slice(1, 2))), array[1:3])
    lists = pa.table({"x": array.tolist()})
    np.testing.assert_array_equal(read_arrow(stream(lists.slice(2))), array[2:])
    np.testing.assert_array_equal(
        read_arrow(stream(pa.concat_tables([lists, lists]))), np.concatenate([array] * 2)
    )
    frame = pa.table({"open": [1.0, 2.0], "close": [3, 4], "__index_level_0__": [7, 8]})
    np.testing.assert_array_equal(read_arrow(stream(frame)), [[1.0, 3.0], [2.0, 4.0]])
    several = read_arrow(stream(pa.table({"a": [[1.0, 2.0]], "b": [5]})))
    assert {name: part.tolist() for name, part in several.items()} == {"a": [[1.0, 2.0]], "b": [5]}


@pytest.mark.parametrize(
    ("table", "options"),
    [
        (pa.table({"a": ["x"]}), {}), (pa.table({"a": [None, 1.0]}), {}), (pa.table({"a": [[1.0], None]}), {}),
        (pa.table({"a": [[1.0, None]]}), {}), (pa.table({"a": [[1.0], [1.0, 2.0]]}), {}), (pa.table({"a": [[]]}), {}),
        (pa.table({"a": pa.array([[]], pa.list_(pa.float32()))}), {}), (pa.table({"a": [{"b": 1}]}), {}),
        (pa.table({"a": pa.nulls(3)}), {}), (pa.table({}), {}), (pa.table({"a": pa.array([], pa.float32())}), {}),
        (pa.table({"a": pa.array(["x"]).dictionary_encode()}), {}),
        (pa.table({"a": [1.0] * 1000}), {"compression": "zstd"}),
        (pa.table({"a": [1.0] * 1000}), {"compression": "lz4"}),
    ],
)  # fmt: skip
def test_other_arrow_is_422(table: Any, options: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_arrow(stream(table, **options))
    assert caught.value.errors[0].path.startswith("data")


@pytest.mark.parametrize(
    "body", [b"", b"ARROW1", b"\xff\xff\xff\xff\x10\x00\x00\x00" + bytes(16), bytes(100)]
)
def test_malformed_arrow_is_400(body: bytes) -> None:
    assert status_of(lambda: read_arrow(body)) == 400


GOOD_ARROW = stream(pa.table({"data": np.arange(12.0).reshape(2, 2, 3).tolist()}))


@settings(max_examples=300)
@given(
    st.binary(max_size=80)
    | st.lists(st.tuples(st.integers(0, len(GOOD_ARROW) - 1), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_any_arrow_answers_or_refuses(damage: Any) -> None:
    body = bytearray(GOOD_ARROW)
    if isinstance(damage, bytes):
        body = bytearray(damage)
    else:
        for position, value in damage:
            body[position] = value
    assert status_of(lambda: read_arrow(bytes(body))) in (200, 400, 422)


def test_arrow_without_pyarrow_is_415_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UnsupportedMediaType) as caught:
        read_arrow(GOOD_ARROW)
    assert "model-serving[arrow]" in (caught.value.remedy or "")
    assert not arrow.is_available()


def test_arrow_answer_has_a_row_for_each_row_and_the_rest_in_its_metadata() -> None:
    rows = np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32)
    answer = PredictAnswer(
        request_id="r", model_type="t", model_version="v", confidence_scores=rows[:, 1], processing_time_ms=1.5,
        timestamp="now", ab_test_group=None, warnings=("short",),
        predictions={"probs": rows, "pred": np.array([1, 0]), "agents": {"a": {"value": rows[:, 0]}}},
        uncertainty={"ensemble_weights": rows[0], "entropy": rows[:, 0], "interval": {"level": 0.9, "lower": rows}},
    )  # fmt: skip
    table = pa.ipc.open_stream(write_arrow(answer)).read_all()
    assert table.column_names == [
        "predictions.probs", "predictions.pred", "predictions.agents.a.value", "uncertainty.entropy",
        "uncertainty.interval.lower", "confidence_scores",
    ]  # fmt: skip
    assert table.column("predictions.probs").to_pylist() == rows.tolist()
    rest = orjson.loads(table.schema.metadata[b"answer"])
    assert rest == {
        "request_id": "r", "model_type": "t", "model_version": "v", "processing_time_ms": 1.5, "timestamp": "now",
        "ab_test_group": None, "cached": False, "degraded": None, "warnings": ["short"],
        "uncertainty": {"ensemble_weights": rows[0].tolist(), "interval": {"level": 0.9}},
    }  # fmt: skip


def test_query_options_are_those_of_a_json_body() -> None:
    query = b"model_type=m&model_version=5&use_ensemble=False&batch_size=7&interval=0.5&weights=[1,2]&routing_key=true"
    request = request_of(query + b"&covariate=null&timeout_ms=1e3&seed=3", None)
    assert (request.model_type, request.model_version, request.use_ensemble) == ("m", "5", False)
    assert (request.batch_size, request.interval, request.weights) == (7, 0.5, [1.0, 2.0])
    assert (request.routing_key, request.covariate, request.timeout_ms, request.seed) == (
        "true",
        None,
        1000.0,
        3,
    )


@pytest.mark.parametrize(
    ("query", "path"),
    [
        (b"", "model_type"), (b"model_type=m&colour=red", "colour"), (b"model_type=m&batch_size=0", "batch_size"),
        (b"model_type=m&batch_size=many", "batch_size"), (b"model_type=", "model_type"),
        (b"model_type=a&model_type=b", "model_type"),
        (b"model_type=m&data=[1]", "data"), (b"model_type=m&interval=NaN", "interval"),
        (b"model_type=m&priority=6", "priority"),
        (b"model_type=m&weights=[[1]]", "weights"), (b"model_type=%ff", "query"), (b"model_type=\xff", "query"),
        (b"&".join(b"a%d=1" % number for number in range(100)), "query"), (b"model_type=m&seed=" + b"[" * 5000, "seed"),
    ],
)  # fmt: skip
def test_wrong_query_options_are_422_and_named(query: bytes, path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        request_of(query, None)
    assert caught.value.errors[0].path.startswith(path)
    assert caught.value.expected


@given(
    st.binary(max_size=100)
    | st.sampled_from([name.encode() for name in PREDICT_FIELDS]).map(lambda name: name + b"=1")
)
def test_any_query_answers_or_refuses(query: bytes) -> None:
    assert status_of(lambda: request_of(query, None)) in (200, 422)


def test_arrow_columns_of_one_name_are_422() -> None:
    table = pa.Table.from_arrays([pa.array([1.0])] * 2, names=["a", "a"])
    assert status_of(lambda: read_arrow(stream(table))) == 422


@pytest.mark.parametrize(
    "index",
    [
        pd.date_range("2026-01-01", periods=3, freq="h"), pd.date_range("2026-01-01", periods=3, name="time"),
        pd.Index(["a", "b", "c"]), pd.Index(["a", "b", "c"], name="symbol"), pd.Index([7, 8, 9], name="id"),
        pd.MultiIndex.from_product([["a"], [1, 2, 3]], names=["symbol", None]), pd.RangeIndex(3),
        pd.RangeIndex(3, name="step"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("preserve", [None, True])
def test_arrow_index_of_a_pandas_frame_is_no_data(index: pd.Index, preserve: Any) -> None:
    frame = pd.DataFrame({"open": [1.0, 2.0, 3.0], "close": [4, 5, 6]}, index=index)
    table = pa.Table.from_pandas(frame, preserve_index=preserve)
    np.testing.assert_array_equal(read_arrow(stream(table)), [[1, 4], [2, 5], [3, 6]])


@pytest.mark.parametrize(
    "metadata", [b"", b"[]", b"{}", b"5", b'{"index_columns": 5}', b'{"index_columns": [[], 1]}']
)
def test_arrow_notes_that_are_not_pandas_own_are_ignored(metadata: bytes) -> None:
    table = pa.table({"a": [1.0], "b": [2.0]}).replace_schema_metadata({"pandas": metadata})
    assert read_arrow(stream(table)).tolist() == [[1.0, 2.0]]


def test_arrow_index_alone_is_422() -> None:
    table = pa.table({"a": [1.0]}).replace_schema_metadata({"pandas": b'{"index_columns": ["a"]}'})
    assert status_of(lambda: read_arrow(stream(table))) == 422


def test_arrow_answer_holds_unknown_classes_as_nulls() -> None:
    answer = PredictAnswer(
        request_id="r", model_type="t", model_version="v", confidence_scores=None, processing_time_ms=1.5,
        timestamp="now", ab_test_group=None, warnings=(), predictions={"pred": [None, 2]}, uncertainty=None,
    )  # fmt: skip
    table = pa.ipc.open_stream(write_arrow(answer)).read_all()
    assert table.column("predictions.pred").to_pylist() == [None, 2]
