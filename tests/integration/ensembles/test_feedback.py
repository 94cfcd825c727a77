"""Feedback on a real Redis: each counts once, whatever its order and however often it comes."""

import asyncio
import math
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from control_plane.ensembles.credit import Decay, combine, contribution
from control_plane.ensembles.credit import credits as agents_credits
from control_plane.ensembles.policies import PolicySettings
from control_plane.ensembles.records import ensemble_of, entry_from
from control_plane.errors import EnsembleChanged, RedisUnavailable, ServingError
from control_plane.inference.feedback import Feedback, FeedbackStatus
from control_plane.inference.identifiers import uuid7
from tests.integration.ensembles.conftest import (
    AGENTS,
    CARD,
    NAME,
    LearningWorker,
    StartWorker,
    decision,
)
from tests.support.embedded import running_redis


async def statuses(worker: LearningWorker, *feedback: Feedback) -> list[str]:
    return [result.status.value for result in await worker.desk.take(feedback)]


async def test_each_status_is_given_for_its_reason(start_worker: StartWorker) -> None:
    worker = await start_worker()
    known, rows = worker.decide(), worker.decide(rows=2)
    old = uuid7(time_s=time.time() - 300_000)
    past = uuid7(time_s=time.time() - 60)
    give = [
        Feedback(request_id=known, reward=0.5),
        Feedback(request_id=known, reward=0.5),
        Feedback(request_id=known, reward=0.6),
        Feedback(request_id=known, reward=0.5, action="buy"),
        Feedback(request_id=rows, reward=1.0, row=1),
        Feedback(request_id=rows, outcome={"pnl": 2.0}),
        Feedback(request_id=rows, reward=1.0, row=2),
        Feedback(request_id=rows, reward=1.0, action="short"),
        Feedback(request_id=old, reward=1.0),
        Feedback(request_id=past, reward=1.0),
    ]
    assert await statuses(worker, *give) == [
        "accepted", "duplicate", "conflict", "conflict", "accepted", "accepted", "invalid", "invalid", "expired",
        "unknown",
    ]  # fmt: skip
    view = await worker.operations.look(NAME)
    assert view.learned.state.rewards == 2
    assert len(await worker.store.log(ensemble_of(CARD))) == 2


async def test_feedback_that_overtakes_its_decision_waits_for_it(start_worker: StartWorker) -> None:
    decider, taker = await start_worker(), await start_worker()
    early = uuid7()
    waiting = asyncio.create_task(taker.give(early, 1.0))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    decider.decide(early)
    assert (await waiting).status is FeedbackStatus.ACCEPTED
    undated = asyncio.create_task(taker.give("trade-1", 1.0))
    await asyncio.sleep(0.05)
    decider.decide("trade-1")
    assert (await undated).status is FeedbackStatus.ACCEPTED


