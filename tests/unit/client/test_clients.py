"""Both clients over a transport in memory: what they send, and what they make of each answer."""

import asyncio
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import control_plane.client as package
from control_plane.client import (
    AgentPosterior,
    AsyncClient,
    BadAnswer,
    BodyFormat,
    Client,
    ClientError,
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    FailedPrediction,
    FeedbackItem,
    Forbidden,
    InvalidRequest,
    NotFound,
    Prediction,
    PredictItem,
    RetryPolicy,
    ServerFailed,
    ServiceUnavailable,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
)
from control_plane.inference.identifiers import time_of

FAST = RetryPolicy(first_pause_s=0.001, longest_pause_s=0.002)
WINDOW = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
PREDICTION = {
    "request_id": "r",
    "model_type": "cnn_lstm_hybrid",
    "model_version": "v1.0",
    "predictions": {
        "classification_probs": [[0.2, 0.3, 0.5]],
        "classification_pred": [2],
        "regression_pred": [[None]],
        "agents": {"ppo": {"value": [1.5]}},
    },
    "uncertainty": {
        "regression_uncertainty": [[0.1]],
        "ensemble_weights": None,
        "interval": {"level": 0.9, "lower": [[0.0]], "upper": [[1.0]], "method": "mc", "calibrated": False},
        "entropy": [0.4],
        "aleatoric": [0.3],
        "epistemic": [0.1],
    },
    "confidence_scores": [0.5],
    "processing_time_ms": 1.5,
    "timestamp": "2026-01-02T03:04:05.678Z",
    "ab_test_group": None,
    "warnings": ["short"],
    "new_in_a_later_release": 1,
}


