"""POST /predict and /predict/batch through the application's own handlers, without a network."""

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from control_plane.api import predict
from control_plane.api.body_limit import BodyLimit
from control_plane.api.middleware import Draining, RequestEnvelope
from control_plane.api.problem import install_handlers
from control_plane.api.schemas.predict import (
    BatchAnswerBody,
    BatchRequestBody,
    PredictAnswerBody,
    PredictRequestBody,
)
from control_plane.inference.identifiers import time_of
from control_plane.inference.requests import BatchRequest, PredictRequest
from tests.unit.inference.cards import CHANNELS, LENGTH
from tests.unit.inference.data_plane import DataPlane, data_plane
from tests.unit.inference.virtual_time import now, run

WINDOW = np.random.default_rng(0).normal(size=(1, CHANNELS, LENGTH)).tolist()
GOOD = {"model_type": "cnn_lstm_hybrid", "data": WINDOW}


@dataclass(frozen=True)
class Served:
    client: httpx.AsyncClient
    plane: DataPlane
    app: Any


@asynccontextmanager
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **sections: Any) -> AsyncIterator[Served]:
    """The routes on a data plane in memory, in the loop's time."""
    monkeypatch.setattr(predict.time, "monotonic", now)
    async with data_plane(tmp_path, **sections) as plane:
        app = FastAPI()
        install_handlers(app)
        app.router.routes.extend(predict.routes())
        limited = BodyLimit(app, max_bytes=plane.settings.limits.max_body_bytes)
        inner = RequestEnvelope(limited, draining=Draining())
        resources = SimpleNamespace(predictor=plane.predictor, settings=plane.settings)

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"] = {"resources": resources}
            await inner(scope, receive, send)

        transport = httpx.ASGITransport(app=with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://serving/api/v1") as client:
            yield Served(client, plane, with_state)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_uncertainty": False, "use_ensemble": False},
        {"return_attention": True, "interval": 0.5},
        {"model_type": "rl_ensemble", "data": [[1.0] * CHANNELS] * 3, "action_selection": "sample"},
        {"model_type": "mine", "data": [[1.0] * 4]},
    ],
)
def test_predict_answer_is_as_the_openapi_document_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    async def scenario() -> None:
        async with served(tmp_path, monkeypatch) as api:
            response = await api.client.post("/predict", json=GOOD | options)
            assert response.status_code == 200, response.text
            assert response.headers["content-type"] == "application/json"
            answer = response.json()
            PredictAnswerBody.model_validate(answer, strict=True)
            assert list(answer) == list(PredictAnswerBody.model_fields)
            assert round(answer["processing_time_ms"], 3) == answer["processing_time_ms"]
            assert answer["request_id"] == response.headers["x-request-id"]

    run(scenario())


def test_predict_names_each_field_of_the_documented_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with served(tmp_path, monkeypatch) as api:
            answer = (await api.client.post("/predict", json=GOOD | {"request_id": "mine-1"})).json()
            assert answer["request_id"] == "mine-1"
            assert set(answer["predictions"]) == {
                "classification_probs", "classification_pred", "regression_pred", "base_classification_probs",
                "base_regression_pred", "ensemble_classification_probs", "ensemble_regression_pred",
            }  # fmt: skip
            assert set(answer["uncertainty"]) == {
                "regression_uncertainty", "ensemble_weights", "interval", "entropy", "aleatoric", "epistemic",
            }  # fmt: skip
            assert set(answer["uncertainty"]["interval"]) == {
                "level",
                "lower",
                "upper",
                "method",
                "calibrated",
            }
            assert isinstance(answer["predictions"]["classification_pred"][0], int)
            assert answer["confidence_scores"] == [max(answer["predictions"]["classification_probs"][0])]
            assert datetime.fromisoformat(answer["timestamp"]).utcoffset() is not None
            assert answer["timestamp"].endswith("Z")

    run(scenario())


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"model_type": "cnn_lstm_hybrid", "data": [[NaN]]}', {}, 422),
        (json.dumps(GOOD | {"model_type": "nonesuch"}).encode(), {}, 404),
        (json.dumps(GOOD | {"experiment_id": "spring"}).encode(), {}, 404),
        (json.dumps(GOOD).encode(), {"content-type": "text/xml"}, 415),
        (json.dumps(GOOD).encode(), {"content-type": "application/json; charset=utf-8"}, 200),
        (json.dumps(GOOD).encode(), {"content-type": ""}, 200),
        (json.dumps(GOOD).encode(), {}, 200),
        (b" " * 2000, {}, 413),
        (json.dumps(GOOD).encode(), {"content-length": "1000000000"}, 413),
    ],
)
def test_predict_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes, headers: dict[str, str], status: int
) -> None:
    async def scenario() -> None:
        async with served(tmp_path, monkeypatch, limits={"max_body_bytes": 1500}) as api:
            response = await api.client.post("/predict", content=body, headers=headers)
            assert response.status_code == status, response.text
            if status != 200:
                assert response.headers["content-type"] == "application/problem+json"
                assert response.json()["detail"]

    run(scenario())


