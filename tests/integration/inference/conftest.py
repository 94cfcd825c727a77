"""The whole application on a real Triton and a real Redis, called without a network."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from control_plane.app import create_app
from control_plane.embedded.redis import RedisServer
from control_plane.embedded.triton import TritonServer
from control_plane.settings import Settings

Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def serve(
    triton_server: TritonServer, redis_server: RedisServer, model_repository: Path, redis_key_prefix: str
) -> Serve:
    """Runs the application, and gives a client that calls it without a network."""

    @asynccontextmanager
    async def serving(**sections: Any) -> AsyncIterator[httpx.AsyncClient]:
        settings = Settings(
            triton={
                "grpc_url": triton_server.grpc_url,
                "http_url": triton_server.http_url,
                "model_repository": model_repository,
            },
            redis={"url": redis_server.url, "key_prefix": redis_key_prefix},
            **sections,
        )
        app = create_app(settings)
        async with app.router.lifespan_context(app) as state:

            async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
                await app(scope | {"state": dict(state or {})}, receive, send)

            transport = httpx.ASGITransport(app=with_state)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://serving/api/v1", timeout=60
            ) as client:
                yield client

    return serving
