"""Open Inference Protocol: the real `tritonclient.http` on the real server, and the same tensors sent to Triton."""

import hashlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import onnx
import pytest
import tritonclient.http as triton_http
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import InferenceServerClient as GrpcClient
from tritonclient.grpc import InferInput as GrpcInput
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.support.checkpoints import SMALL, random_state, save_checkpoint
from tests.support.repository import FEATURES, marker_of, write_identity_like_model
from tests.support.server import Server, wait_until
from tests.unit.inference.cards import card, tensor

HYBRID = "cnn_lstm_hybrid"
ROWS = np.arange(2 * FEATURES, dtype=np.float32).reshape(2, FEATURES)
TYPES = {
    "FP16": (TensorProto.FLOAT16, np.float16),
    "FP32": (TensorProto.FLOAT, np.float32),
    "FP64": (TensorProto.DOUBLE, np.float64),
    "INT8": (TensorProto.INT8, np.int8),
    "INT32": (TensorProto.INT32, np.int32),
    "INT64": (TensorProto.INT64, np.int64),
    "UINT8": (TensorProto.UINT8, np.uint8),
    "BOOL": (TensorProto.BOOL, np.bool_),
}


@pytest.fixture
def client(server: Server) -> Iterator[triton_http.InferenceServerClient]:
    with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as made:
        yield made


@pytest.fixture
def kind(server: Server) -> str:
    """A type of the test's own with the versions v1.0 and v1.1, known to the server."""
    name = f"oip{uuid.uuid4().hex[:8]}"
    for version in ("v1.0", "v1.1"):
        write_identity_like_model(server.repository, name, version)
    know(server, name, "v1.1")
    return name


def know(server: Server, model_type: str, version: str) -> None:
    """Waits until the worker has seen what was put into the repository."""

    def is_known() -> bool:
        return httpx.get(f"{server.url}/api/v1/models/{model_type}/{version}").status_code == 200

    wait_until(is_known, timeout_s=30, what=f"{model_type} {version} registered")