@pytest.mark.parametrize("half_life_hours", [None, 0.002])
async def test_rewards_from_all_sides_count_once_and_as_computed_offline(
    start_worker: StartWorker, half_life_hours: float | None
) -> None:
    """Two workers, four callers, any order, retries: the sums are the log's own."""
    period_s = 64 * 3600 * (half_life_hours or 1.0)
    clock = [time.time() // period_s * period_s]  # from a period's beginning, so that two are met at any hour
    workers = [await start_worker(wall=lambda: clock[0]) for _ in range(2)]
    await workers[0].operations.change_policy(NAME, PolicySettings(half_life_hours=half_life_hours))
    shuffled = random.Random(5)
    rewards = {}
    for seed in range(300):
        clock[0] += 2.0  # 600 s in all: 83 half-lives, so two periods
        worker = shuffled.choice(workers)
        request_id = worker.decide(seed=seed, is_sampled=seed % 3 > 0)
        rewards[request_id] = shuffled.gauss(0.1, 1e-5)
    for worker in workers:
        await worker.recorder.flush()

    async def call(own: list[tuple[str, float]]) -> list[str]:
        sent = own * 2
        shuffled.shuffle(sent)
        found = []
        while sent:
            part, sent = sent[:7], sent[7:]
            found += await statuses(
                shuffled.choice(workers), *(Feedback(request_id=one, reward=reward) for one, reward in part)
            )
        return found

    everything = list(rewards.items())
    answers = await asyncio.gather(*(call(everything[start::3] + everything[:20]) for start in range(3)))
    flat = [one for answer in answers for one in answer]
    assert flat.count("accepted") == 300
    assert set(flat) == {"accepted", "duplicate"}

    entries = [entry_from(text) for text in await workers[0].store.log(ensemble_of(CARD))]
    assert sorted(entry.reward for entry in entries) == sorted(rewards.values())
    half_life_s = None if half_life_hours is None else half_life_hours * 3600
    decay = Decay(half_life_s=half_life_s)
    now_s = clock[0]
    offline = np.zeros((AGENTS, 4))
    for entry in entries:
        probs = np.frombuffer(entry.agent_probs, "<f4").reshape(AGENTS, -1).astype(np.float64)
        weights = np.frombuffer(entry.weights, "<f4").astype(np.float64)
        weight = 1.0 if half_life_s is None else 2.0 ** ((entry.time_s - now_s) / half_life_s)
        offline += contribution(agents_credits(probs, weights, entry.action), entry.reward, weight)
    exported = await workers[1].operations.export(NAME)
    periods = {int(period): np.array(sums) for period, sums in exported.sums.items()}
    assert len(periods) == (1 if half_life_s is None else 2)
    np.testing.assert_allclose(combine(periods, decay, now_s), offline, rtol=1e-9)


async def test_another_half_life_keeps_what_was_learned_as_of_now(start_worker: StartWorker) -> None:
    clock = [1.8e9]
    worker = await start_worker(wall=lambda: clock[0])
    ids = [worker.decide(f"a-{seed}", seed=seed) for seed in range(50)]
    await worker.desk.take([Feedback(request_id=one, reward=math.sin(at)) for at, one in enumerate(ids)])
    before = (await worker.operations.look(NAME)).learned
    later = await worker.operations.change_policy(NAME, PolicySettings(half_life_hours=1.0))
    np.testing.assert_allclose(later.learned.weights, before.weights, atol=1e-9)
    clock[0] += 3600
    aged = (await worker.operations.look(NAME)).learned
    for old, new in zip(before.posteriors, aged.posteriors, strict=True):
        assert new.pulls == pytest.approx(old.pulls / 2, rel=1e-9)
    back = await worker.operations.change_policy(NAME, PolicySettings())
    assert back.learned.posteriors[0].pulls == pytest.approx(before.posteriors[0].pulls / 2, rel=1e-9)
    assert back.learned.state.rewards == 50


async def test_policy_changes_amid_feedback_lose_nothing(start_worker: StartWorker) -> None:
    worker = await start_worker()
    ids = [worker.decide(seed=seed) for seed in range(200)]
    await worker.recorder.flush()

    async def change() -> None:
        for hours in (1e5, 2e5, None, 3e5, None):
            await worker.operations.change_policy(NAME, PolicySettings(half_life_hours=hours))
            await asyncio.sleep(0.01)

    async def reward() -> None:
        for one in ids:
            while True:
                try:
                    assert (await worker.give(one, 1.0)).status is FeedbackStatus.ACCEPTED
                except EnsembleChanged:
                    continue
                break

    await asyncio.gather(change(), reward())
    exported = await worker.operations.export(NAME)
    assert exported.rewards == 200
    total = sum(np.array(sums) for sums in exported.sums.values())
    entries = [entry_from(text) for text in await worker.store.log(ensemble_of(CARD))]
    credit = sum(
        agents_credits(
            np.frombuffer(entry.agent_probs, "<f4").reshape(AGENTS, -1).astype(np.float64),
            np.frombuffer(entry.weights, "<f4").astype(np.float64),
            entry.action,
        )
        for entry in entries
    )
    np.testing.assert_allclose(total[:, 0], credit, rtol=1e-3)  # half-lives of years forget next to nothing


async def test_state_moves_by_export_and_import_and_goes_by_reset(start_worker: StartWorker) -> None:
    worker = await start_worker()
    ids = [worker.decide(seed=seed) for seed in range(30)]
    await worker.desk.take([Feedback(request_id=one, reward=0.01 * at) for at, one in enumerate(ids)])
    before = (await worker.operations.look(NAME)).learned
    assert before.weights.max() > 0.34
    exported = await worker.operations.export(NAME)
    empty = (await worker.operations.reset(NAME)).learned
    np.testing.assert_allclose(empty.weights, 1 / AGENTS)
    assert empty.state.rewards == 0
    assert (await worker.give(ids[0], 0.0)).status is FeedbackStatus.DUPLICATE
    again = (await worker.operations.import_state(NAME, exported)).learned
    np.testing.assert_array_equal(again.weights, before.weights)
    assert again.state.rewards == 30


async def test_other_workers_act_with_what_one_learned(start_worker: StartWorker) -> None:
    one, other = await start_worker(), await start_worker()
    await other.weights.refresh()
    np.testing.assert_allclose(other.weights.current(CARD).weights, 1 / AGENTS)
    ids = [one.decide(seed=seed) for seed in range(100)]
    await one.desk.take([Feedback(request_id=i, reward=float(at % 7)) for at, i in enumerate(ids)])
    expected = (await one.operations.look(NAME)).learned.weights.astype(np.float32)
    deadline = time.monotonic() + 5
    while not np.array_equal(other.weights.current(CARD).weights, expected):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert other.weights.current(CARD).warnings == ()
    assert len((await other.operations.look(NAME)).history) == 1


async def test_without_redis_decisions_wait_weights_stay_and_nothing_is_acknowledged(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    with running_redis(tmp_path / "redis") as own:
        worker = await start_worker(redis_url=own.url, flush_interval_s=0.05)
        ids = [worker.decide(seed=seed) for seed in range(40)]
        await worker.desk.take([Feedback(request_id=one, reward=float(at)) for at, one in enumerate(ids)])
        await worker.weights.refresh()
        weights = worker.weights.current(CARD).weights
        pid = own.child.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(RedisUnavailable):
            await worker.give(ids[0], 9.0)
        while_away = worker.decide(seed=99)
        current = worker.weights.current(CARD)
        np.testing.assert_array_equal(current.weights, weights)
        assert "Redis" in current.warnings[0]
        os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + 20
        while True:
            try:
                result = await worker.give(while_away, 1.0)
                break
            except ServingError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        assert result.status is FeedbackStatus.ACCEPTED
        assert (await worker.give(ids[0], 0.0)).status is FeedbackStatus.DUPLICATE
        assert (await worker.operations.look(NAME)).learned.state.rewards == 41
        assert worker.weights.current(CARD).warnings == ()


async def test_decisions_beyond_the_bound_are_dropped_and_said(start_worker: StartWorker) -> None:
    worker = await start_worker(max_waiting=2, max_rows=2, flush_interval_s=60)
    worker.decide()
    note = worker.recorder.note
    assert "too many" in note("b", CARD, decision(rows=2))[0]  # rows count, not requests
    worker.decide()
    assert "too many" in note("b", CARD, decision())[0]
    await worker.recorder.flush()
    worker.decide(rows=2)
    assert "rows" in note("c", CARD, decision(rows=3))[0]
