"""What breaks, heals: dead holders of locks, a killed Triton, a killed or emptied Redis."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.asyncio import Redis

from control_plane.background import background_tasks
from control_plane.embedded.redis import RedisServer
from control_plane.embedded.triton import TritonServer
from control_plane.errors import RedisUnavailable, TritonUnavailable
from control_plane.models.card import ServingOptions
from control_plane.models.fallbacks import FallbackKeeper
from control_plane.settings import Settings
from control_plane.store.residency import ReserveOutcome, SlotState, UnloadMode, UnloadOutcome
from tests.integration.models.conftest import StartWorker
from tests.support.embedded import model_processes, running_redis, running_triton
from tests.support.model_worker import ModelWorker, eventually, model_worker, worker_settings
from tests.support.repository import marker_of, write_identity_like_model

_CRASHING = """
import asyncio, sys, time
from pathlib import Path
from tests.support.model_worker import model_worker, worker_settings

async def main(redis_port, grpc_url, repository, prefix):
    settings = worker_settings(redis_port=int(redis_port), grpc_url=grpc_url, repository=Path(repository),
                               key_prefix=prefix, cache={"max_models": 2})
    async with model_worker(settings, lock_ttl_s=1.0) as worker:
        load = asyncio.create_task(worker.use(worker.version("echo", "v1.2")))
        while not (await worker.cache.residency.snapshot()).slots.get("echo-v1.2"):
            await asyncio.sleep(0.002)
        print("loading", flush=True)
        await load
        print("loaded", flush=True)
        await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


@dataclass(frozen=True, kw_only=True)
class Plant:
    """Servers that a test may kill, with two workers."""

    triton: TritonServer
    redis: RedisServer
    workers: tuple[ModelWorker, ModelWorker]

    async def kill_redis(self) -> None:
        """Kills Redis; it is started again by itself."""
        os.kill(self.redis.child.pid or 0, signal.SIGKILL)

    async def kill_triton(self) -> None:
        """Kills Triton; it is started again by itself, with nothing loaded."""
        os.kill(self.triton.child.pid or 0, signal.SIGKILL)


@pytest.fixture
async def plant(tmp_path: Path, redis_key_prefix: str) -> AsyncIterator[Plant]:
    repository = tmp_path / "repository"
    repository.mkdir()
    for minor in range(4):
        write_identity_like_model(repository, "echo", f"v1.{minor}")
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(running_redis(tmp_path / "redis"))
        triton = stack.enter_context(running_triton(tmp_path / "triton", repository))
        settings = _settings(redis, triton, repository, redis_key_prefix)
        workers = [await stack.enter_async_context(model_worker(settings, lock_ttl_s=2.0)) for _ in range(2)]
        yield Plant(triton=triton, redis=redis, workers=(workers[0], workers[1]))


def _settings(redis: RedisServer, triton: TritonServer, repository: Path, prefix: str) -> Settings:
    return worker_settings(
        redis_port=redis.port, grpc_url=triton.grpc_url, repository=repository, key_prefix=prefix
    )


async def test_slots_of_a_dead_holder_are_freed_or_settled(start_worker: StartWorker) -> None:
    worker = await start_worker(max_models=3)
    victim, wanted = worker.version("echo", "v1.0"), worker.version("echo", "v1.1")
    await worker.use(victim)
    residency, epoch = worker.cache.residency, worker.cache.beliefs.epoch
    # Two operations that die: one was loading (fence 1, lock never held), one was unloading.
    assert await residency.reserve(wanted.key, 1, most=3, epoch=epoch) == (ReserveOutcome.RESERVED, "")
    assert await residency.begin_unload(victim.key, 2, UnloadMode.EXPLICIT) is UnloadOutcome.UNLOADING

    async def healed() -> bool:
        slots = (await residency.snapshot()).slots
        return wanted.key not in slots and slots[victim.key].state is SlotState.READY

    await eventually(healed, what="the loading slot is free, the unloading one ready again")
    assert await worker.use(victim) == marker_of("echo", "v1.0")
    assert await worker.use(wanted) == marker_of("echo", "v1.1")