class Server:
    """Answers each request with the next of its answers, the last one for good."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, tuple):
            return httpx.Response(answer[0], json=answer[1], headers=answer[2] if len(answer) > 2 else {})
        return httpx.Response(200, json=answer)


Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Calls a method of either client: `ask(server, "predict", …)`."""

    def sync(
        server: Server, method: str, *arguments: Any, made: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        transport = httpx.MockTransport(server)
        with Client("http://serving", transport=transport, **({"retries": FAST} | (made or {}))) as client:
            return getattr(client, method)(*arguments, **options)

    def through_async(
        server: Server, method: str, *arguments: Any, made: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        async def scenario() -> Any:
            transport = httpx.MockTransport(server)
            async with AsyncClient(
                "http://serving", transport=transport, **({"retries": FAST} | (made or {}))
            ) as one:
                return await getattr(one, method)(*arguments, **options)

        return asyncio.run(scenario())

    return sync if request.param == "sync" else through_async


def problem(
    status: int, slug: str = "queue-full", **headers: str
) -> tuple[int, dict[str, Any], dict[str, str]]:
    document = {
        "type": f"/docs/errors#{slug}",
        "title": "T",
        "status": status,
        "detail": "d",
        "request_id": "r",
    }
    return status, document | {"errors": [{"path": "data", "message": "m"}]}, headers


def test_prediction_is_typed_with_numpy_arrays(ask: Ask) -> None:
    answer = ask(Server(PREDICTION), "predict", "cnn_lstm_hybrid", WINDOW)
    assert isinstance(answer, Prediction)
    assert answer.predictions["classification_probs"].shape == (1, 3)
    assert answer.predictions["classification_pred"].dtype == np.int64
    assert np.isnan(answer.predictions["regression_pred"]).all()
    np.testing.assert_array_equal(answer.predictions["agents"]["ppo"]["value"], [1.5])
    assert answer.uncertainty.interval.upper.shape == (1, 1)
    assert answer.uncertainty.ensemble_weights is None
    assert answer.uncertainty.agreement is None
    assert answer.timestamp == datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC)
    assert answer.warnings == ("short",)
    with pytest.raises(AttributeError):
        answer.model_version = "v2"


def test_data_goes_as_npy_with_options_in_the_query(ask: Ask) -> None:
    server = Server(PREDICTION)
    ask(
        server, "predict", "cnn_lstm_hybrid", WINDOW,
        model_version="v1.0", use_ensemble=False, weights={"ppo": 1.0}, timeout_ms=5000, interval=0.5,
    )  # fmt: skip
    (request,) = server.requests
    assert request.headers["content-type"] == "application/x-npy"
    np.testing.assert_array_equal(np.load(io.BytesIO(request.content)), WINDOW)
    query = dict(request.url.params)
    assert 0 < float(query.pop("timeout_ms")) <= 5000
    assert query == {
        "model_type": "cnn_lstm_hybrid",
        "model_version": "v1.0",
        "use_ensemble": "false",
        "weights": '{"ppo": 1.0}',
        "interval": "0.5",
    }


@pytest.mark.parametrize("data", [WINDOW, WINDOW.tolist(), {"x": WINDOW}])
def test_data_goes_as_json_where_asked_and_for_several_inputs(ask: Ask, data: Any) -> None:
    server = Server(PREDICTION)
    body_format = BodyFormat.NPY if isinstance(data, dict) else BodyFormat.JSON
    ask(server, "predict", "mine", data, made={"body_format": body_format}, priority=1, seed=None)
    body = json.loads(server.requests[0].content)
    assert 0 < body.pop("timeout_ms") <= 30_000
    wanted = {"x": WINDOW.tolist()} if isinstance(data, dict) else WINDOW.tolist()
    assert body == {"model_type": "mine", "data": wanted, "priority": 1}


def test_server_without_npy_gets_json(ask: Ask) -> None:
    server = Server(problem(415, "unsupported-media-type"), PREDICTION)
    assert ask(server, "predict", "mine", WINDOW).model_version == "v1.0"
    assert [one.headers["content-type"] for one in server.requests] == [
        "application/x-npy",
        "application/json",
    ]
    with pytest.raises(UnsupportedMediaType):
        ask(Server(problem(415)), "predict", "mine", WINDOW)


def test_overload_and_lost_connections_are_tried_again_as_one_request(ask: Ask) -> None:
    server = Server(
        problem(503), httpx.ReadError("reset"), httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("closed"), PREDICTION,
    )  # fmt: skip
    ask(server, "predict", "mine", WINDOW)
    assert len(server.requests) == 5
    ids = {one.headers["x-request-id"] for one in server.requests}
    assert len(ids) == 1
    made = time_of(ids.pop())
    assert made is not None  # a UUIDv7, by which the server knows how old feedback is
    assert abs(made - time.time()) < 60
    left = [float(one.url.params["timeout_ms"]) for one in server.requests]
    assert left == sorted(left, reverse=True)


def test_retries_end(ask: Ask) -> None:
    server = Server(problem(503, "queue-full", **{"Retry-After": "0"}))
    with pytest.raises(ServiceUnavailable) as raised:
        ask(server, "predict", "mine", WINDOW)
    assert len(server.requests) == 5
    assert raised.value.problem.slug == "queue-full"
    server = Server(problem(503, "queue-full", **{"Retry-After": "20"}))
    with pytest.raises(ServiceUnavailable) as raised:
        ask(server, "predict", "mine", WINDOW, timeout_ms=3000)
    assert len(server.requests) == 1
    assert raised.value.retry_after_s == 20.0


def test_what_may_not_be_sent_twice_is_not(ask: Ask) -> None:
    server = Server(httpx.ReadError("reset"))
    with pytest.raises(ConnectionFailed):
        ask(server, "remove_alias", "mine", "production")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(400), InvalidRequest), (problem(401), Unauthorized), (problem(403), Forbidden),
        (problem(404), NotFound), (problem(409), Conflict), (problem(422), InvalidRequest),
        (problem(429), TooManyRequests), (problem(500), ServerFailed), (problem(504), DeadlineExceeded),
        (httpx.ReadTimeout("slow"), DeadlineExceeded), (httpx.ConnectError("no"), ConnectionFailed),
        ((302, None), BadAnswer), ([], BadAnswer), ({}, BadAnswer), (PREDICTION | {"timestamp": "x"}, BadAnswer),
        (PREDICTION | {"predictions": {"a": [[1], [2, 3]]}}, BadAnswer), (PREDICTION | {"uncertainty": 5}, BadAnswer),
    ],
)  # fmt: skip
def test_each_failure_has_its_class_and_its_problem(ask: Ask, answer: Any, kind: type[ClientError]) -> None:
    with pytest.raises(ClientError) as raised:
        ask(Server(answer), "predict", "mine", WINDOW)
    assert type(raised.value) is kind
    if isinstance(answer, tuple) and answer[1]:
        assert raised.value.problem.detail == "d"
        assert raised.value.problem.document["errors"][0]["path"] == "data"
        assert "T: d" in str(raised.value)


