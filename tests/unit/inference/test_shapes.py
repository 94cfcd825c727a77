"""Shapes and tensors: which data each kind of model takes, and that the numbers arrive as they were sent."""

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from control_plane.errors import InvalidInput
from control_plane.inference.shapes import feature_input, tensor_inputs, window_input
from control_plane.inference.tensors import decode_nested, depth_of, flatten, to_array
from tests.unit.inference.cards import tensor


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def window(data: Any, *, channels: int = 3, length: int | None = 5) -> Any:
    return window_input(data, channels=channels, sequence_length=length, max_rows=10)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=5, max_side=4),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_fp32_arrives_bit_for_bit(array: Any) -> None:
    nested, depth = decode_nested(raw(array.astype(float).tolist()), "FP32", path="data")
    shape, flat = flatten(nested, depth, path="data")
    arrived = to_array(flat, shape, "FP32", path="data")
    assert arrived.dtype == np.float32
    assert arrived.flags.c_contiguous
    np.testing.assert_array_equal(arrived.view(np.uint32), array.view(np.uint32))
    assert depth_of(nested) == array.ndim


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_fp32_rounds_as_numpy_does_and_refuses_what_overflows(values: list[float]) -> None:
    with np.errstate(over="ignore"):
        expected = np.array(values, dtype=np.float64).astype(np.float32)
    if np.isfinite(expected).all():
        np.testing.assert_array_equal(to_array(values, (len(values),), "FP32", path="data"), expected)
    else:
        with pytest.raises(InvalidInput) as caught:
            to_array(values, (len(values),), "FP32", path="data")
        assert caught.value.errors[0].path == f"data[{int(np.flatnonzero(~np.isfinite(expected))[0])}]"


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("FP16", [1.5, -2]), ("FP64", [1e300, 1]), ("INT8", [-128, 127]), ("UINT8", [0, 255]),
        ("INT16", [-32768, 1]), ("UINT16", [65535, 0]), ("INT32", [-(2**31), 1]), ("UINT32", [2**32 - 1, 0]),
        ("INT64", [2**63 - 1, -(2**63)]), ("UINT64", [2**64 - 1, 0]), ("BOOL", [True, False]),
    ],
)  # fmt: skip
def test_every_datatype_takes_its_range(datatype: str, values: list[Any]) -> None:
    array = tensor_inputs(raw([values]), inputs=(tensor("a", (2,), datatype),), max_rows=1)["a"]
    assert array.tolist() == [values]


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("FP16", 1e6), ("FP64", "1"), ("INT8", 128), ("UINT8", -1), ("INT32", 1.5), ("INT64", 2**63), ("UINT64", 2**64),
        ("INT64", True), ("BOOL", 1), ("FP32", True), ("BYTES", "x"),
    ],
)  # fmt: skip
def test_every_datatype_refuses_what_it_cannot_hold(datatype: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        tensor_inputs(raw([[value]]), inputs=(tensor("a", (1,), datatype),), max_rows=1)
    assert caught.value.expected
    assert caught.value.got


@pytest.mark.parametrize("form", [list, raw], ids=["decoded", "raw"])
def test_window_takes_batches_and_single_samples_both_ways(form: Any) -> None:
    samples = np.arange(30, dtype=np.float32).reshape(2, 3, 5)
    np.testing.assert_array_equal(window(form(samples.tolist())).array, samples)
    for single in (samples[0], samples[0].T):
        taken = window(form(single.tolist()))
        np.testing.assert_array_equal(taken.array, samples[:1])
        assert taken.array.flags.c_contiguous
        assert taken.warnings == ()


def test_window_square_is_channels_first_with_a_warning() -> None:
    square = np.arange(9, dtype=np.float32).reshape(3, 3)
    taken = window(square.tolist(), length=3)
    np.testing.assert_array_equal(taken.array[0], square)
    assert "channels" in taken.warnings[0]
    assert window([square.tolist()], length=3).warnings == ()


def test_window_shorter_is_served_with_a_warning_and_longer_refused() -> None:
    assert "4 of the 5 steps" in window(np.zeros((1, 3, 4)).tolist()).warnings[0]
    with pytest.raises(InvalidInput) as caught:
        window(np.zeros((1, 3, 6)).tolist())
    assert caught.value.got == "[1, 3, 6]"
    assert "last 5 steps" in (caught.value.remedy or "")
    assert window(np.zeros((1, 3, 600)).tolist(), length=None).array.shape == (1, 3, 600)


@pytest.mark.parametrize("shape", [(3,), (1, 1, 3, 5), (4, 5), (1, 4, 5), (5, 4)])
def test_window_of_another_shape_is_refused_with_what_is_expected(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput) as caught:
        window(np.zeros(shape).tolist())
    assert "[batch, 3, 1..5]" in (caught.value.expected or "")


def test_window_refuses_too_many_rows_before_it_reads_them() -> None:
    with pytest.raises(InvalidInput, match="too many rows"):
        window([[["not even a number"]]] * 11)


def test_features_take_2d_only() -> None:
    assert feature_input([[1.0, 2.0]], features=2, max_rows=1).tolist() == [[1.0, 2.0]]
    for data in ([1.0, 2.0], [[[1.0, 2.0]]], [[1.0]], [[1.0, 2.0], [1.0, 2.0]]):
        with pytest.raises(InvalidInput):
            feature_input(data, features=2, max_rows=1)


def test_tensors_take_an_object_for_several_inputs() -> None:
    inputs = (tensor("a", (2,)), tensor("b", (-1,), "INT64"))
    arrays = tensor_inputs(raw({"b": [[1], [2]], "a": [[1, 2], [3, 4]]}), inputs=inputs, max_rows=2)
    assert list(arrays) == ["a", "b"]
    assert arrays["b"].dtype == np.int64
    one = tensor_inputs(raw({"a": [[1, 2]]}), inputs=inputs[:1], max_rows=2)
    assert one["a"].shape == (1, 2)


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ([[1, 2]], "data"),
        (5, "data"),
        ({"a": [[1, 2]]}, "data.b"),
        ({"a": [[1, 2]], "b": [[1]], "c": [[1]]}, "data.c"),
        ({"a": [[1, 2]], "b": [[1], [2]]}, "data"),
        ({"a": [[1, 2, 3]], "b": [[1]]}, "data.a"),
        ({"a": [[1, "x"]], "b": [[1]]}, "data.a[0][1]"),
        ({"a": [1, 2], "b": [[1]]}, "data.a"),
        ({"a": None, "b": [[1]]}, "data.a"),
        ({"a": [[1, 2]] * 3, "b": [[1]] * 3}, "data"),
    ],
)
def test_tensors_refuse_and_name_the_input(data: Any, path: str) -> None:
    inputs = (tensor("a", (2,)), tensor("b", (-1,), "INT64"))
    with pytest.raises(InvalidInput) as caught:
        tensor_inputs(raw(data), inputs=inputs, max_rows=2)
    assert caught.value.errors[0].path == path
    assert caught.value.expected
    assert caught.value.got
    assert caught.value.remedy