async def test_worker_killed_in_a_load_leaves_nothing_behind(
    start_worker: StartWorker, redis_server: RedisServer, cache_triton: TritonServer, redis_key_prefix: str
) -> None:
    worker = await start_worker(max_models=2, lock_ttl_s=1.0)
    models = [worker.version("echo", f"v1.{minor}") for minor in range(3)]
    await worker.use(models[0])
    await worker.use(models[1])
    arguments = [
        str(redis_server.port),
        cache_triton.grpc_url,
        str(worker.registry.repository),
        redis_key_prefix,
    ]
    process = subprocess.Popen(  # noqa: ASYNC220  read in a thread
        [sys.executable, "-c", _CRASHING, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.defpath},
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert await asyncio.to_thread(lambda: any(line.strip() == "loading" for line in lines))
    finally:
        process.kill()
        process.wait()
        process.stdout.close() if process.stdout else None
    started = time.monotonic()
    assert await worker.use(models[2]) == marker_of("echo", "v1.2")
    assert time.monotonic() - started < 10

    async def agreed() -> bool:
        slots = (await worker.cache.residency.snapshot()).slots
        ready = {key for key, slot in slots.items() if slot.state is SlotState.READY}
        return ready == set(slots) == await worker.ready_in_triton() and len(slots) <= 2

    await eventually(agreed, what="Redis and Triton agree")
    for model in models:
        assert await worker.use(model) == marker_of("echo", model.version)


async def test_killed_triton_gets_back_what_was_loaded(plant: Plant) -> None:
    one, two = plant.workers
    keepers = {
        f"keeper {number}": FallbackKeeper(
            settings=worker.settings, registry=worker.registry, cache=worker.cache
        ).run
        for number, worker in enumerate(plant.workers)
    }
    # The third is there because it is the fallback of the second.
    await one.operations.change_serving("echo", "v1.1", ServingOptions(fallback="v1.2"))
    for minor in range(2):
        await one.use(one.version("echo", f"v1.{minor}"))

    async def all_loaded() -> bool:
        try:
            return await two.ready_in_triton() == {f"echo-v1.{minor}" for minor in range(3)}
        except TritonUnavailable:
            return False

    async with background_tasks(keepers):
        await eventually(all_loaded, what="the fallback is loaded, too", timeout_s=10)
        await plant.kill_triton()

        async def is_down() -> bool:
            return not await two.triton.is_live()

        await eventually(is_down, what="Triton is gone")
        await eventually(all_loaded, what="all three are loaded again", timeout_s=30)
        for worker in (one, two):
            for minor in range(3):
                assert await worker.use(worker.version("echo", f"v1.{minor}")) == marker_of(
                    "echo", f"v1.{minor}"
                )
        assert await one.cache.residency.pinned("echo-v1.2")
        assert (await one.cache.stats()).evictions == 0


async def test_model_process_that_died_idle_is_restarted(plant: Plant) -> None:
    one, two = plant.workers
    model = one.version("echo", "v1.0")
    await one.use(model)
    for pid in model_processes(plant.triton):
        os.kill(pid, signal.SIGKILL)
    answers = await asyncio.gather(
        *(worker.use(model, timeout_s=20) for worker in (one, two) for _ in range(3))
    )
    assert set(answers) == {marker_of("echo", "v1.0")}


async def test_triton_killed_under_traffic_gives_only_unavailable_and_heals(plant: Plant) -> None:
    one, two = plant.workers
    models = [one.version("echo", f"v1.{minor}") for minor in range(3)]
    for model in models:
        await one.use(model)
    failures: list[float] = []
    running = True

    async def caller(worker: ModelWorker, at: int) -> None:
        while running:
            model = models[at % 3]
            at += 1
            try:
                assert await worker.use(model, timeout_s=20) == marker_of("echo", model.version)
            except TritonUnavailable:
                failures.append(time.monotonic())
                await asyncio.sleep(0.05)

    callers = [asyncio.create_task(caller(worker, at)) for worker in plant.workers for at in range(3)]
    await asyncio.sleep(0.3)
    await plant.kill_triton()
    await asyncio.sleep(0.2)

    async def back() -> bool:
        return len(two.cache.loaded_keys()) == 3 and time.monotonic() - failures[-1] > 0.5

    await eventually(back, timeout_s=40, what="answers again")
    running = False
    await asyncio.gather(*callers)
    assert failures


async def test_predictions_go_on_while_redis_is_down_and_counts_are_kept(plant: Plant) -> None:
    one, two = plant.workers
    loaded, unloaded = one.version("echo", "v1.0"), one.version("echo", "v1.1")
    await one.use(loaded)
    assert await two.use(loaded) == marker_of("echo", "v1.0")
    pid = plant.redis.child.pid or 0
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(20):
            assert await one.use(loaded) == marker_of("echo", "v1.0")
            assert await two.use(loaded) == marker_of("echo", "v1.0")
        with pytest.raises(RedisUnavailable):
            await one.cache.ensure_loaded(unloaded, deadline=time.monotonic() + 10)
        with pytest.raises(RedisUnavailable):
            await one.cache.unload(loaded.key, deadline=time.monotonic() + 10)
        assert not one.store.up
    finally:
        os.kill(pid, signal.SIGCONT)

    async def counted() -> bool:
        try:
            stats = await one.cache.stats()
        except RedisUnavailable:
            return False
        return (stats.total_usage, stats.hits, stats.misses) == (42, 41, 2)

    await eventually(counted, what="every use is counted, once")
    assert await one.use(unloaded) == marker_of("echo", "v1.1")


async def test_killed_redis_heals_and_predictions_never_fail(plant: Plant) -> None:
    one, two = plant.workers
    model, other = one.version("echo", "v1.0"), one.version("echo", "v1.1")
    await one.use(model)
    await two.use(model)
    uses = 2
    running = True

    async def caller(worker: ModelWorker) -> None:
        nonlocal uses
        while running:
            assert await worker.use(model) == marker_of("echo", "v1.0")
            uses += 1
            await asyncio.sleep(0.001)

    callers = [asyncio.create_task(caller(worker)) for worker in plant.workers]
    await asyncio.sleep(0.3)
    await plant.kill_redis()
    await asyncio.sleep(1.0)

    async def back() -> bool:
        return await two.store.ping()

    await eventually(back, what="Redis is back")
    running = False
    await asyncio.gather(*callers)
    assert await two.use(other) == marker_of("echo", "v1.1")

    async def total() -> int:
        await two.cache.link.flush()
        return (await one.cache.stats()).total_usage

    # Redis may lose up to two seconds of acknowledged writes when it is killed (appendfsync everysec): so none is
    # counted twice, and from here on each is counted.
    kept = await total()
    assert 0 < kept <= uses + 1
    for _ in range(10):
        await one.use(model)
        await two.use(model)

    async def counted() -> bool:
        return await total() == kept + 20

    await eventually(counted, what="every use is counted, once")


async def test_emptied_redis_is_rebuilt_from_triton_and_memory(plant: Plant) -> None:
    one, two = plant.workers
    models = [one.version("echo", f"v1.{minor}") for minor in range(4)]
    await one.aliases.move("echo", "production", "v1.1")
    await two.aliases.refresh()
    for model in models[:3]:
        await one.use(model)
    await two.use(models[0])
    await two.cache.link.flush()
    before = await one.cache.stats()
    async with Redis(port=plant.redis.port) as redis:
        await redis.flushall()
    for model in models[:3]:
        assert await one.use(model) == marker_of("echo", model.version)

    async def rebuilt() -> bool:
        await two.cache.link.flush()
        stats = await one.cache.stats()
        return len(stats.models) == 3 and stats.total_usage == before.total_usage + 3

    await eventually(rebuilt, what="slots and counts are back")
    assert (await one.cache.stats()).misses == before.misses
    await eventually(lambda: _alias_is(two, "v1.1"), what="the alias is back")
    await two.use(models[3])  # evicts the one that was used last before all others
    assert await two.ready_in_triton() == {models[1].key, models[2].key, models[3].key}


async def _alias_is(worker: ModelWorker, version: str) -> bool:
    await worker.aliases.refresh()
    return worker.registry.resolve("echo", "production").version == version