def infer_input(name: str, array: np.ndarray, *, binary: bool = True) -> triton_http.InferInput:
    made = triton_http.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def direct(server: Server, model: str, inputs: dict[str, np.ndarray], outputs: list[str]) -> dict[str, Any]:
    """What Triton answers itself, by its own names."""
    tensors = []
    for name, array in inputs.items():
        tensors.append(GrpcInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    with GrpcClient(server.grpc_url) as grpc:
        result = grpc.infer(model, tensors)
    return {name: result.as_numpy(name) for name in outputs}


def write_copies(repository: Path, model_type: str) -> None:
    """Publishes a model with an input and an output of each datatype, `out_X = x`, each [batch, 3]."""
    name = f"{model_type}-v1"
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in_{one}"], [f"out_{one}"]) for one in TYPES],
        "copies",
        [helper.make_tensor_value_info(f"in_{one}", proto, ["b", 3]) for one, (proto, _) in TYPES.items()],
        [helper.make_tensor_value_info(f"out_{one}", proto, ["b", 3]) for one, (proto, _) in TYPES.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    artefact = model.SerializeToString()
    config = model_config_pb2.ModelConfig(name=name, backend="onnxruntime", max_batch_size=64)
    for one in TYPES:
        datatype = model_config_pb2.DataType.Value(f"TYPE_{one}")
        config.input.add(name=f"in_{one}", data_type=datatype, dims=[3])
        config.output.add(name=f"out_{one}", data_type=datatype, dims=[3])
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
    described = card(
        model_type,
        "v1",
        inputs=tuple(tensor(f"in_{one}", (3,), one) for one in TYPES),
        outputs=tuple(tensor(f"out_{one}", (3,), one) for one in TYPES),
        checksums={"1/model.onnx": hashlib.sha256(artefact).hexdigest()},
        size_bytes=len(artefact),
    )
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.onnx").write_bytes(artefact)
    (repository / name / "config.pbtxt").write_text(text_format.MessageToString(config))
    (repository / name / "model.json").write_bytes(msgspec.json.encode(described))


def test_server_health_and_metadata(client: triton_http.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata["name"] == "model-serving"
    assert {"binary_tensor_data", "model_repository", "schedule_policy"} <= set(metadata["extensions"])


def test_model_metadata_and_configuration(client: triton_http.InferenceServerClient, kind: str) -> None:
    tensors = [{"name": "x", "datatype": "FP32", "shape": [-1, FEATURES]}]
    metadata = client.get_model_metadata(kind)
    assert metadata["versions"] == ["v1.1", "v1.0"]
    assert metadata["inputs"] == tensors
    assert client.get_model_metadata(f"{kind}-v1.0")["versions"] == ["v1.0"]
    assert client.get_model_metadata(kind, "v1.0")["versions"] == ["v1.0"]
    config = client.get_model_config(f"{kind}-v1.0")
    assert config["max_batch_size"] == 64
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [FEATURES]}]
    with pytest.raises(InferenceServerException, match=f"'{kind}no' is registered") as raised:
        client.get_model_metadata(f"{kind}no")
    assert raised.value.status() == "404"


def test_model_is_loaded_listed_and_unloaded(client: triton_http.InferenceServerClient, kind: str) -> None:
    def listed() -> dict[str, str]:
        return {row["name"]: row["state"] for row in client.get_model_repository_index()}

    name = f"{kind}-v1.0"
    assert listed()[name] == "UNAVAILABLE"
    assert not client.is_model_ready(name)
    client.load_model(name)
    assert client.is_model_ready(name)
    assert client.is_model_ready(kind, "v1.0")
    assert listed()[name] == "READY"
    client.unload_model(name)
    assert not client.is_model_ready(name)
    for fault in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"a"}}):
        if "files" not in fault:
            with pytest.raises(InferenceServerException, match="can't bring a configuration or files"):
                client.load_model(name, **fault)
    with pytest.raises(InferenceServerException, match="is registered"):
        client.load_model("nonesuch-v1")


def test_load_finds_what_was_put_into_the_repository_just_now(
    server: Server, client: triton_http.InferenceServerClient
) -> None:
    name = f"oip{uuid.uuid4().hex[:8]}"
    write_identity_like_model(server.repository, name, "v1")
    client.load_model(f"{name}-v1")
    assert client.is_model_ready(name)


@pytest.mark.parametrize("binary_in", [False, True], ids=["json-in", "binary-in"])
@pytest.mark.parametrize("outputs", [None, False, True], ids=["all-out", "json-out", "binary-out"])
def test_infer_equals_direct_triton(
    server: Server,
    client: triton_http.InferenceServerClient,
    kind: str,
    *,
    binary_in: bool,
    outputs: bool | None,
) -> None:
    wanted = None if outputs is None else [triton_http.InferRequestedOutput("y", binary_data=outputs)]
    name = f"{kind}-v1.0"
    answer = client.infer(
        name, [infer_input("x", ROWS, binary=binary_in)], outputs=wanted, request_id="mine 1"
    )
    np.testing.assert_array_equal(answer.as_numpy("y"), direct(server, name, {"x": ROWS}, ["y"])["y"])
    assert answer.get_response()["id"] == "mine 1"
    assert answer.get_response()["model_version"] == "v1.0"


def test_names_of_a_version(server: Server, client: triton_http.InferenceServerClient, kind: str) -> None:
    moved = httpx.put(f"{server.url}/api/v1/models/{kind}/aliases/production", json={"version": "v1.0"})
    assert moved.status_code == 200, moved.text
    inputs = [infer_input("x", ROWS)]
    for name, version, parameters, answering in (
        (kind, "", None, "v1.1"),
        (kind, "latest", None, "v1.1"),
        (kind, "v1.0", None, "v1.0"),
        (kind, "production", None, "v1.0"),
        (f"{kind}-v1.0", "", None, "v1.0"),
        (f"{kind}-v1.0", "1", None, "v1.0"),
        (f"{kind}-production", "", None, "v1.0"),
        (kind, "", {"model_version": "production"}, "v1.0"),
        (kind, "", {"routing_key": "ada", "experiment_id": "none"}, "v1.1"),
    ):
        answer = client.infer(name, inputs, model_version=version, parameters=parameters)
        np.testing.assert_allclose(answer.as_numpy("y"), ROWS + marker_of(kind, answering), rtol=1e-6)
        assert answer.get_response()["model_name"] == name
        assert answer.get_response()["model_version"] == answering