def test_body_that_grows_past_its_bound_is_413_without_reading_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with served(tmp_path, monkeypatch, limits={"max_body_bytes": 5000}) as api:
            sent = 0

            async def endless() -> AsyncIterator[bytes]:
                nonlocal sent
                while True:
                    sent += 1
                    yield b" " * 1000

            response = await api.client.post("/predict", content=endless())
            assert response.status_code == 413
            assert sent == 6

    run(scenario())


def test_overload_is_503_with_retry_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        sections = {"batch_processing": {"max_queue_size": 1, "max_batch_size": 1}}
        async with served(tmp_path, monkeypatch, **sections) as api:
            responses = await asyncio.gather(*(api.client.post("/predict", json=GOOD) for _ in range(20)))
            refused = [response for response in responses if response.status_code != 200]
            assert refused
            assert {response.status_code for response in refused} == {503}
            assert all(int(response.headers["retry-after"]) >= 1 for response in refused)

    run(scenario())


def test_client_that_leaves_cancels_its_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with served(
            tmp_path, monkeypatch, batch_processing={"max_batch_size": 1, "calls_in_flight": 1}
        ) as api:
            api.plane.triton.service_s = 10.0
            busy = asyncio.create_task(api.client.post("/predict", json=GOOD, timeout=60))
            await asyncio.sleep(0.01)
            began = now()
            sent = await _leave_after(api.app, json.dumps(GOOD).encode(), stays_s=0.2)
            assert now() - began == pytest.approx(0.2)
            assert sent[0]["status"] == 499
            assert (await busy).status_code == 200
            assert len(api.plane.triton.calls) == 1

    run(scenario())


async def _leave_after(app: Any, body: bytes, *, stays_s: float) -> list[Message]:
    """Sends a request over bare ASGI, and disconnects after a while."""
    messages: list[Message] = [{"type": "http.request", "body": body[:10], "more_body": True}]
    messages.append({"type": "http.request", "body": body[10:], "more_body": False})
    sent: list[Message] = []

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(stays_s - 0.05)  # watching begins 50 ms after the request
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/api/v1/predict", "raw_path": b"/api/v1/predict",
        "query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http", "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    return sent


def test_batch_answers_in_order_and_fails_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with served(tmp_path, monkeypatch) as api:
            requests: list[Any] = [
                GOOD | {"request_id": "a", "model_version": "v1.0"},
                GOOD | {"request_id": "b", "data": [[1.0], [2.0, 3.0]]},
                5,
                GOOD | {"request_id": "d", "colour": 1},
                GOOD | {"model_type": "nonesuch"},
                {"model_type": "rl_ensemble", "data": [[1.0] * CHANNELS], "request_id": "f"},
                GOOD | {"request_id": "g", "data": [[float("nan")]]},
                GOOD | {"request_id": "h"},
            ]
            response = await api.client.post("/predict/batch", content=json.dumps({"requests": requests}))
            answer = response.json()
            assert response.status_code == 200, answer
            BatchAnswerBody.model_validate(answer)
            assert (
                answer["total_requests"],
                answer["successful_predictions"],
                answer["failed_predictions"],
            ) == (8, 3, 5)
            results = answer["results"]
            statuses = [result["error"]["status"] if "error" in result else 200 for result in results]
            assert statuses == [200, 422, 422, 422, 404, 200, 422, 200]
            named = {0: "a", 1: "b", 3: "d", 5: "f", 6: "g", 7: "h"}
            assert {index: results[index]["request_id"] for index in named} == named
            assert time_of(results[4]["request_id"]) is not None
            assert time_of(answer["batch_id"]) is not None
            assert results[1]["error"]["request_id"] == "b"
            assert results[0]["model_version"] == "v1.0"
            assert results[7]["model_version"] == "v1.1"

    run(scenario())


def test_batch_rows_of_a_group_travel_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with served(tmp_path, monkeypatch) as api:
            requests = [GOOD | {"model_version": ("v1.0", "v1.1")[number % 2]} for number in range(100)]
            response = await api.client.post("/predict/batch", json={"requests": requests})
            assert response.json()["successful_predictions"] == 100
            assert sorted(api.plane.triton.calls) == [
                ("cnn_lstm_hybrid-v1.0", 50),
                ("cnn_lstm_hybrid-v1.1", 50),
            ]

    run(scenario())


@pytest.mark.parametrize(("count", "status"), [(0, 422), (100, 200), (101, 400)])
def test_batch_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, status: int) -> None:
    async def scenario() -> None:
        async with served(tmp_path, monkeypatch) as api:
            response = await api.client.post("/predict/batch", json={"requests": [GOOD] * count})
            assert response.status_code == status

    run(scenario())


