"""The model endpoints, through the application, on the real services."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from control_plane.app import create_app
from control_plane.embedded.redis import RedisServer
from control_plane.embedded.triton import TritonServer
from tests.support.model_worker import eventually, worker_settings
from tests.support.repository import identity_like_onnx


@pytest.fixture
async def client(
    cache_triton: TritonServer,
    redis_server: RedisServer,
    redis_key_prefix: str,
    repository: Path,
    tmp_path: Path,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, whose lifespan runs."""
    registry = tmp_path / "models"
    registry.mkdir()
    (registry / "tiny.onnx").write_bytes(identity_like_onnx(5.0))
    settings = worker_settings(
        redis_port=redis_server.port,
        grpc_url=cache_triton.grpc_url,
        repository=repository,
        key_prefix=redis_key_prefix,
        models={"registry_path": registry, "checkpoints_path": tmp_path / "checkpoints"},
    )
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        transport = httpx.ASGITransport(app=with_state)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test/api/v1", timeout=120
        ) as opened:
            yield opened


def _problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == status
    assert document["detail"]
    return document


async def test_load_describe_unload_delete(client: httpx.AsyncClient) -> None:
    loaded = await client.post(
        "/models/load", json={"model_type": "tiny", "version": "v1", "file_path": "models/tiny.onnx"}
    )
    assert loaded.status_code == 200, loaded.text
    answer = loaded.json()
    assert answer.keys() >= {
        "message", "model_type", "version", "triton_model", "load_time_ms", "evicted", "timestamp",
    }  # fmt: skip
    assert (answer["triton_model"], answer["evicted"]) == ("tiny-v1", [])

    detail = (await client.get("/models/tiny/latest")).json()
    assert (detail["state"], detail["version"], detail["latest"]) == ("ready", "v1", True)
    assert detail["signature"]["inputs"][0]["shape"] == [4]
    assert detail["card"]["triton_model"] == "tiny-v1"

    listed = (await client.get("/models")).json()
    assert listed["total_models"] == 7
    assert {model["state"] for model in listed["models"] if model["model_type"] == "echo"} == {"unloaded"}

    stats = (await client.get("/models/cache/stats")).json()
    assert stats.keys() == {
        "total_models", "max_capacity", "total_usage", "models", "hits", "misses", "evictions", "expirations",
        "hit_rate",
    }  # fmt: skip
    assert [model["key"] for model in stats["models"]] == ["tiny-v1"]

    for _ in range(2):
        unloaded = await client.post("/models/unload", json={"model_type": "tiny", "version": "1"})
        assert unloaded.status_code == 200, unloaded.text
    assert (await client.get("/models/tiny/v1")).json()["state"] == "unloaded"

    assert (await client.put("/models/tiny/aliases/production", json={"version": "v1"})).status_code == 200
    assert (await client.get("/models/tiny/production")).json()["aliases"] == ["production"]
    _problem(await client.delete("/models/tiny/v1"), 409)
    removed = await client.delete("/models/tiny/aliases/production")
    assert [(move["from"], move["to"]) for move in removed.json()["history"]] == [(None, "v1"), ("v1", None)]
    assert (await client.delete("/models/tiny/v1")).status_code == 200
    _problem(await client.get("/models/tiny/v1"), 404)


async def test_background_load_is_followed_as_events(client: httpx.AsyncClient) -> None:
    accepted = await client.post(
        "/models/load",
        json={"model_type": "tiny", "version": "v1", "file_path": "tiny.onnx", "wait": False},
    )
    assert accepted.status_code == 202, accepted.text
    place = f"/models/jobs/{accepted.json()['job_id']}"
    events = []
    async with client.stream("GET", place, headers={"Accept": "text/event-stream"}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line[6:]))
    assert events[-1]["status"] == "succeeded"
    assert events[-1]["result"]["triton_model"] == "tiny-v1"
    assert (await client.get(place)).json() == events[-1]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model_type": "tiny", "version": "v1", "file_path": "../../etc/passwd"}, 403),
        ({"model_type": "tiny", "version": "v1", "file_path": "/etc/passwd"}, 403),
        ({"model_type": "tiny", "version": "v1", "file_path": "nothing.onnx"}, 404),
        ({"model_type": "nothing", "version": "v1"}, 404),
        ({"model_type": "echo", "version": "v9"}, 404),
        ({"model_type": "Tiny", "version": "v1"}, 422),
        ({"model_type": "tiny", "version": "a b", "file_path": "tiny.onnx"}, 422),
        ({"model_type": "tiny", "version": "latest", "file_path": "tiny.onnx"}, 422),
        ({"model_type": "tiny"}, 422),
        ({"model_type": "tiny", "version": "v1", "unknown": 1}, 422),
        ({"model_type": "tiny", "version": "v1", "format": "tf"}, 422),
        ({"model_type": "tiny", "version": "v1", "file_path": "tiny.onnx", "config": {"nope": [1]}}, None),
    ],
)
async def test_load_that_cannot_be_is_refused(
    client: httpx.AsyncClient, body: dict[str, Any], status: int | None
) -> None:
    response = await client.post("/models/load", json=body)
    if status is None:  # for a ready-made type any configuration is kept
        assert response.status_code < 500
    else:
        problem = _problem(response, status)
        assert ("reserved" in problem["detail"]) is (
            body["version"] == "latest" if "version" in body else False
        )