def test_every_datatype_travels_unchanged_in_json_and_in_binary(
    server: Server, client: triton_http.InferenceServerClient
) -> None:
    name = f"oip{uuid.uuid4().hex[:8]}"
    write_copies(server.repository, name)
    client.load_model(f"{name}-v1")
    arrays = {
        f"in_{one}": (np.array([[0, 1, 100], [1, 0, 3]]).astype(dtype)) for one, (_, dtype) in TYPES.items()
    }
    arrays["in_INT64"][0, 0] = -(2**62) - 1
    wanted = direct(server, f"{name}-v1", arrays, [f"out_{one}" for one in TYPES])
    for binary in (True, False):
        answer = client.infer(
            name,
            [infer_input(key, array, binary=binary) for key, array in arrays.items()],
            outputs=[triton_http.InferRequestedOutput(f"out_{one}", binary_data=binary) for one in TYPES],
        )
        for one, (_, dtype) in TYPES.items():
            got = answer.as_numpy(f"out_{one}")
            assert got.dtype == np.dtype(dtype)
            np.testing.assert_array_equal(got, wanted[f"out_{one}"])
            np.testing.assert_array_equal(got, arrays[f"in_{one}"])


@pytest.mark.parametrize("model_format", ["onnx", "torchscript"])
def test_hybrid_has_plain_names_and_equals_direct_triton(
    server: Server, api: httpx.Client, client: triton_http.InferenceServerClient, model_format: str
) -> None:
    version = f"oip-{model_format}"
    path = server.registry / f"{version}.pth"
    save_checkpoint(path, random_state(SMALL, seed=5), SMALL)
    body = {"model_type": HYBRID, "version": version, "file_path": path.name, "format": model_format}
    loaded = api.post("/api/v1/models/load", json=body)
    assert loaded.status_code == 200, loaded.text
    described = api.get(f"/api/v1/models/{HYBRID}/{version}").json()["card"]
    names = {one["name"]: one["triton_name"] for one in described["outputs"]}
    x = (
        np.random.default_rng(0)
        .normal(size=(3, SMALL["input_dim"], SMALL["sequence_length"]))
        .astype(np.float32)
    )
    answer = client.infer(f"{HYBRID}-{version}", [infer_input("x", x)])
    wanted = direct(
        server, f"{HYBRID}-{version}", {described["inputs"][0]["triton_name"]: x}, list(names.values())
    )
    assert {one["name"] for one in answer.get_response()["outputs"]} == set(names)
    for name, triton_name in names.items():
        np.testing.assert_allclose(answer.as_numpy(name), wanted[triton_name], rtol=1e-5, atol=1e-6)
    too_long = np.zeros((1, SMALL["input_dim"], SMALL["sequence_length"] + 1), np.float32)
    with pytest.raises(InferenceServerException, match=r"inputs\.x\.shape doesn't fit the model"):
        client.infer(f"{HYBRID}-{version}", [infer_input("x", too_long)])


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_request_is_read(
    client: triton_http.InferenceServerClient, kind: str, algorithm: str
) -> None:
    rows = np.tile(ROWS, (100, 1))
    answer = client.infer(
        kind, [infer_input("x", rows)], request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )  # fmt: skip
    np.testing.assert_allclose(answer.as_numpy("y"), rows + marker_of(kind, "v1.1"), rtol=1e-6)


