"""A Triton of these tests' own: the model cache unloads what it doesn't know, so it can't share one."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from control_plane.embedded.redis import RedisServer
from control_plane.embedded.triton import TritonServer
from control_plane.triton.client import connect
from tests.support.embedded import running_triton
from tests.support.model_worker import ModelWorker, eventually, model_worker, worker_settings
from tests.support.repository import write_identity_like_model

StartWorker = Callable[..., Awaitable[ModelWorker]]


@pytest.fixture(scope="session")
def cache_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model repository of `cache_triton`."""
    return tmp_path_factory.mktemp("cache_repository")


@pytest.fixture(scope="session")
def cache_triton(tmp_path_factory: pytest.TempPathFactory, cache_repository: Path) -> Iterator[TritonServer]:
    """A Triton for the tests of the model cache."""
    with running_triton(tmp_path_factory.mktemp("cache_triton"), cache_repository) as server:
        yield server


@pytest.fixture
async def repository(cache_triton: TritonServer, cache_repository: Path) -> Path:
    """The model repository with six versions of `echo`, and nothing loaded."""
    async with connect(cache_triton.grpc_url) as triton:

        async def nothing_loaded() -> bool:
            held = {entry.name: entry.state for entry in await triton.repository_index()}
            await asyncio.gather(*(triton.unload(name) for name, state in held.items() if state == "READY"))
            return all(state in ("", "UNAVAILABLE") for state in held.values())

        await eventually(nothing_loaded, what="an empty Triton")
    for folder in list(cache_repository.iterdir()):  # noqa: ASYNC240  a test
        shutil.rmtree(folder)
    for minor in range(6):
        write_identity_like_model(cache_repository, "echo", f"v1.{minor}")
    return cache_repository


@pytest.fixture
async def start_worker(
    cache_triton: TritonServer, redis_server: RedisServer, redis_key_prefix: str, repository: Path
) -> AsyncIterator[StartWorker]:
    """Starts a worker's model side; keyword arguments are `model_cache` settings, and `lock_ttl_s`."""
    async with AsyncExitStack() as stack:

        async def start(*, lock_ttl_s: float = 10.0, **cache: Any) -> ModelWorker:
            settings = worker_settings(
                redis_port=redis_server.port,
                grpc_url=cache_triton.grpc_url,
                repository=repository,
                key_prefix=redis_key_prefix,
                cache=cache,
            )
            return await stack.enter_async_context(model_worker(settings, lock_ttl_s=lock_ttl_s))

        yield start