def test_batch_members_fail_alone(ask: Ask) -> None:
    failed = {"request_id": "b", "error": problem(422, "invalid-input")[1]}
    server = Server({"batch_id": "x", "results": [PREDICTION, failed], "total_processing_time_ms": 2.0})
    items = [PredictItem("a", WINDOW), PredictItem("b", WINDOW, {"timeout_ms": 7.0, "request_id": "b"})]
    answer = ask(server, "predict_batch", items, priority=2)
    assert isinstance(answer.results[0], Prediction)
    assert isinstance(answer.results[1], FailedPrediction)
    assert answer.results[1].problem.slug == "invalid-input"
    body = json.loads(server.requests[0].content)
    assert body["priority"] == 2
    assert body["requests"][1]["timeout_ms"] == 7.0
    assert body["requests"][0]["timeout_ms"] > 1000


def test_warm_up_measures_where_asked(ask: Ask) -> None:
    warmed = {
        "model_type": "m", "version": "v1", "status": "warmed",
        "load_time_ms": 1.0, "inference_time_ms": 2.0, "error": None,
    }  # fmt: skip
    tuning = {"chosen": {"rows_per_call": 8}, "points": []}
    server = Server({"results": [warmed, warmed | {"tuning": tuning}]})
    plain, tuned = ask(server, "warm_up", [("m", "v1"), ("m", "latest")])
    assert (plain.tuning, tuned.tuning) == (None, tuning)
    targets = [{"model_type": "m", "version": "v1"}, {"model_type": "m", "version": "latest"}]
    assert json.loads(server.requests[0].content) == {"models": targets}
    ask(server, "warm_up", [("m", "v1")], tune=True, p95_ms=20.0, timeout_s=900.0)
    body = json.loads(server.requests[1].content)
    assert body == {"models": targets[:1], "tune": True, "p95_ms": 20.0}


@pytest.mark.parametrize("body_format", list(BodyFormat))
@pytest.mark.parametrize(
    ("data", "told"),
    [
        ([[1.0, 2.0], [3.0]], "differ in length"), ([[None]], "dtype object"), (None, "got None"),
        ([["a"]], "array of numbers"), ({"x": [[None]]}, "data.x"),
    ],
)  # fmt: skip
def test_data_that_is_no_array_of_numbers_is_refused_unsent(
    ask: Ask, data: Any, told: str, body_format: BodyFormat
) -> None:
    server = Server(PREDICTION)
    with pytest.raises(InvalidRequest, match=told) as raised:
        ask(server, "predict", "mine", data, made={"body_format": body_format})
    assert raised.value.problem is None
    with pytest.raises(InvalidRequest, match=r"items\[1\]"):
        ask(server, "predict_batch", [PredictItem("a", WINDOW), PredictItem("b", data)])
    assert not server.requests


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "url", ["localhost:8080", "127.0.0.1:8080", "ftp://x", "http://", "", "http://x:port"]
)
def test_address_of_no_server_is_refused_at_once(kind: Any, url: str) -> None:
    with pytest.raises(InvalidRequest, match="address of a server"):
        kind(url)