async def test_other_endpoints_refuse_the_unknown(client: httpx.AsyncClient) -> None:
    _problem(await client.post("/models/unload", json={"model_type": "echo", "version": "v9"}), 404)
    _problem(await client.get("/models/echo/v9"), 404)
    _problem(await client.get("/models/jobs/nothing"), 404)
    _problem(await client.put("/models/echo/aliases/latest", json={"version": "v1.0"}), 422)
    _problem(await client.put("/models/echo/aliases/prod", json={"version": "v9"}), 404)
    _problem(await client.delete("/models/echo/aliases/prod"), 404)
    _problem(await client.post("/models/warmup", json={"model": []}), 422)


async def test_serving_is_read_changed_and_guards_its_fallback(client: httpx.AsyncClient) -> None:
    place = "/models/echo/v1.1/serving"
    nothing = {"on_overload": "reject", "fallback": None, "response_cache": None, "tuning": None}
    assert (await client.get(place)).json()["serving"] == nothing

    changed = await client.put(place, json={"on_overload": "degrade", "fallback": "1.0"})
    assert changed.status_code == 200, changed.text
    assert changed.json()["serving"] == nothing | {"on_overload": "degrade", "fallback": "v1.0"}
    assert changed.json()["warnings"] == []
    assert (await client.get(place)).json()["serving"] == changed.json()["serving"]
    # what GET gives, PUT takes
    assert (await client.put(place, json=changed.json()["serving"])).status_code == 200
    in_use = _problem(await client.delete("/models/echo/v1.0"), 409)
    assert "fallback of v1.1" in in_use["detail"]

    refused = _problem(await client.put("/models/echo/v1.0/serving", json={"fallback": "v1.1"}), 422)
    assert "v1.1 → v1.0" in refused["detail"]
    for body, path in (
        ({"fallback": "latest"}, "fallback"),
        ({"tuning": {"rows_per_call": 1}}, "tuning"),
        ({"response_cache": {"ttl": 5}}, "response_cache.ttl"),
        ({"overload": "reject"}, "overload"),
    ):
        errors = _problem(await client.put(place, json=body), 422)["errors"]
        assert path in {error["path"] for error in errors}
    _problem(await client.get("/models/echo/v9/serving"), 404)
    _problem(await client.put("/models/echo/latest/serving", json={}), 404)

    bare = await client.put(place, json={"on_overload": "degrade"})
    assert "neither a fallback nor" in bare.json()["warnings"][0]
    assert (await client.delete("/models/echo/v1.0")).status_code == 200


async def test_overwriting_keeps_serving_and_drops_what_the_former_content_answered(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    load = {"model_type": "tiny", "version": "v1", "file_path": "tiny.onnx"}
    asked = {"model_type": "tiny", "data": [[0.0] * 4]}

    async def answer() -> tuple[bool, float]:
        document = (await client.post("/predict", json=asked)).json()
        return document["cached"], document["predictions"]["y"][0][0]

    assert (await client.post("/models/load", json=load)).status_code == 200
    await client.put("/models/tiny/v1/serving", json={"response_cache": {"ttl_s": 3600}})
    assert [await answer() for _ in range(2)] == [(False, 5.0), (True, 5.0)]

    (tmp_path / "models" / "tiny.onnx").write_bytes(identity_like_onnx(6.0))
    replacing = asyncio.create_task(client.post("/models/load", json=load | {"overwrite": True}))
    while not replacing.done():  # also between the new files and Triton's reload
        assert (await answer())[1] in (5.0, 6.0)
        await asyncio.sleep(0)
    assert replacing.result().status_code == 200, replacing.result().text
    assert [await answer() for _ in range(2)][1] == (True, 6.0)
    serving = (await client.get("/models/tiny/v1")).json()["serving"]
    assert serving["response_cache"]["ttl_s"] == 3600


async def test_types_and_warmup(client: httpx.AsyncClient) -> None:
    types = (await client.get("/models/types")).json()["model_types"]
    assert types.keys() == {"cnn_lstm_hybrid", "rl_ensemble", "echo"}
    assert types["cnn_lstm_hybrid"]["config_schema"]["properties"]["input_dim"]["default"] == 50
    assert types["echo"]["versions"][0] == "v1.5"
    targets = [{"model_type": "echo", "version": "v1.0"}, {"model_type": "echo", "version": "v9"}]
    for body in (targets, {"models": targets}):
        answer = await client.post("/models/warmup", json=body)
        assert answer.status_code == 200, answer.text
        last = [result["status"] for result in answer.json()["results"]]
    assert last == ["already_cached", "not_found"]
    body = {"models": targets, "tune": True, "p95_ms": 5000, "seconds": 1}
    good, missing = (await client.post("/models/warmup", json=body)).json()["results"]
    assert missing["tuning"] is None
    serving = (await client.get("/models/echo/v1.0/serving")).json()["serving"]
    assert good["tuning"]["chosen"] == serving["tuning"]
    assert {(1, 2), (8, 2)} <= {(one["rows"], one["calls_in_flight"]) for one in good["tuning"]["points"]}
    impossible = await client.post("/models/warmup", json=body | {"p95_ms": 0.001})
    assert impossible.json()["results"][0]["tuning"]["chosen"] is None
    _problem(await client.post("/models/warmup", json=body | {"p95_ms": 0}), 422)

    async def counted() -> bool:
        return (await client.get("/models/cache/stats")).json()["total_models"] == 1

    await eventually(counted, timeout_s=5, what="the warmed version is listed")
