"""The model side of one API worker, for tests: registry, cache and reconciler with a connection each of their own."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from control_plane.background import background_tasks
from control_plane.errors import ModelNotReady
from control_plane.models.aliases import Aliases
from control_plane.models.cache import ModelCache
from control_plane.models.exporter import Exporter
from control_plane.models.operations import ModelOperations
from control_plane.models.reconciler import Reconciler
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.settings import Settings
from control_plane.store.lock import Locks
from control_plane.store.redis import RedisStore, open_store
from control_plane.triton.client import TritonClient, connect
from tests.support.repository import FEATURES


def worker_settings(
    *,
    redis_port: int,
    grpc_url: str,
    repository: Path,
    key_prefix: str,
    cache: Mapping[str, Any] | None = None,
    models: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings of a test's worker."""
    return Settings.model_validate(
        {
            "redis": {"host": "127.0.0.1", "port": redis_port, "key_prefix": key_prefix, "timeout_s": 2.0},
            "triton": {"grpc_url": grpc_url, "model_repository": repository, "load_timeout_s": 60.0},
            "model_cache": {"max_models": 3, "reconcile_interval_s": 0.3, "ttl_seconds": 0, **(cache or {})},
            "models": dict(models or {}),
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWorker:
    """What one worker holds."""

    settings: Settings
    store: RedisStore
    triton: TritonClient
    registry: ModelRegistry
    aliases: Aliases
    locks: Locks
    cache: ModelCache
    reconciler: Reconciler
    operations: ModelOperations

    def version(self, model_type: str, version: str) -> ModelVersion:
        """A registered version."""
        return self.registry.resolve(model_type, version)

    async def use(self, model: ModelVersion, *, timeout_s: float = 60.0) -> float:
        """One prediction as the predictor makes it; returns what the model added to its input."""
        deadline = time.monotonic() + timeout_s
        x = np.zeros((1, FEATURES), np.float32)
        while True:
            while not self.cache.try_use(model):
                await self.cache.ensure_loaded(model, deadline=deadline)
            try:
                outputs = await self.triton.infer(model.key, {"x": x}, ["y"], timeout_s=timeout_s)
                return float(outputs["y"][0, 0])
            except ModelNotReady:
                self.cache.report_lost(model)
                if time.monotonic() >= deadline:
                    raise
            finally:
                self.cache.done(model)

    async def ready_in_triton(self) -> set[str]:
        """Models that Triton's index calls READY."""
        return {entry.name for entry in await self.triton.repository_index() if entry.state == "READY"}


@asynccontextmanager
async def model_worker(
    settings: Settings, *, lock_ttl_s: float = 10.0, exporter: Exporter | None = None
) -> AsyncIterator[ModelWorker]:
    """Starts a worker's model side, and stops it."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(settings.redis))
        triton = await stack.enter_async_context(connect(str(settings.triton.grpc_url)))
        aliases = Aliases(store)
        registry = ModelRegistry(settings.triton.model_repository, aliases)
        locks = Locks(store, ttl_s=lock_ttl_s)
        cache = ModelCache(settings=settings, store=store, triton=triton, registry=registry, locks=locks)
        reconciler = Reconciler(
            settings=settings, triton=triton, registry=registry, aliases=aliases, cache=cache
        )
        operations = ModelOperations(
            settings=settings,
            store=store,
            triton=triton,
            registry=registry,
            aliases=aliases,
            cache=cache,
            exporter=exporter,
        )
        await registry.refresh()
        tasks = {
            "listener": store.run_listener,
            "flusher": cache.run_flusher,
            "reconciler": reconciler.run,
            "operations": operations.run,
        }
        await stack.enter_async_context(background_tasks(tasks))
        stack.push_async_callback(cache.aclose)
        stack.push_async_callback(operations.aclose)
        yield ModelWorker(
            settings=settings,
            store=store,
            triton=triton,
            registry=registry,
            aliases=aliases,
            locks=locks,
            cache=cache,
            reconciler=reconciler,
            operations=operations,
        )


async def eventually(condition: Any, *, timeout_s: float = 30.0, what: str = "") -> None:
    """Polls an async condition until it is true.

    Raises:
        AssertionError: it didn't come true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.05)