def test_class_that_is_unknown_is_nan(ask: Ask) -> None:
    rows = {"classification_probs": [[None, None], [0.1, 0.9]], "classification_pred": [None, 1]}
    answer = ask(Server(PREDICTION | {"predictions": rows}), "predict", "cnn_lstm_hybrid", WINDOW)
    np.testing.assert_array_equal(answer.predictions["classification_pred"], [np.nan, 1.0])


def test_feedback_goes_in_parts_and_is_tried_again(ask: Ask) -> None:
    def taken(*ids: str) -> tuple[int, dict[str, Any]]:
        return 202, {"results": [{"request_id": one, "status": "accepted"} for one in ids]}

    refused = {"request_id": "last", "status": "unknown", "reason": "no decision is kept"}
    ids = [f"r{number}" for number in range(1000)]
    server = Server(
        problem(503), httpx.ReadError("reset"), taken(*ids), problem(503), (202, {"results": [refused]})
    )
    items = [FeedbackItem(one, reward=np.float32(0.5)) for one in ids]
    last = FeedbackItem("last", outcome={"pnl": np.float64(2)}, action=np.int64(1), row=3)
    answer = ask(server, "give_feedback", [*items, last])
    assert [(one.request_id, one.status) for one in answer[:1000]] == [(one, "accepted") for one in ids]
    assert (answer[1000].status, answer[1000].reason) == ("unknown", "no decision is kept")
    bodies = [json.loads(one.content) for one in server.requests]
    assert [len(body) for body in bodies] == [1000, 1000, 1000, 1, 1]
    assert bodies[0][0] == {"request_id": "r0", "reward": 0.5, "row": 0}
    assert bodies[-1] == [{"request_id": "last", "outcome": {"pnl": 2.0}, "action": 1, "row": 3}]
    assert {one.url.path for one in server.requests} == {"/api/v1/feedback"}


def test_no_feedback_is_not_sent(ask: Ask) -> None:
    server = Server(problem(422))
    assert ask(server, "give_feedback", []) == ()
    assert not server.requests


