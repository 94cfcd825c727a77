"""Bad input, case by case: the documented status, and a detail that says what was expected, what came, what to do."""

import json
import socket
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.checkpoints import SMALL, random_state, save_checkpoint
from tests.support.server import Server

TYPE = "cnn_lstm_hybrid"
CHANNELS, LENGTH = SMALL["input_dim"], SMALL["sequence_length"]
GOOD = np.zeros((CHANNELS, LENGTH)).tolist()


@pytest.fixture(scope="module")
def version(server: Server) -> str:
    path = server.registry / "input.pth"
    save_checkpoint(path, random_state(SMALL))
    body = {"model_type": TYPE, "version": "input", "file_path": path.name}
    response = httpx.post(f"{server.url}/api/v1/models/load", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return "input"


def window(**replaced: Any) -> Any:
    """A good window with one element replaced."""
    data = [list(row) for row in GOOD]
    data[2][3] = replaced["element"]
    return data


def text(data: str, **fields: Any) -> str:
    """A body whose `data` is the given JSON text."""
    head = json.dumps({"model_type": TYPE, "model_version": "input", **fields})
    return head[:-1] + f', "data": {data}}}'


ZEROS = json.dumps(GOOD)
CASES: list[tuple[str, str, int, list[str]]] = [
    ("cut off", text(ZEROS)[:-20], 400, ["JSON"]),
    ("not JSON", "model_type=cnn", 400, ["JSON"]),
    ("empty body", "", 400, ["JSON"]),
    ("not UTF-8", "\udcff\udcfe", 400, []),
    ("a list", "[1, 2]", 422, ["object"]),
    ("no data", json.dumps({"model_type": TYPE}), 422, ["data"]),
    ("no model type", json.dumps({"data": GOOD}), 422, ["model_type"]),
    ("model type a number", text(ZEROS, model_type=5), 422, ["model_type"]),
    ("data a string", text('"0, 1, 2"'), 422, ["data"]),
    ("data an object", text('{"x": 1}'), 422, ["data"]),
    ("data null", text("null"), 422, ["data"]),
    ("a string inside", text(json.dumps(window(element="1.5"))), 422, ["data[2][3]"]),
    ("a null inside", text(json.dumps(window(element=None))), 422, ["data[2][3]"]),
    ("a boolean inside", text(json.dumps(window(element=True))), 422, ["data[2][3]"]),
    ("NaN", text(json.dumps(window(element=float("nan")))), 422, ["data[2][3]"]),
    ("Infinity", text(json.dumps(window(element=float("inf")))), 422, ["data[2][3]"]),
    ("minus Infinity", text(json.dumps(window(element=float("-inf")))), 422, ["data[2][3]"]),
    ("overflow of float32", text(json.dumps(window(element=1e39))), 422, ["data[2][3]"]),
    ("overflow of float64", text(ZEROS.replace("0.0", "1e999", 1)), 422, ["data[0][0]"]),
    ("ragged", text(json.dumps([*GOOD[:-1], GOOD[-1][:-1]])), 422, ["data"]),
    ("mixed depth", text(json.dumps([*GOOD[:-1], 1.0])), 422, ["data"]),
    ("empty list", text("[]"), 422, ["data"]),
    ("empty rows", text("[[], []]"), 422, ["data"]),
    ("1-D", text("[1.0, 2.0]"), 422, [str(CHANNELS)]),
    ("4-D", text(json.dumps([[GOOD]])), 422, [str(CHANNELS)]),
    ("wrong channels", text(json.dumps(np.zeros((CHANNELS + 1, LENGTH + 5)).tolist())), 422, [str(CHANNELS)]),
    (
        "too long",
        text(json.dumps(np.zeros((CHANNELS, LENGTH + 1)).tolist())),
        422,
        [str(LENGTH), str(LENGTH + 1)],
    ),
    ("1,001 rows", text(json.dumps(np.zeros((1001, CHANNELS, 1)).tolist())), 422, ["1000", "1001"]),
    ("unknown model", text(ZEROS, model_type="nonesuch"), 404, ["nonesuch"]),
    ("unknown version", text(ZEROS, model_version="v9.9"), 404, ["v9.9", "input"]),
    ("unknown field", text(ZEROS, colour="red"), 422, ["colour"]),
    ("batch size 0", text(ZEROS, batch_size=0), 422, ["batch_size"]),
    ("batch size 1001", text(ZEROS, batch_size=1001), 422, ["batch_size"]),
    ("priority 6", text(ZEROS, priority=6), 422, ["priority"]),
    ("interval 1", text(ZEROS, interval=1.0), 422, ["interval"]),
    ("interval method", text(ZEROS, interval_method="magic"), 422, ["interval_method"]),
    ("timeout negative", text(ZEROS, timeout_ms=-1), 422, ["timeout_ms"]),
    ("deeply nested", text("[" * 100_000 + "]" * 100_000), 422, []),
    ("deeply nested, open", "[" * 1_000_000, 400, []),
    ("long version", text(ZEROS, model_version="v" * 10_000), 404, []),
]


@pytest.mark.parametrize(
    ("body", "status", "told"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
@pytest.mark.usefixtures("version")
def test_bad_prediction_has_its_status_and_says_why(
    api: httpx.Client, body: str, status: int, told: list[str]
) -> None:
    content = body.encode("utf-8", "surrogateescape")
    response = api.post("/api/v1/predict", content=content, headers={"Content-Type": "application/json"})
    problem = response.json()
    assert response.status_code == status, problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == response.headers["x-request-id"]
    assert len(problem["detail"]) < 2500
    everything = json.dumps(problem)
    for fragment in told:
        assert fragment in everything, problem
    assert "Traceback" not in response.text


def test_good_request_still_answers(api: httpx.Client, version: str) -> None:
    body = {"model_type": TYPE, "model_version": version, "data": GOOD, "request_id": "mine-1"}
    answer = api.post("/api/v1/predict", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["request_id"] == "mine-1"


def test_transposed_short_and_square_windows(api: httpx.Client, version: str) -> None:
    head = {"model_type": TYPE, "model_version": version}
    short = np.random.default_rng(1).normal(size=(CHANNELS, 5))
    straight = api.post("/api/v1/predict", json=head | {"data": short.tolist()}).json()
    turned = api.post("/api/v1/predict", json=head | {"data": short.T.tolist()}).json()
    assert straight["predictions"] == turned["predictions"]
    assert any("short" in warning or "5" in warning for warning in straight["warnings"])
    square = np.zeros((CHANNELS, CHANNELS)).tolist()
    assert any(
        "channels" in w for w in api.post("/api/v1/predict", json=head | {"data": square}).json()["warnings"]
    )


def test_batch_of_101_is_400_and_of_none_422(api: httpx.Client) -> None:
    one = {"model_type": TYPE, "data": GOOD}
    assert api.post("/api/v1/predict/batch", json={"requests": [one] * 101}).status_code == 400
    assert api.post("/api/v1/predict/batch", json={"requests": []}).status_code == 422


def test_one_bad_request_of_a_batch_fails_alone(api: httpx.Client, version: str) -> None:
    good = {"model_type": TYPE, "model_version": version, "data": GOOD}
    requests: list[Any] = [
        good,
        good | {"data": [[1.0]]},
        5,
        good | {"colour": 1},
        good | {"model_type": "x"},
        good,
    ]
    answer = api.post("/api/v1/predict/batch", json={"requests": requests}).json()
    assert (answer["total_requests"], answer["successful_predictions"], answer["failed_predictions"]) == (
        6,
        2,
        4,
    )
    statuses = [result.get("error", {}).get("status", 200) for result in answer["results"]]
    assert statuses == [200, 422, 422, 422, 404, 200]


@pytest.mark.parametrize("path", ["/api/v1/predict", "/api/v1/predict/batch", "/api/v1/models/load"])
def test_hundred_megabyte_body_is_413_before_it_is_read(server: Server, path: str) -> None:
    port = server.state["ports"]["api"]
    size = 100 * 1024 * 1024
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(65536)
    assert answer.split(b" ", 2)[1] == b"413", answer[:300]


def test_hundred_megabyte_chunked_body_is_413(server: Server) -> None:
    def chunks() -> Any:
        yield b'{"model_type": "x", "data": ['
        for _ in range(100):
            yield b"0," * (512 * 1024)

    try:
        response = httpx.post(
            f"{server.url}/api/v1/predict",
            content=chunks(),
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
    except (httpx.WriteError, httpx.ReadError):
        return  # answered and closed while we were still sending
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/api/v1/predict", 405), ("POST", "/api/v1/predict/nowhere", 404)],
)
def test_frameworks_own_errors_have_the_same_shape(
    api: httpx.Client, method: str, path: str, status: int
) -> None:
    response = api.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert set(response.json()) >= {"type", "title", "status", "detail", "instance", "request_id"}


def test_request_id_is_kept_when_valid_and_replaced_when_not(api: httpx.Client) -> None:
    assert api.get("/version", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert api.get("/version", headers={"X-Request-ID": "a b"}).headers["x-request-id"] != "a b"


def test_wrong_media_type_is_415(api: httpx.Client) -> None:
    response = api.post("/api/v1/predict", content=b"<x/>", headers={"Content-Type": "text/xml"})
    assert response.status_code == 415
    assert "application/json" in response.json()["detail"]
