"""The model cache over a real Triton and a real Redis: LRU, TTL, shared loads, pins, unloads under traffic."""

import asyncio
import random
import time
from pathlib import Path

import numpy as np
import pytest

from control_plane.errors import CacheFull, DeadlineExceeded, ModelInUse, ModelLoadFailed
from tests.integration.models.conftest import StartWorker
from tests.support.model_worker import ModelWorker, eventually
from tests.support.repository import FEATURES, marker_of, write_identity_like_model


async def test_use_at_capacity_evicts_least_recently_used(start_worker: StartWorker) -> None:
    worker = await start_worker(max_models=3)
    models = [worker.version("echo", f"v1.{minor}") for minor in range(4)]
    for model in models[:3]:
        assert await worker.use(model) == marker_of("echo", model.version)
    await worker.use(models[0])
    await worker.use(models[3])
    assert await worker.ready_in_triton() == {models[0].key, models[2].key, models[3].key}
    stats = await worker.cache.stats()
    assert (stats.hits, stats.misses, stats.evictions, stats.total_usage) == (1, 4, 1, 5)
    assert {model.key: model.usage_count for model in stats.models} == {
        models[0].key: 2,
        models[2].key: 1,
        models[3].key: 1,
    }
    assert stats.max_capacity == 3
    assert all(model.size_bytes > 0 and model.loaded_at <= model.last_used for model in stats.models)


async def test_order_of_use_counts_over_all_workers(start_worker: StartWorker) -> None:
    one, two = await start_worker(max_models=2), await start_worker(max_models=2)
    a, b, c = (one.version("echo", f"v1.{minor}") for minor in range(3))
    await one.use(a)
    await one.use(b)
    await two.use(a)  # only the other worker knows that a was used last
    await two.cache.link.flush()
    await one.use(c)
    assert await one.ready_in_triton() == {a.key, c.key}


async def test_sixteen_waiters_in_two_workers_share_one_load(start_worker: StartWorker) -> None:
    workers = [await start_worker(), await start_worker()]
    model = workers[0].version("echo", "v1.0")
    loads: list[str] = []
    for worker in workers:
        load = worker.triton.load

        async def counted(name: str, *, timeout_s: float, load=load) -> None:  # type: ignore[no-untyped-def]
            loads.append(name)
            await load(name, timeout_s=timeout_s)

        worker.triton.load = counted  # type: ignore[method-assign]
    answers = await asyncio.gather(*(worker.use(model) for worker in workers for _ in range(8)))
    assert set(answers) == {marker_of("echo", "v1.0")}
    assert loads == [model.key]
    await asyncio.gather(*(worker.cache.link.flush() for worker in workers))
    stats = await workers[0].cache.stats()
    assert stats.hits + stats.misses == stats.total_usage == 16


async def test_waiter_that_leaves_does_not_harm_the_load(start_worker: StartWorker) -> None:
    worker = await start_worker()
    model = worker.version("echo", "v1.0")
    leaving = asyncio.create_task(worker.use(model))
    staying = asyncio.create_task(worker.use(model))
    await asyncio.sleep(0.05)
    leaving.cancel()
    assert await staying == marker_of("echo", "v1.0")


async def test_waiter_past_its_deadline_gets_deadline_exceeded_and_load_goes_on(
    start_worker: StartWorker,
) -> None:
    worker = await start_worker()
    model = worker.version("echo", "v1.0")
    with pytest.raises(DeadlineExceeded):
        await worker.cache.ensure_loaded(model, deadline=time.monotonic() + 0.05)

    async def loaded() -> bool:
        return worker.cache.is_loaded(model)

    await eventually(loaded, what="the load goes on")


async def test_idle_version_is_unloaded_when_its_ttl_ends(start_worker: StartWorker) -> None:
    worker = await start_worker(ttl_seconds=2.0)
    idle, busy = worker.version("echo", "v1.0"), worker.version("echo", "v1.1")
    await worker.use(idle)
    await worker.use(busy)

    async def expired() -> bool:
        assert worker.cache.try_use(busy)
        worker.cache.done(busy)
        stats = await worker.cache.stats()
        return stats.expirations == 1 and await worker.ready_in_triton() == {busy.key}

    await eventually(expired, timeout_s=15, what="the idle version leaves, the used one stays")
    stats = await worker.cache.stats()
    assert stats.evictions == 0
    assert 0 < (stats.models[0].ttl_remaining_s or 0) <= 2.0


async def test_version_in_use_is_not_evicted_and_waiting_for_room_ends_in_cache_full(
    start_worker: StartWorker,
) -> None:
    worker, other = await start_worker(max_models=1), await start_worker(max_models=1)
    used, wanted = worker.version("echo", "v1.0"), worker.version("echo", "v1.1")
    await worker.cache.ensure_loaded(used, deadline=time.monotonic() + 30)
    assert worker.cache.try_use(used)
    await worker.cache.link.flush()
    with pytest.raises(CacheFull):
        await other.cache.ensure_loaded(wanted, deadline=time.monotonic() + 1.5)
    assert await worker.ready_in_triton() == {used.key}
    worker.cache.done(used)
    assert await other.use(wanted) == marker_of("echo", "v1.1")