def test_batch_priority_goes_before_single_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        sections = {"batch_processing": {"max_batch_size": 1, "calls_in_flight": 1}}
        async with served(tmp_path, monkeypatch, **sections) as api:
            finished: list[str] = []

            async def call(name: str, path: str, body: Any) -> None:
                assert (await api.client.post(path, json=body)).status_code == 200
                finished.append(name)

            async with asyncio.TaskGroup() as group:
                for number in range(5):
                    group.create_task(call(f"single {number}", "/predict", GOOD))
                await asyncio.sleep(0.005)
                group.create_task(call("batch", "/predict/batch", {"requests": [GOOD]}))
            assert finished[:3] == ["single 0", "batch", "single 1"]

    run(scenario())


@pytest.mark.parametrize(
    ("model", "struct"),
    [(PredictRequestBody, PredictRequest), (BatchRequestBody, BatchRequest)],
    ids=["one", "batch"],
)
def test_openapi_describes_the_fields_that_are_read(model: Any, struct: Any) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    assert list(model.model_fields) == list(fields)
    for name, described in model.model_fields.items():
        assert described.is_required() == fields[name].required, name
        assert described.description, name
        if not described.is_required():
            assert described.default == fields[name].default, name


def bounds_of(schema: Any) -> dict[str, Any]:
    """The constraints of a JSON schema's property, wherever its alternatives hold them."""
    names = (
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minLength",
        "maxLength",
        "pattern",
        "const",
    )
    found = {name: schema[name] for name in names if name in schema}
    found |= {"enum": sorted(schema["enum"])} if "enum" in schema else {}
    for part in schema.get("anyOf", ()):
        found |= bounds_of(part)
    return {name: value for name, value in found.items() if name != "const"} | (
        {"enum": [found["const"]]} if "const" in found else {}
    )


def test_openapi_describes_the_bounds_that_are_checked() -> None:
    document: dict[str, Any] = {}
    predict.describe(document)
    described = document["components"]["schemas"]["PredictRequestBody"]
    (_, read) = msgspec.json.schema_components([PredictRequest[Any]])
    checked = next(iter(read.values()))
    assert described["additionalProperties"] is False
    assert sorted(described["required"]) == sorted(checked["required"])
    for name, schema in described["properties"].items():
        assert bounds_of(schema) == bounds_of(checked["properties"][name]), name


def test_openapi_document_is_complete() -> None:
    document: dict[str, Any] = {"openapi": "3.1.0"}
    predict.describe(document)
    assert set(document["paths"]) == {"/api/v1/predict", "/api/v1/predict/batch"}
    text = json.dumps(document)
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert references <= set(document["components"]["schemas"])
    for path in document["paths"].values():
        assert {"200", "400", "404", "413", "415", "422", "500", "503", "504"} == set(
            path["post"]["responses"]
        )


def test_openapi_describes_binary_bodies_and_their_options() -> None:
    document: dict[str, Any] = {"openapi": "3.1.0"}
    predict.describe(document)
    operation = document["paths"]["/api/v1/predict"]["post"]
    formats = {"application/json", "application/x-npy", "application/vnd.apache.arrow.stream"}
    assert set(operation["requestBody"]["content"]) == formats
    assert set(operation["responses"]["200"]["content"]) == formats - {"application/x-npy"}
    names = [parameter["name"] for parameter in operation["parameters"]]
    assert names == [name for name in PredictRequest.__struct_fields__ if name != "data"]
    assert "parameters" not in document["paths"]["/api/v1/predict/batch"]["post"]


@pytest.mark.parametrize(
    ("accept", "is_arrow"),
    [
        ("application/vnd.apache.arrow.stream", True), ("Application/Vnd.Apache.Arrow.Stream, */*;q=0.1", True),
        ("application/json, application/vnd.apache.arrow.stream;q=0.5", False), ("*/*", False), ("", False),
        ("application/vnd.apache.arrow.stream;q=0", False), ("application/vnd.apache.arrow.stream;q=x", False),
    ],
)  # fmt: skip
def test_answer_is_arrow_when_accept_prefers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accept: str, is_arrow: bool
) -> None:
    async def scenario() -> None:
        async with served(tmp_path, monkeypatch) as api:
            response = await api.client.post("/predict", json=GOOD, headers={"accept": accept})
            assert response.status_code == 200
            expected = "application/vnd.apache.arrow.stream" if is_arrow else "application/json"
            assert response.headers["content-type"] == expected

    run(scenario())


def test_binary_body_gives_the_answer_of_the_json_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with served(tmp_path, monkeypatch) as api:
            file = io.BytesIO()
            np.save(file, np.array(WINDOW), allow_pickle=False)
            options = {"interval": 0.5, "return_attention": True}
            expected = (await api.client.post("/predict", json=GOOD | options)).json()
            response = await api.client.post(
                "/predict",
                params={"model_type": "cnn_lstm_hybrid"} | options,
                content=file.getvalue(),
                headers={"content-type": "application/x-npy"},
            )
            answer = response.json()
            assert response.status_code == 200, answer
            for part in ("predictions", "uncertainty", "confidence_scores", "warnings"):
                assert answer[part] == expected[part]

    run(scenario())
