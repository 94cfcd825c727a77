"""Overload on the real Triton: refused at once, or answered by the fallback or an older answer."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from control_plane.app import create_app
from control_plane.embedded.redis import RedisServer
from control_plane.embedded.triton import TritonServer
from tests.support.model_worker import eventually, worker_settings
from tests.support.repository import marker_of, write_identity_like_model

SLOW_WORK = 4_000
"""About 30 ms a call; what waits in `crowd` fills a second, five times what those who come then have."""


@pytest.fixture
async def client(
    cache_triton: TritonServer, redis_server: RedisServer, redis_key_prefix: str, repository: Path
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application with a slow `echo-v2.0` and room for three versions."""
    write_identity_like_model(repository, "echo", "v2.0", work=SLOW_WORK, max_batch_size=1)
    settings = worker_settings(
        redis_port=redis_server.port,
        grpc_url=cache_triton.grpc_url,
        repository=repository,
        key_prefix=redis_key_prefix,
        cache={"reconcile_interval_s": 0.1},
    )
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        transport = httpx.ASGITransport(app=with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=120) as opened:
            yield opened


async def ask(client: httpx.AsyncClient, version: str, value: float, **options: Any) -> httpx.Response:
    body = {"model_type": "echo", "model_version": version, "data": [[value] * 4]} | options
    return await client.post("/api/v1/predict", json=body)


async def serve_as(client: httpx.AsyncClient, version: str, **options: Any) -> None:
    answer = await client.put(f"/api/v1/models/echo/{version}/serving", json=options)
    assert answer.status_code == 200, answer.text


async def loaded(client: httpx.AsyncClient) -> set[str]:
    answer = await client.get("/api/v1/models/cache/stats")
    return {model["key"] for model in answer.json()["models"]}


async def crowd(client: httpx.AsyncClient, version: str) -> list[asyncio.Task[httpx.Response]]:
    """Enough waiting requests to fill a second; the service times are known before."""
    for number in range(6):
        assert (await ask(client, version, 100.0 + number)).status_code == 200
    waiting = [asyncio.create_task(ask(client, version, 200.0 + number)) for number in range(40)]
    await asyncio.sleep(0.05)
    return waiting


async def test_overloaded_version_refuses_at_once_or_its_fallback_answers(client: httpx.AsyncClient) -> None:
    await serve_as(client, "v2.0", fallback="v1.0")
    assert (await ask(client, "v2.0", 1.0)).status_code == 200

    async def fallback_is_loaded() -> bool:
        return await loaded(client) == {"echo-v1.0", "echo-v2.0"}

    await eventually(fallback_is_loaded, what="the fallback is loaded with its version")
    waiting = await crowd(client, "v2.0")
    refused = await ask(client, "v2.0", 1.0, timeout_ms=200)
    assert refused.status_code == 503
    assert refused.json()["type"].endswith("#overloaded")
    assert int(refused.headers["retry-after"]) >= 1

    answer = await ask(client, "v2.0", 1.0, timeout_ms=200, on_overload="degrade")
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert (document["model_version"], document["degraded"]) == ("v1.0", "fallback")
    assert document["predictions"]["y"][0][0] == 1.0 + marker_of("echo", "v1.0")
    assert "v1.0 answered" in document["warnings"][0]
    tensors = await client.post(
        "/v2/models/echo-v2.0/infer",
        json={
            "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0] * 4}],
            "parameters": {"timeout": 200_000, "on_overload": "degrade"},
        },
    )
    assert tensors.status_code == 200, tensors.text
    assert tensors.json()["model_version"] == "v1.0"
    assert tensors.json()["parameters"]["degraded"] == "fallback"

    for waiter in await asyncio.gather(*waiting):
        assert waiter.status_code == 200
        assert waiter.json()["degraded"] is None
        assert waiter.json()["model_version"] == "v2.0"


async def test_older_answer_stands_in_where_the_version_says_so(client: httpx.AsyncClient) -> None:
    await serve_as(client, "v2.0", on_overload="degrade", response_cache={"ttl_s": 0.01, "stale_for_s": 600})
    fresh = (await ask(client, "v2.0", 7.0)).json()
    assert (fresh["degraded"], fresh["cached"]) == (None, False)
    waiting = await crowd(client, "v2.0")
    stale = (await ask(client, "v2.0", 7.0, timeout_ms=200)).json()
    assert (stale["degraded"], stale["cached"], stale["model_version"]) == ("stale", True, "v2.0")
    assert stale["predictions"] == fresh["predictions"]
    assert "s old" in stale["warnings"][0]
    # Nothing stands in for an input that nobody sent before, and a request may insist.
    assert (await ask(client, "v2.0", 8.0, timeout_ms=200)).status_code == 503
    assert (await ask(client, "v2.0", 7.0, timeout_ms=200, on_overload="reject")).status_code == 503
    await asyncio.gather(*waiting)


async def test_fallback_stays_loaded_as_long_as_its_version(client: httpx.AsyncClient) -> None:
    await serve_as(client, "v1.1", fallback="v1.0")
    assert (await ask(client, "v1.1", 0.0)).status_code == 200

    async def both() -> bool:
        return {"echo-v1.0", "echo-v1.1"} <= await loaded(client)

    await eventually(both, what="both are loaded")
    refused = await client.post("/api/v1/models/unload", json={"model_type": "echo", "version": "v1.0"})
    assert refused.status_code == 409
    # Others come and go in the third place: the fallback, which nobody asks, stays.
    for version in ("v1.2", "v1.3", "v1.4"):
        assert (await ask(client, "v1.1", 0.0)).status_code == 200
        assert (await ask(client, version, 0.0)).status_code == 200
        assert "echo-v1.0" in await loaded(client)

    await serve_as(client, "v1.1")

    async def released() -> bool:
        answer = await client.post("/api/v1/models/unload", json={"model_type": "echo", "version": "v1.0"})
        return answer.status_code == 200

    await eventually(released, what="a fallback that is none any more can be unloaded")