async def test_pinned_version_is_neither_evicted_nor_unloaded(start_worker: StartWorker) -> None:
    worker = await start_worker(max_models=2)
    pinned, second, third = (worker.version("echo", f"v1.{minor}") for minor in range(3))
    await worker.use(pinned)
    await worker.cache.pin(pinned.key, "experiment-a")
    await worker.cache.pin(pinned.key, "experiment-b")
    await worker.use(second)
    await worker.use(third)
    assert await worker.ready_in_triton() == {pinned.key, third.key}
    with pytest.raises(ModelInUse):
        await worker.cache.unload(pinned.key, deadline=time.monotonic() + 10)
    await worker.cache.unpin(pinned.key, "experiment-a")
    with pytest.raises(ModelInUse):
        await worker.cache.unload(pinned.key, deadline=time.monotonic() + 10)
    await worker.cache.unpin(pinned.key, "experiment-b")
    assert await worker.cache.unload(pinned.key, deadline=time.monotonic() + 10)
    assert not await worker.cache.unload(pinned.key, deadline=time.monotonic() + 10)


async def test_version_that_triton_cannot_load_frees_its_slot(
    start_worker: StartWorker, repository: Path
) -> None:
    write_identity_like_model(repository, "bad", "v1", broken=True)
    worker = await start_worker(max_models=1)
    bad, good = worker.version("bad", "v1"), worker.version("echo", "v1.0")
    with pytest.raises(ModelLoadFailed, match="could not load bad-v1"):
        await worker.cache.ensure_loaded(bad, deadline=time.monotonic() + 30)
    assert (await worker.cache.residency.snapshot()).slots == {}
    await worker.use(good)
    with pytest.raises(ModelLoadFailed):  # remembered: it doesn't drive the good one out at each request
        await worker.cache.ensure_loaded(bad, deadline=time.monotonic() + 30)
    assert worker.cache.is_loaded(good)


async def test_thrash_over_six_versions_in_three_slots_keeps_every_invariant(
    start_worker: StartWorker,
) -> None:
    workers = [await start_worker(max_models=3), await start_worker(max_models=3)]
    models = [workers[0].version("echo", f"v1.{minor}") for minor in range(6)]
    rng = random.Random(20240917)
    uses = [(rng.choice(workers), rng.choice(models)) for _ in range(240)]
    most_ready = 0
    running = True

    async def watch() -> None:
        nonlocal most_ready
        while running:
            index = await workers[0].triton.repository_index()
            # Not UNLOADING: an evicted version's process lingers a second in Triton's Python backend (decision 006).
            held = sum(entry.state in ("READY", "LOADING") for entry in index)
            most_ready = max(most_ready, held)
            await asyncio.sleep(0.02)

    async def caller(share: list[tuple[ModelWorker, object]]) -> None:
        for worker, model in share:
            assert await worker.use(model, timeout_s=120) == marker_of("echo", model.version)  # type: ignore[attr-defined, arg-type]

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(caller(uses[at::12]) for at in range(12)))
    running = False
    await watcher
    assert most_ready <= 3
    await asyncio.gather(*(worker.cache.link.flush() for worker in workers))
    stats = await workers[0].cache.stats()
    snapshot = await workers[0].cache.residency.snapshot()
    assert {key for key, slot in snapshot.slots.items() if slot.state == "ready"} == await workers[
        0
    ].ready_in_triton()
    assert stats.total_usage >= len(uses)
    assert stats.total_usage == sum(
        belief.uses for worker in workers for belief in worker.cache.beliefs._models.values()
    )
    assert stats.hits + stats.misses >= stats.total_usage
    assert stats.evictions >= 3


async def test_repeated_unloads_under_traffic_give_only_right_answers(start_worker: StartWorker) -> None:
    worker, other = await start_worker(), await start_worker()
    model = worker.version("echo", "v1.0")
    answers = 0
    running = True

    async def caller(one: ModelWorker) -> None:
        nonlocal answers
        while running:
            assert await one.use(model) == marker_of("echo", "v1.0")
            answers += 1

    callers = [asyncio.create_task(caller(one)) for one in (worker, other) for _ in range(4)]
    for _ in range(8):
        await worker.cache.load(model, deadline=time.monotonic() + 30, fresh=True)
        assert await other.cache.unload(model.key, deadline=time.monotonic() + 30)
    running = False
    await asyncio.gather(*callers)
    assert answers >= 64


async def test_unload_waits_for_requests_in_flight(start_worker: StartWorker, repository: Path) -> None:
    write_identity_like_model(repository, "slow", "v1", work=20_000)
    worker, other = await start_worker(), await start_worker()
    model = worker.version("slow", "v1")
    await worker.use(model)
    started = time.monotonic()
    running = asyncio.create_task(worker.use(model))
    await asyncio.sleep(0.05)
    assert await other.cache.unload(model.key, deadline=time.monotonic() + 30)
    assert running.done()
    assert await running == marker_of("slow", "v1")
    assert time.monotonic() - started > 0.2


async def test_changed_files_are_reloaded_in_place(start_worker: StartWorker, repository: Path) -> None:
    worker = await start_worker()
    model = worker.version("echo", "v1.0")
    assert await worker.use(model) == marker_of("echo", "v1.0")
    write_identity_like_model(repository, "echo", "v1.0", revision=1)
    await worker.registry.refresh()
    changed = worker.version("echo", "v1.0")
    assert changed.card.content_digest != model.card.content_digest
    assert await worker.cache.reload(changed) is not None
    assert await worker.use(changed) == marker_of("echo", "v1.0", revision=1)


async def test_hot_path_takes_microseconds(start_worker: StartWorker) -> None:
    worker = await start_worker()
    model = worker.version("echo", "v1.0")
    await worker.use(model)
    rounds = 20_000
    started = time.perf_counter()
    for _ in range(rounds):
        assert worker.cache.try_use(model)
        worker.cache.done(model)
    took_us = (time.perf_counter() - started) / rounds * 1e6
    assert took_us < 20
    outputs = await worker.triton.infer(
        model.key, {"x": np.ones((2, FEATURES), np.float32)}, ["y"], timeout_s=10
    )
    assert outputs["y"].shape == (2, FEATURES)
