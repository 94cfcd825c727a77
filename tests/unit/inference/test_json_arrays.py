"""The fast reader of JSON arrays against the slow one: the same numbers, and None for all that the slow one refuses."""

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from control_plane.errors import ServingError
from control_plane.inference.json_arrays import read_floats
from control_plane.inference.requests import decode_predict
from control_plane.inference.tensors import cast_array, decode_nested, flatten, to_array

SPACE = st.sampled_from(["", "", "", " ", "\n", "\t ", "\r\n"])
DIGITS = st.text("0123456789", min_size=1, max_size=25)


@st.composite
def numbers(draw: Any) -> str:
    """A number in any of JSON's notations, and now and then in one that JSON hasn't."""
    whole = draw(DIGITS)
    if draw(st.integers(0, 30)):
        whole = whole.lstrip("0") or "0"
    text = draw(st.sampled_from(["", "-", "-", "+"] if not draw(st.integers(0, 30)) else ["", "-"])) + whole
    if draw(st.booleans()):
        text += "." + draw(DIGITS)
    if draw(st.integers(0, 3)) == 0:
        text += (
            draw(st.sampled_from("eE"))
            + draw(st.sampled_from(["", "+", "-"]))
            + str(draw(st.integers(0, 400)))
        )
    return text


@st.composite
def arrays(draw: Any, depth: int) -> str:
    """Nested arrays, mostly rectangular."""
    lengths = [draw(st.integers(1, 4)) for _ in range(depth)]
    odd = draw(st.integers(0, 5)) == 0
    wrong = st.sampled_from(["null", "true", '"1"', "[1]", "[]", "{}", '{"a": 1}', "NaN", "Infinity", ""])

    def build(level: int) -> str:
        if level == depth:
            return draw(wrong) if odd and draw(st.integers(0, 9)) == 0 else draw(numbers())
        length = lengths[level] + (1 if odd and draw(st.integers(0, 9)) == 0 else 0)
        space = draw(SPACE)
        return "[" + ",".join(space + build(level + 1) + space for _ in range(length)) + space + "]"

    return build(0)


def slowly(text: bytes, datatype: str) -> Any:
    nested, depth = decode_nested(text, datatype, path="data")
    shape, flat = flatten(nested, depth, path="data")
    return to_array(flat, shape, datatype, path="data")


@given(st.integers(1, 3).flatmap(arrays))
def test_fast_reader_agrees_with_the_slow_one(text: str) -> None:
    raw = text.encode()
    fast = read_floats(raw)
    if fast is None:
        return
    np.testing.assert_array_equal(fast, slowly(raw, "FP64"))
    try:
        expected = slowly(raw, "FP32")
    except ServingError as refusal:
        paths = [field.path for field in refusal.errors]
        with pytest.raises(type(refusal), match=re.escape(paths[0])):
            cast_array(fast, "FP32", path="data")
    else:
        np.testing.assert_array_equal(cast_array(fast, "FP32", path="data"), expected)


@given(
    hnp.arrays(
        st.sampled_from([np.float64, np.float32]),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=5),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.sampled_from([None, 1, "\t"]),
)
def test_good_arrays_go_the_fast_way(array: Any, indent: Any) -> None:
    fast = read_floats(json.dumps(array.astype(float).tolist(), indent=indent).encode())
    assert fast is not None
    np.testing.assert_array_equal(fast.view(np.uint64), array.astype(np.float64).view(np.uint64))


def test_float32_is_the_rounded_float64_not_the_rounded_text() -> None:
    text = "1.00000017881393432617187499"  # the text lies below the middle of two float32, its float64 on it
    fast = read_floats(f"[{text}]".encode())
    assert fast is not None
    assert cast_array(fast, "FP32", path="data")[0] == np.float32(float(text))


@pytest.mark.parametrize(
    "text",
    [
        "", "1", "{}", "[]", "[[]]", "[[1], []]", "[[1, 2], [3]]", "[[1], 2]", "[1, [2]]", "[[1, [2]], [3, 4]]",
        '[[1], {"a": 1}]', '[["["]]', "[[true]]", "[[null]]", "[NaN]", "[1e999]", "[1", "[1] x", "[01]", "[1.]",
        "[[[[1]]]]",         "[" * 5000, "[" + "9" * 400 + "]",
    ],
)  # fmt: skip
def test_what_is_no_plain_array_of_numbers_is_left_to_the_slow_reader(text: str) -> None:
    assert read_floats(text.encode()) is None


def test_reader_works_on_after_refusals_and_large_texts() -> None:
    for _ in range(3):
        assert read_floats(b"[[1, true]]") is None
        large = read_floats(json.dumps([[0.5] * 100] * 3000).encode())
        assert large is not None
        assert large.shape == (3000, 100)
        np.testing.assert_array_equal(read_floats(b"[[1, 2]]"), [[1.0, 2.0]])


BODIES = [
    '{"data": [[1]], "data": [[2]], "model_type": "cnn_lstm_hybrid"}',
    '{"data": [[1]], "model_type": "cnn_lstm_hybrid", "routing_key": "]"}',
    '{"model_type": "cnn_lstm_hybrid", "data": [[1]], "weights": [1, 2]}',
    '{"model_type": "cnn_lstm_hybrid", "d\\u0061ta": [[3]]}',
    '{"model_type": "cnn_lstm_hybrid", "d\\u0061ta": [[3]], "data": [[4]]}',
    '{"model_type": "cnn_lstm_hybrid", "routing_key": "data", "data": [[4]]}',
    '{"routing_key": "\\"data\\": [", "data": [[4]], "model_type": "cnn_lstm_hybrid"}',
    '{"model_type": "cnn_lstm_hybrid", "weights": {"data": 2}, "data": [[4]]}',
    ' { "data" : [ [ 1 , 2 ] ] , "model_type" : "rl_ensemble" } ',
]


@pytest.mark.parametrize("body", BODIES)
def test_array_is_cut_out_of_the_right_place(body: str) -> None:
    expected = json.loads(body)
    request = decode_predict(body.encode())
    data = request.data if isinstance(request.data, list) else np.asarray(request.data).tolist()
    assert data == expected["data"]
    assert request.routing_key == expected.get("routing_key")
    assert request.weights == expected.get("weights")


@pytest.mark.parametrize(
    "body",
    [
        '{"model_type": "cnn_lstm_hybrid", "weights": {"data": [1]}}',
        '{"model_type": "cnn_lstm_hybrid", "data": 0, "routing_key": "[1]"}',
        '{"model_type": "cnn_lstm_hybrid", "data": null, "weights": [1]}',
        '{"model_type": "cnn_lstm_hybrid", "weights": {"x\\"data": [1]}, "data": null}',
        '{"model_type": "cnn_lstm_hybrid", "weights": {"x\\"data": [1]}, "data": [[3]]}',
    ],
)
def test_array_of_another_field_is_not_data(body: str) -> None:
    with pytest.raises(ServingError):
        np.asarray(slowly(bytes(decode_predict(body.encode()).data), "FP32"))
