"""The protocol's requests and answers as bytes, and what a model's signature makes of them."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from control_plane.errors import (
    InvalidInput,
    MalformedRequest,
    ServingError,
    UnknownExperiment,
    UnknownModel,
    UnknownVersion,
)
from control_plane.inference.decisions import UniformWeights
from control_plane.inference.open_inference import InferRequest, decode_infer
from control_plane.inference.open_inference_answers import TensorAnswer, encode_infer
from control_plane.inference.open_inference_names import find_model
from control_plane.inference.open_inference_tensors import DTYPES, plan_tensors
from control_plane.inference.plans import Plan
from control_plane.models.card import ModelCard
from tests.unit.inference.cards import CHANNELS, LENGTH, card, hybrid_card, rl_card, tensor, version_of
from tests.unit.inference.data_plane import data_plane
from tests.unit.inference.virtual_time import now, run

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def json_input(array: Any = ROWS, **replaced: Any) -> dict[str, Any]:
    array = np.asarray(array)
    datatype = next((name for name, dtype in DTYPES.items() if dtype == array.dtype), "BYTES")
    made = {"name": "x", "shape": list(array.shape), "datatype": datatype, "data": array.reshape(-1).tolist()}
    return {key: value for key, value in (made | replaced).items() if value is not ...}


def decode(body: dict[str, Any], **options: Any) -> InferRequest:
    return decode_infer(json.dumps(body).encode(), header_length=None, **({"name": "mine"} | options))


def decode_binary(body: dict[str, Any], *data: bytes, name: str = "mine") -> InferRequest:
    text = json.dumps(body).encode()
    return decode_infer(b"".join((text, *data)), header_length=len(text), name=name)


def plan(request: InferRequest, of: ModelCard | None = None) -> Plan:
    return plan_tensors(request, of or card("mine"), weights=UniformWeights(), max_rows=100)


@pytest.mark.parametrize("nested", [False, True])
def test_json_data_is_flat_or_nested(nested: bool) -> None:
    data = ROWS.tolist() if nested else ROWS.reshape(-1).tolist()
    planned = plan(decode({"inputs": [json_input(data=data)]}))
    np.testing.assert_array_equal(planned.inputs["x"], ROWS)
    assert (planned.rows, planned.outputs) == (2, ("y",))


@given(
    data=st.data(),
    datatype=st.sampled_from(sorted(DTYPES)),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    binary=st.booleans(),
)
def test_tensors_of_every_datatype_come_and_go_unchanged(
    data: st.DataObject, datatype: str, shape: tuple[int, ...], binary: bool
) -> None:
    dtype = DTYPES[datatype]
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    array = data.draw(arrays.arrays(dtype, shape, elements=arrays.from_dtype(dtype, **finite)))
    of = card("mine", inputs=(tensor("x", shape[1:], datatype),), outputs=(tensor("y", shape[1:], datatype),))
    if binary:
        size = {"binary_data_size": array.nbytes}
        body = {"inputs": [json_input(array, data=..., parameters=size)]}
        request = decode_binary(body | {"parameters": {"binary_data_output": True}}, array.tobytes())
    else:
        request = decode({"inputs": [json_input(array)]})
    sent = plan(request, of).inputs["x"]
    assert sent.dtype == dtype
    np.testing.assert_array_equal(sent, array)
    answer = encode_infer(request, TensorAnswer(model=version_of(of), outputs={"y": sent}))
    text = answer.body if answer.header_length is None else answer.body[: answer.header_length]
    output = json.loads(text)["outputs"][0]
    assert (answer.header_length is not None) == binary
    if answer.header_length is not None:
        assert output["parameters"] == {"binary_data_size": array.nbytes}
        got = np.frombuffer(answer.body[answer.header_length :], dtype)
    else:
        got = np.array(output["data"], dtype)
    np.testing.assert_array_equal(got.reshape(output["shape"]), array)
    assert output["datatype"] == datatype


def test_binary_tensors_follow_the_json_in_the_order_of_the_inputs() -> None:
    of = card("mine", inputs=(tensor("a", (1,)), tensor("b", (2,), "INT64"), tensor("c", (1,), "BOOL")))
    a, b, c = np.ones((2, 1), np.float32), np.array([[1, 2], [3, -4]]), np.array([[True], [False]])
    inputs = [
        json_input(c, name="c", data=..., parameters={"binary_data_size": 2}),
        json_input(a, name="a"),
        json_input(b, name="b", data=..., parameters={"binary_data_size": 32}),
    ]
    planned = plan(decode_binary({"inputs": inputs}, c.tobytes(), b.tobytes()), of)
    assert list(planned.inputs) == ["a", "b", "c"]
    for name, array in (("a", a), ("b", b), ("c", c)):
        np.testing.assert_array_equal(planned.inputs[name], array)


def test_binary_data_may_hold_nan_and_json_answers_null() -> None:
    array = np.array([[1, np.nan, np.inf, 4]], np.float32)
    request = decode_binary(
        {"inputs": [json_input(array, data=..., parameters={"binary_data_size": 16})]}, array.tobytes()
    )
    planned = plan(request)
    answer = encode_infer(
        request, TensorAnswer(model=version_of(card("mine")), outputs={"y": planned.inputs["x"]})
    )
    assert json.loads(answer.body)["outputs"][0]["data"] == [1, None, None, 4]


def test_outputs_come_as_asked_each_in_its_form() -> None:
    of = card("mine", outputs=(tensor("y", (4,), triton_name="y__0"), tensor("z", (1,), triton_name="z__1")))
    request = decode(
        {
            "id": "mine",
            "inputs": [json_input()],
            "outputs": [{"name": "z"}, {"name": "y", "parameters": {"binary_data": False}}],
            "parameters": {"binary_data_output": True},
        }
    )
    planned = plan(request, of)
    assert planned.outputs == ("z__1", "y__0")
    outputs = {"y__0": ROWS, "z__1": ROWS[:, :1]}
    answer = encode_infer(request, TensorAnswer(model=version_of(of), outputs=outputs))
    document = json.loads(answer.body[: answer.header_length])
    assert {key: document[key] for key in ("id", "model_name", "model_version")} == {
        "id": "mine",
        "model_name": "mine",
        "model_version": "v1.0",
    }
    assert document["outputs"] == [
        {"name": "z", "datatype": "FP32", "shape": [2, 1], "parameters": {"binary_data_size": 8}},
        {"name": "y", "datatype": "FP32", "shape": [2, 4], "data": ROWS.reshape(-1).tolist()},
    ]
    assert answer.body[answer.header_length :] == ROWS[:, :1].tobytes()


def test_requests_share_a_call_only_with_their_like() -> None:
    of = card("mine", inputs=(tensor("x", (-1,)),), outputs=(tensor("y", (4,)), tensor("z", (4,))))
    wide = np.ones((1, 5), np.float32)
    lanes = [
        plan(decode(body), of).lane
        for body in (
            {"inputs": [json_input()]},
            {"inputs": [json_input(ROWS[:1])]},
            {"inputs": [json_input(wide)]},
            {"inputs": [json_input()], "outputs": [{"name": "y"}]},
        )
    ]
    assert lanes[0] == lanes[1]
    assert len(set(lanes)) == 3


def test_rl_ensemble_without_weights_weighs_its_agents_equally() -> None:
    x = np.ones((3, CHANNELS), np.float32)
    planned = plan(decode({"inputs": [json_input(x)]}), rl_card())
    np.testing.assert_array_equal(planned.inputs["weights"], np.full((3, 2), 0.5, np.float32))
    weights = np.array([[1, 0]] * 3, np.float32)
    planned = plan(decode({"inputs": [json_input(weights, name="weights"), json_input(x)]}), rl_card())
    np.testing.assert_array_equal(planned.inputs["weights"], weights)
    assert list(planned.inputs) == ["x", "weights"]


@pytest.mark.parametrize(("steps", "fits"), [(1, True), (LENGTH, True), (LENGTH + 1, False)])
def test_hybrid_takes_windows_up_to_its_length(steps: int, fits: bool) -> None:
    request = decode({"inputs": [json_input(np.zeros((1, CHANNELS, steps), np.float32))]})
    if fits:
        assert list(plan(request, hybrid_card()).inputs) == ["x__0"]
    else:
        with pytest.raises(InvalidInput, match="doesn't fit") as raised:
            plan(request, hybrid_card())
        assert raised.value.expected == f"[batch, {CHANNELS}, 1..{LENGTH}]"


@pytest.mark.parametrize(
    ("parameters", "priority", "timeout_s"),
    [
        (None, 3, None),
        ({"priority": 0, "timeout": 0}, 3, None),
        ({"priority": 1, "timeout": 1_500_000}, 1, 1.5),
        ({"priority": 9, "timeout": 10**12}, 5, 600.0),
    ],
)
def test_priority_and_timeout(parameters: Any, priority: int, timeout_s: float | None) -> None:
    request = decode({"inputs": [json_input()], "parameters": parameters})
    assert (request.priority, request.timeout_s) == (priority, timeout_s)


def test_parameters_of_others_are_ignored() -> None:
    parameters = {"content_type": "np", "headers": {"a": "b"}, "sequence_id": 0, "routing_key": "ada"}
    request = decode({"inputs": [json_input(parameters={"content_type": "np"})], "parameters": parameters})
    assert request.routing_key == "ada"
    np.testing.assert_array_equal(plan(request).inputs["x"], ROWS)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"name": "z"}, "unknown input"),
        ({"datatype": "FP64"}, "is not the model's"),
        ({"datatype": "BYTES", "data": ["a"] * 8}, "is not the model's"),
        ({"shape": [2, 3]}, "doesn't fit"),
        ({"shape": [8]}, "doesn't fit"),
        ({"shape": [0, 4], "data": []}, "doesn't fit"),
        ({"shape": [101, 4]}, "too many rows"),
        ({"shape": [3, 4]}, "another number of elements"),
        ({"shape": [2**40, 2**40, 2**40]}, "doesn't fit"),
        ({"shape": [-1, 4]}, "is wrong"),
        ({"shape": [1] * 9}, "is wrong"),
        ({"shape": "2"}, "is wrong"),
        ({"data": [[0, 1], [2, 3], [4, 5], [6, 7]]}, "is not nested as shape says"),
        ({"data": [[1], [2, 3]]}, "ragged"),
        ({"data": ["a"] * 8}, "is wrong"),
        ({"data": [1e39] * 8}, "overflows"),
        ({"data": [float("nan")] * 8}, "finite"),
        ({"data": 5}, "not an array"),
        ({"data": None}, "has no data"),
        ({"data": ...}, "has no data"),
        ({"parameters": {"binary_data_size": 32}}, "has its data twice"),
        ({"data": ..., "parameters": {"binary_data_size": 32}}, "more than there is"),
        ({"data": ..., "parameters": {"binary_data_size": -1}}, "binary_data_size is wrong"),
        ({"data": ..., "parameters": {"shared_memory_region": "a"}}, "Shared memory"),
        ({"parameters": []}, "is wrong"),
    ],
)
def test_wrong_input_is_refused_with_its_reason(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        plan(decode({"inputs": [json_input(**changed)]}))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"inputs": [json_input(), json_input()]}, "given twice"),
        ({"outputs": [{"name": "q"}]}, "no output of the model"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "given twice"),
        ({"outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "Classification"),
        ({"outputs": [{"name": "y", "parameters": {"shared_memory_region": "a"}}]}, "Shared memory"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": 3}}]}, "binary_data is wrong"),
        ({"parameters": {"priority": -1}}, "priority is wrong"),
        ({"parameters": {"timeout": "soon"}}, "timeout is wrong"),
        ({"parameters": {"sequence_id": 4}}, "Sequences"),
        ({"id": "x" * 300}, "id"),
    ],
)
def test_wrong_request_is_refused_with_its_reason(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        plan(decode({"inputs": [json_input()]} | changed))


@pytest.mark.parametrize(
    ("body", "header_length", "text"),
    [
        (b"", None, "empty"),
        (b"{", None, "not valid JSON"),
        (b"\xff{}", None, "JSON|UTF-8"),
        (b"[" * 5000, None, "nested too deeply|not valid"),
        (b"{}", 0, "Inference-Header-Content-Length"),
        (b"{}", 3, "Inference-Header-Content-Length"),
    ],
)
def test_what_is_no_json_is_malformed(body: bytes, header_length: int | None, text: str) -> None:
    with pytest.raises(MalformedRequest, match=text):
        decode_infer(body, header_length=header_length, name="mine")


def test_sizes_of_binary_data_are_checked() -> None:
    body = {"inputs": [json_input(data=..., parameters={"binary_data_size": 32})]}
    for data, text in ((b"\0" * 33, "leave binary data over"), (b"\0" * 31, "more than there is")):
        with pytest.raises(InvalidInput, match=text):
            plan(decode_binary(body, data))
    short = {"inputs": [json_input(data=..., parameters={"binary_data_size": 28})]}
    with pytest.raises(InvalidInput, match="not the size of the shape"):
        plan(decode_binary(short, b"\0" * 28))
    of = card("mine", inputs=(tensor("x", (1,), "BOOL"),))
    flag = {"inputs": [json_input(np.array([[True]]), data=..., parameters={"binary_data_size": 1})]}
    with pytest.raises(InvalidInput, match="no BOOL"):
        plan(decode_binary(flag, b"\2"), of)


@given(body=st.binary(max_size=200), header_length=st.none() | st.integers(-5, 220))
def test_any_bytes_are_decoded_or_refused(body: bytes, header_length: int | None) -> None:
    with contextlib.suppress(ServingError):
        decode_infer(body, header_length=header_length, name="mine")


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["name", "shape", "datatype", "data", "parameters", "binary_data_size"]),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_as_an_input_is_planned_or_refused(value: Any) -> None:
    for body in (
        {"inputs": [value]},
        {"inputs": [json_input()], "outputs": value},
        {"inputs": [json_input(data=value)]},
    ):
        with contextlib.suppress(ServingError):
            plan(decode(body))


def test_names_stand_for_versions(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            for name, version, found in (
                ("cnn_lstm_hybrid", None, "cnn_lstm_hybrid-v1.1"),
                ("cnn_lstm_hybrid", "1.0", "cnn_lstm_hybrid-v1.0"),
                ("cnn_lstm_hybrid-v1.0", None, "cnn_lstm_hybrid-v1.0"),
                ("cnn_lstm_hybrid-1.0", None, "cnn_lstm_hybrid-v1.0"),
                ("cnn_lstm_hybrid-v1.0", "1", "cnn_lstm_hybrid-v1.0"),
                ("cnn_lstm_hybrid-v1.0", "v1.0", "cnn_lstm_hybrid-v1.0"),
                ("cnn_lstm_hybrid-latest", None, "cnn_lstm_hybrid-v1.1"),
            ):
                assert find_model(plane.registry, name, version).key == found
            for name, version, error in (
                ("nonesuch", None, UnknownModel),
                ("nonesuch-v1", None, UnknownModel),
                ("cnn_lstm_hybrid-v1.0", "v1.1", InvalidInput),
            ):
                with pytest.raises(error):
                    find_model(plane.registry, name, version)

    run(scenario())


def test_inference_goes_the_way_of_predictions(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            request = decode({"inputs": [json_input(np.ones((70, 4), np.float32))]})
            answer = await plane.predictor.infer(request, received=now(), request_id="r")
            np.testing.assert_array_equal(answer.outputs["y"], np.full((70, 4), 2, np.float32))
            assert plane.cache.loads == ["mine-v2"]
            assert plane.cache.in_flight == {"mine-v2": 0}
            assert sorted(plane.triton.calls) == [("mine-v2", 6), ("mine-v2", 64)]
            other = decode({"inputs": [json_input()], "parameters": {"experiment_id": "spring"}})
            with pytest.raises(UnknownExperiment):
                await plane.predictor.infer(other, received=now(), request_id="r")
            unknown = decode({"inputs": [json_input()]}, name="mine", version="v9")
            with pytest.raises((UnknownVersion, ServingError)):
                await plane.predictor.infer(unknown, received=now(), request_id="r")

    run(scenario())


def test_url_and_parameter_may_not_name_different_versions() -> None:
    body = {"inputs": [json_input()], "parameters": {"model_version": "v2"}}
    assert decode(body).version == "v2"
    assert decode(body, version="v2").version == "v2"
    with pytest.raises(InvalidInput, match="names another version"):
        decode(body, version="v1")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"inputs": [{"name": "x", "shape": [1, -12], "datatype": "FP32", "data": []}]}, "integer >= 0"),
        ({"parameters": {"on_overload": "wait"}}, "'reject' or 'degrade'"),
        ({"parameters": {"on_overload": 5}}, "'reject' or 'degrade'"),
        ({"outputs": [{"name": "z"}]}, "outputs among y, each at most once"),
    ],
)
def test_refusal_says_what_is_expected_there(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        plan(decode({"inputs": [json_input()]} | changed))
    assert raised.value.expected == expected