def test_ensemble_is_typed(ask: Ask) -> None:
    document = {
        "model": "rl_ensemble-v1.0", "policy": "thompson", "settings": {"policy": "thompson", "floor": 0.0},
        "weights": {"ppo": 0.75, "dqn": 0.25}, "rewards": 7, "updated_at": "2026-01-02T03:04:05Z", "warnings": ["w"],
        "posteriors": {
            "ppo": {"mean": 1.0, "sd": 0.5, "interval": [0.0, 2.0], "pulls": 3.5},
            "dqn": {"mean": None, "sd": None, "interval": None, "pulls": 0.0},
        },
        "history": [{"time": "2026-01-02T03:04:05Z", "weights": {"ppo": 0.5, "dqn": 0.5}, "rewards": 0}],
        "timestamp": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    server = Server(document)
    answer = ask(server, "ensemble")
    assert (answer.model, answer.rewards, answer.warnings) == ("rl_ensemble-v1.0", 7, ("w",))
    assert answer.posteriors["ppo"] == AgentPosterior(mean=1.0, sd=0.5, interval=(0.0, 2.0), pulls=3.5)
    assert answer.posteriors["dqn"].interval is None
    assert answer.history[0].weights == {"ppo": 0.5, "dqn": 0.5}
    assert answer.updated_at == answer.history[0].time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    ask(server, "ensemble", "rl_ensemble-v1.0")
    assert [one.url.path for one in server.requests] == [
        "/api/v1/ensembles/rl_ensemble",
        "/api/v1/ensembles/rl_ensemble-v1.0",
    ]
    assert ask(Server(document | {"updated_at": None}), "ensemble").updated_at is None
    with pytest.raises(BadAnswer):
        ask(Server(document | {"posteriors": {"ppo": {}}}), "ensemble")


def test_experiments_are_typed(ask: Ask) -> None:
    entry = {
        "experiment_id": "e-1", "status": "active", "mode": "ab", "model_type": "t", "variants": ["control", "new"],
        "start_time": "2026-01-02T03:04:05Z", "end_time": None, "shares": {"control": 0.5, "new": 0.5},
    }  # fmt: skip
    server = Server((201, entry | {"message": "m", "reason": None}))
    variants = {"control": ("t", "v1.0"), "new": ("t", "v1.1")}
    shares = {"control": np.float64(0.5), "new": 0.5}
    created = ask(server, "create_experiment", "e-1", variants, shares, alpha=0.01)
    assert (created.status, created.variants, created.end_time) == ("active", ("control", "new"), None)
    assert json.loads(server.requests[0].content) == {
        "experiment_id": "e-1",
        "model_variants": {name: {"model_type": "t", "version": v} for name, (_, v) in variants.items()},
        "traffic_split": {"control": 0.5, "new": 0.5},
        "alpha": 0.01,
    }
    server = Server({"experiments": {"e-1": entry | {"total_requests": 7}}, "total_experiments": 1})
    assert [one.total_requests for one in ask(server, "experiments")] == [7]
    figures = {
        "requests": 7, "units": 5, "errors": 0, "error_rate": 0.0, "avg_latency_ms": 1.0, "p50_latency_ms": 1.0,
        "p95_latency_ms": 1.0, "p99_latency_ms": 1.0, "share": 0.5, "metrics": {},
        "model_config": {"model_type": "t", "version": "v1.0"},
    }  # fmt: skip
    document = entry | {
        "total_requests": 7,
        "reason": "r",
        "variants": {"control": figures},
        "significance": {"verdict": None, "sentences": ["s"]},
    }
    server = Server(document)
    found = ask(server, "experiment_results", "e/1")
    assert server.requests[0].url.raw_path == b"/api/v1/experiments/e%2F1/results"
    assert (found.verdict, found.sentences, found.variants["control"].units) == (None, ("s",), 5)
    assert ask(Server(entry | {"status": "stopped"}), "stop_experiment", "e-1").status == "stopped"
    lost = Server(httpx.ReadError("lost"), (201, entry))
    with pytest.raises(ConnectionFailed):
        ask(lost, "create_experiment", "e-1", variants, shares)
    with pytest.raises(BadAnswer):
        ask(Server({"experiments": []}), "experiments")


def test_unhealthy_is_an_answer(ask: Ask) -> None:
    health = {"status": "unhealthy", "components": {"triton": {"status": "unhealthy"}}, "version": "1"}
    assert ask(Server((503, health)), "health").status == "unhealthy"
    assert ask(Server((503, {"status": "not_ready"})), "is_ready") is False
    assert ask(Server({"status": "ready"}), "is_ready") is True


def test_names_are_quoted_in_paths(ask: Ask) -> None:
    server = Server(problem(404))
    with pytest.raises(NotFound):
        ask(server, "model", "a/b", "v 1?")
    assert server.requests[0].url.raw_path == b"/api/v1/models/a%2Fb/v%201%3F"


def test_both_clients_are_the_same_but_for_await() -> None:
    folder = Path(package.__file__).parent

    def code(name: str) -> str:
        text = (folder / name).read_text()
        for old, new in (
            ("async def", "def"), ("await ", ""), ("AsyncClient", "Client"), ("AsyncBaseTransport", "BaseTransport"),
            ("__aenter__", "__enter__"), ("__aexit__", "__exit__"), ("aclose", "close"),
            ("asyncio.sleep", "time.sleep"), ("import asyncio", "import time"), ("async client", "sync client"),
            ("The tasks of one event loop may", "Threads may"),
        ):  # fmt: skip
            text = text.replace(old, new)
        return re.sub(r"\s+", "", text)

    assert code("aio.py") == code("sync.py")


def test_importing_the_client_brings_nothing_of_the_server() -> None:
    program = "import sys, control_plane.client; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    ours = {name for name in loaded if name.startswith("control_plane.")}
    assert all(name.startswith("control_plane.client") for name in ours), ours
    assert not {"fastapi", "pydantic", "grpc", "msgspec", "redis", "tritonclient", "torch"} & set(loaded)
