"""Bodies to requests: what is taken, and what the refusal of anything else says."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.api.problem import problem_document
from control_plane.errors import (
    InvalidInput,
    MalformedRequest,
    ServingError,
    TooManyRequestsInBatch,
    problem_of,
)
from control_plane.inference.requests import (
    BATCH_FIELDS,
    PREDICT_FIELDS,
    BatchRequest,
    PredictRequest,
    decode_batch,
    decode_predict,
)
from control_plane.inference.shapes import WindowInput, window_input

HYBRID = '{"model_type": "cnn_lstm_hybrid", "data": %s}'


def refusal(body: str | bytes) -> ServingError:
    """What a body is refused with, by the decoder or by the check of its shape."""
    with pytest.raises(ServingError) as caught:
        read(body.encode() if isinstance(body, str) else body)
    return caught.value


def read(body: bytes) -> WindowInput:
    """Decodes a body for a hybrid with 2 channels and 3 steps."""
    return window_input(decode_predict(body).data, channels=2, sequence_length=3, max_rows=10)


def status_of(work: Callable[[], Any]) -> int:
    """200, or the status of the error that the work raises."""
    try:
        work()
    except ServingError as error:
        return problem_of(error).status
    return 200


def test_decode_fills_in_the_documented_defaults() -> None:
    request = decode_predict(b'{"model_type": "cnn_lstm_hybrid", "data": [[[1, 2.5]]]}')
    assert request.data.tolist() == [[[1.0, 2.5]]]
    assert msgspec.structs.asdict(request) == {
        "model_type": "cnn_lstm_hybrid",
        "data": request.data,
        "model_version": "latest",
        "return_uncertainty": True,
        "use_ensemble": True,
        "batch_size": 32,
        "request_id": None,
        "routing_key": None,
        "covariate": None,
        "experiment_id": None,
        "interval": 0.9,
        "interval_method": "mc",
        "return_attention": False,
        "weights": None,
        "action_selection": "greedy",
        "seed": None,
        "timeout_ms": None,
        "priority": 3,
        "on_overload": None,
    }


@pytest.mark.parametrize("space", ["", " ", "\n\t  "], ids=["dense", "spaces", "pretty"])
@pytest.mark.parametrize("data", [[[1, 2], [3, 4]], [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]])
def test_decode_gives_the_same_whatever_the_spacing(space: str, data: Any) -> None:
    text = json.dumps(data).replace("[", f"{space}[{space}")
    for body in (HYBRID % text, '{"data": %s, "model_type": "cnn_lstm_hybrid"}' % text):  # noqa: UP031
        window = window_input(decode_predict(body.encode()).data, channels=2, sequence_length=3, max_rows=10)
        assert window.array.tolist() == (data if isinstance(data[0][0], list) else [data])


def test_decode_leaves_data_of_other_types_raw() -> None:
    request = decode_predict(
        b'{"model_type": "mine", "data": [[9007199254740993]], "routing_key": "rl_ensemble"}'
    )
    assert bytes(request.data) == b"[[9007199254740993]]"


MALFORMED = {
    "empty": "",
    "blank": " \n",
    "no JSON": "model_type=x",
    "cut off": HYBRID[:-3],
    "trailing": HYBRID % "[[1]]" + " x",
    "leading zero": HYBRID % "[[01]]",
    "no UTF-8": b'{"model_type": "\xff"}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "a string called NaN": '{"model_type": "cnn_lstm_hybrid", "data": [[1]], "routing_key": NaN}',
    "deep and open": "[" * 1_000_000,
    "wrong and then cut off": '{"model_type": 5, "data": [[1]]',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_body_is_400_and_says_where(body: str | bytes) -> None:
    error = refusal(body)
    assert isinstance(error, MalformedRequest)
    assert error.expected
    assert error.got
    assert error.remedy


def test_malformed_body_names_line_and_column() -> None:
    error = refusal('{"model_type": "cnn_lstm_hybrid",\n "data": [[1, 2], [tru]]}')
    assert "line 2, column 21" in (error.got or "")


INVALID: dict[str, tuple[str | bytes, str]] = {
    "NaN": (HYBRID % "[[[1, 2, 3], [1, NaN, NaN]]]", "data[0][1][1]"),
    "Infinity": (HYBRID % "[[1, 2, 3], [1, 2, Infinity]]", "data[1][2]"),
    "-Infinity": (HYBRID % "[ [ -Infinity, 2], [1, 2]]", "data[0][0]"),
    "NaN elsewhere": (HYBRID[:-1] % "[[1], [1]]" + ', "covariate": NaN}', "covariate"),
    "NaN in a word": (HYBRID % '[["NaN"], [1]]', "data[0][0]"),
    "1e39": (HYBRID % "[[[1, 2, 3], [1, 2, 1e39]]]", "data[0][1][2]"),
    "1e999": (HYBRID % "[[1e999], [1]]", "data[0][0]"),
    "huge integer": (HYBRID % f"[[{10**400}], [1]]", "data[0][0]"),
    "a boolean": (HYBRID % "[[true], [1]]", "data[0][0]"),
    "null": (HYBRID % "[[[1], [null]]]", "data[0][1][0]"),
    "a string": (HYBRID % '[[[1], ["2"]]]', "data[0][1][0]"),
    "mixed depth": (HYBRID % "[[[1], [2]], [3]]", "data[1][0]"),
    "deeper later": (HYBRID % "[[1], [[2]]]", "data[1][0]"),
    "ragged rows": (HYBRID % "[[[1, 2], [1]]]", "data[0][1]"),
    "ragged samples": (HYBRID % "[[[1], [1]], [[1], [1], [1]]]", "data[1]"),
    "empty": (HYBRID % "[]", "data"),
    "empty rows": (HYBRID % "[[[], []]]", "data"),
    "null data": (HYBRID % "null", "data"),
    "a number": (HYBRID % "5", "data"),
    "an object": (HYBRID % '{"x": [[1]]}', "data"),
    "1-D": (HYBRID % "[1, 2]", "data"),
    "4-D": (HYBRID % "[[[[1], [2]]]]", "data"),
    "channels": (HYBRID % "[[[1], [2], [3]]]", "data"),
    "too long": (HYBRID % "[[[1, 2, 3, 4], [1, 2, 3, 4]]]", "data"),
    "too many rows": (HYBRID % json.dumps([[[1], [2]]] * 11), "data"),
    "deep": (HYBRID % ("[" * 9 + "]" * 9), "data"),
    "very deep": (HYBRID % ("[" * 100_000 + "]" * 100_000), ""),
    "not an object": ("[1, 2]", "The body"),
    "no data": ('{"model_type": "cnn_lstm_hybrid"}', "data"),
    "no type": ('{"data": [[1]]}', "model_type"),
    "type": ('{"data": [[1]], "model_type": 5}', "model_type"),
    "unknown field": (HYBRID[:-1] % "[[1], [1]]" + ', "colour": 1, "batchsize": 2}', "colour"),
} | {
    f"{field} {value}": (HYBRID[:-1] % "[[1], [1]]" + f', "{field}": {value}}}', field)
    for field, value in [
        ("batch_size", 0), ("batch_size", 1001), ("batch_size", '"a"'), ("batch_size", 2.5), ("interval", 0),
        ("interval", 1), ("interval_method", '"conformal"'), ("priority", 0), ("priority", 6), ("timeout_ms", 0),
        ("timeout_ms", -1), ("seed", -1), ("action_selection", '"best"'), ("weights", 3), ("weights", '{"a": -1}'),
        ("request_id", '""'), ("request_id", '"a b"'), ("request_id", f'"{"a" * 129}"'), ("use_ensemble", 1),
        ("covariate", '"1"'), ("return_attention", "null"),
    ]
}  # fmt: skip


@pytest.mark.parametrize(("body", "path"), INVALID.values(), ids=INVALID.keys())
def test_invalid_body_is_422_and_names_the_field_what_is_expected_and_what_came(body: str, path: str) -> None:
    error = refusal(body)
    assert isinstance(error, InvalidInput)
    assert error.expected
    assert error.got
    assert error.remedy
    if path:
        assert error.errors[0].path.startswith(path)


def test_unknown_fields_are_all_named_with_a_guess() -> None:
    error = refusal(HYBRID[:-1] % "[[1]]" + ', "batchsize": 1, "colour": 2}')
    assert [field.path for field in error.errors] == ["batchsize", "colour"]
    assert "batch_size" in (error.remedy or "")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (HYBRID % "[]", "an empty array"), (HYBRID % "[1, 2]", "1-D"), (HYBRID[:-3], "byte 42"), ('{"a', "byte 3"),
        (HYBRID % "[[[1], [null]]]", "Expected number"), (HYBRID % "5", "number"),
        (HYBRID[:-1] % "[[1]]" + ', "foo": 1, "quux": 2}', "Remove them."),
        (HYBRID[:-1] % "[[1]]" + ', "foo": 1}', "Remove it."),
    ],
)  # fmt: skip
def test_refusal_says_what_there_is(body: str, told: str) -> None:
    document = problem_document(refusal(body), request_id="r", instance="/")
    assert told in document["detail"]


def test_nan_says_nan() -> None:
    assert refusal(HYBRID % "[[[1], [NaN]]]").got == "NaN"
    assert refusal(HYBRID % "[[[1], [-Infinity]]]").got == "-Infinity"


def test_nan_in_a_large_body_is_still_found() -> None:
    sample = json.dumps([[0.123456789] * 3] * 2)
    error = refusal(HYBRID % ("[" + ", ".join([sample] * 150_000 + ["[[1], [NaN]]"]) + "]"))
    assert error.errors[0].path == "data[150000][1][0]"


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_decode_of_anything_answers_or_refuses(body: bytes) -> None:
    for decode in (decode_predict, decode_batch):
        assert status_of(lambda decode=decode: decode(body)) in (200, 400, 422)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*PREDICT_FIELDS, "other"]), JSON, max_size=6), JSON)
def test_any_json_answers_or_refuses(fields: dict[str, Any], data: Any) -> None:
    body = json.dumps({"model_type": "cnn_lstm_hybrid", "data": data} | fields).encode()
    assert status_of(lambda: read(body)) in (200, 400, 422)


def test_batch_decodes_members_as_they_are() -> None:
    batch = decode_batch(b'{"requests": [{"data": NaN}, 5, {"model_type": "NaN"}]}')
    assert batch.priority == 1
    assert bytes(batch.requests[2]) == b'{"model_type": "NaN"}'
    with pytest.raises(InvalidInput):
        decode_predict(bytes(batch.requests[1]))


def test_batch_nan_is_its_members_fault_alone() -> None:
    good = HYBRID % "[[1], [2]]"
    batch = decode_batch(f'{{"requests": [{good}, {HYBRID % "[[1], [NaN]]"}, {good}]}}'.encode())
    assert decode_predict(bytes(batch.requests[0])).data.tolist() == [[1.0], [2.0]]
    error = refusal(bytes(batch.requests[1]))
    assert error.errors[0].path == "data[1][0]"
    assert error.got == "NaN"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"requests": []}', InvalidInput),
        (b'{"requests": [' + b"{}, " * 100 + b"{}]}", TooManyRequestsInBatch),
        (b'{"requests": {}}', InvalidInput),
        (b'{"requests": [{}], "priority": 6}', InvalidInput),
        (b'{"requests": [{}], "colour": 6}', InvalidInput),
        (b"[]", InvalidInput),
        (b"", MalformedRequest),
        (b'{"requests": [NaN', MalformedRequest),
    ],
)
def test_batch_refuses(body: bytes, expected: type[ServingError]) -> None:
    with pytest.raises(expected) as caught:
        decode_batch(body)
    assert caught.value.expected
    assert caught.value.got
    assert caught.value.remedy


def test_every_field_is_explained() -> None:
    assert tuple(PREDICT_FIELDS) == PredictRequest.__struct_fields__
    assert tuple(BATCH_FIELDS) == BatchRequest.__struct_fields__