def test_priority_and_timeout_reach_the_queue(client: triton_http.InferenceServerClient, kind: str) -> None:
    inputs = [infer_input("x", ROWS)]
    assert client.infer(kind, inputs, priority=1, timeout=30_000_000).as_numpy("y").shape == ROWS.shape
    with pytest.raises(InferenceServerException, match="deadline") as raised:
        client.infer(kind, inputs, timeout=1)
    assert raised.value.status() == "504"


def test_refusals_say_why(client: triton_http.InferenceServerClient, kind: str) -> None:
    good = [infer_input("x", ROWS)]
    for inputs, options, status, text in (
        ([infer_input("z", ROWS)], {}, "422", "unknown input"),
        ([infer_input("x", ROWS.astype(np.float64))], {}, "422", "FP32; got FP64"),
        ([infer_input("x", ROWS[:, :2])], {}, "422", r"\[batch, 4\]; got \[2, 2\]"),
        ([infer_input("x", np.array([[b"a"] * 4], dtype=object))], {}, "422", "FP32; got BYTES"),
        ([infer_input("x", np.zeros((1001, 4), np.float32))], {}, "422", "at most 1000 rows"),
        (good, {"outputs": [triton_http.InferRequestedOutput("q")]}, "422", "no output of the model"),
        (good, {"outputs": [triton_http.InferRequestedOutput("y", class_count=2)]}, "422", "Classification"),
        (good, {"sequence_id": 7}, "422", "Sequences"),
        (good, {"parameters": {"experiment_id": "spring"}}, "404", "no active experiment 'spring'"),
        (good, {"model_version": "v9"}, "404", "no version or alias 'v9'"),
    ):
        with pytest.raises(InferenceServerException, match=text) as raised:
            client.infer(kind, inputs, **options)
        assert raised.value.status() == status, text


def test_request_as_the_mlserver_client_sends_it(server: Server, kind: str) -> None:
    """Its codecs' JSON: every optional member there as null, `parameters.content_type`, the data flat."""
    body = {
        "id": None,
        "parameters": {"content_type": "np", "headers": None},
        "inputs": [
            {
                "name": "x",
                "shape": list(ROWS.shape),
                "datatype": "FP32",
                "parameters": {"content_type": "np"},
                "data": ROWS.flatten().tolist(),
            }
        ],
        "outputs": None,
    }
    response = httpx.post(f"{server.url}/v2/models/{kind}/infer", json=body)
    assert response.status_code == 200, response.text
    output = response.json()["outputs"][0]
    assert set(output) == {"name", "shape", "datatype", "data"}
    values = np.array(output["data"], np.float32).reshape(output["shape"])
    np.testing.assert_allclose(values, ROWS + marker_of(kind, "v1.1"), rtol=1e-6)
    body["inputs"][0]["data"] = ROWS.tolist()
    assert httpx.post(f"{server.url}/v2/models/{kind}/infer", json=body).json() == response.json()


def test_inference_counts_as_a_prediction(
    server: Server, client: triton_http.InferenceServerClient, kind: str
) -> None:
    client.infer(kind, [infer_input("x", ROWS)])
    stats = httpx.get(f"{server.url}/api/v1/models/cache/stats").json()
    assert any(row["key"] == f"{kind}-v1.1" and row["usage_count"] == 1 for row in stats["models"])
    text = httpx.get(f"{server.url}/metrics").text
    (line,) = [
        one for one in text.splitlines() if one.startswith("prediction_requests_total{") and kind in one
    ]
    assert 'outcome="ok"' in line
    assert line.endswith(" 1.0")


def test_paths_and_methods_that_are_not_there(server: Server) -> None:
    missing = httpx.get(f"{server.url}/v2/models/a/b/c")
    assert (missing.status_code, set(missing.json())) == (404, {"error"})
    refused = httpx.get(f"{server.url}/v2/repository/index")
    assert (refused.status_code, refused.headers["allow"], set(refused.json())) == (405, "POST", {"error"})
    document = json.loads(httpx.get(f"{server.url}/openapi.json").text)
    assert "/v2/models/{name}/versions/{version}/infer" in document["paths"]
