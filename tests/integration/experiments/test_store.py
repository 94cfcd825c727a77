"""Experiments on a real Redis: one creation, one move, each batch and each outcome once."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from control_plane.embedded.redis import RedisServer
from control_plane.experiments.counters import Counters
from control_plane.experiments.lifecycle import promotion
from control_plane.experiments.state import experiment_of, first_state, observations_of
from control_plane.inference.routing import Assignment
from control_plane.settings import RedisSettings
from control_plane.store.ensembles import CreditOutcome
from control_plane.store.experiments import CountBatch, ExperimentStore
from control_plane.store.redis import open_store
from tests.unit.experiments.definitions import FILLED, definition, stored

DEFINITION = definition(metrics=(FILLED, *definition().metrics))


@pytest.fixture
async def store(redis_server: RedisServer, redis_key_prefix: str) -> AsyncIterator[ExperimentStore]:
    async with open_store(RedisSettings(url=redis_server.url, key_prefix=redis_key_prefix)) as redis:  # type: ignore[arg-type]
        yield ExperimentStore(redis, retention_s=60)


async def create(store: ExperimentStore) -> bool:
    text = stored(DEFINITION).definition
    return await store.create("e", text, first_state(DEFINITION), created_at=DEFINITION.created_at)


async def test_id_is_taken_once_and_a_move_made_once(store: ExperimentStore) -> None:
    assert sorted(await asyncio.gather(*(create(store) for _ in range(5)))) == [False] * 4 + [True]
    (one,) = await store.active()
    experiment = experiment_of(one)
    move = promotion(experiment, now_s=1.0, reason="r")
    moved = await asyncio.gather(
        *(store.move("e", revision=experiment.revision, changes=move.changes, ends=True) for _ in range(5))
    )
    assert sorted(moved) == [False] * 4 + [True]
    assert await store.active() == []
    (ended,) = await store.all()
    assert experiment_of(ended).promoted


async def test_batches_count_once_whatever_order_and_however_often(store: ExperimentStore) -> None:
    await create(store)
    random = np.random.default_rng(3)
    latencies: list[list[float]] = [[], []]
    sent = []
    for worker in range(3):
        counters = Counters()
        for _ in range(4):
            for _ in range(100):
                variant = int(random.integers(2))
                unit = f"k{random.integers(60)}-{variant}"
                place = Assignment("e", variant, "v", 0, unit, True, "e:x")
                latency_ms = float(random.lognormal())
                latencies[variant].append(latency_ms)
                counters.answered(DEFINITION, place, latency_ms=latency_ms, covariate=None)
            taken = counters.take("e")
            assert taken is not None
            counters.confirm("e")
            sent.append((f"w{worker}", *taken))
    for worker, number, batch in sent:
        for _ in range(2):
            await store.add("e", worker, number, batch)
    found = await store.counts("e")
    (one,) = await store.active()
    seen = observations_of(experiment_of(one), found, ended=False)
    for variant in (0, 1):
        own = np.log(latencies[variant])
        sums = seen.moments["latency"][0, variant].sum(axis=0)
        np.testing.assert_allclose(sums[:3], [len(own), own.sum(), (own**2).sum()], rtol=1e-9)
        assert found.counts[f"0|{variant}|requests"] == len(own)
        assert found.counts[f"0|{variant}|units"] == 60
        assert seen.sketches[0][variant].count == len(own)
    assert await store.requests_of(["e"]) == {"e": 1200}


async def test_batch_that_redis_will_not_have_writes_nothing(store: ExperimentStore) -> None:
    await create(store)
    bad = CountBatch(
        counts={"0|0|requests": 5}, moments={"0|0|latency|1": [1.0, float("inf"), 1.0, 0.0, 0.0]}
    )
    assert not await store.add("e", "w", 1, bad)
    assert (await store.counts("e")).counts == {}
    assert await store.add("e", "w", 2, CountBatch(counts={"0|0|requests": 5}))
    assert (await store.counts("e")).counts == {"0|0|requests": 5}


async def test_outcome_counts_once(store: ExperimentStore) -> None:
    await create(store)
    field = {"0|1|filled|7": [1.0, 1e-9, 1e-18, 0.0, 0.0]}
    outcomes = [await store.credit("e", "r1", text="[1]", moments=field) for _ in range(2)]
    assert outcomes == [CreditOutcome.ACCEPTED, CreditOutcome.DUPLICATE]
    assert await store.credit("e", "r1", text="[2]", moments=field) is CreditOutcome.CONFLICT
    assert await store.credit("e", "r2", text="[1]", moments=field) is CreditOutcome.ACCEPTED
    assert (await store.counts("e")).moments["0|1|filled|7"] == (2.0, 2e-9, 2e-18, 0.0, 0.0)


async def test_one_worker_in_each_interval_has_the_turn(store: ExperimentStore) -> None:
    turns = await asyncio.gather(*(store.take_turn("look", "e", interval_s=30) for _ in range(5)))
    assert sum(turns) == 1
