"""What was learned lasts as long as it should: beyond a version's card, across contents, and not for ever."""

import asyncio
import time
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from control_plane.ensembles.policies import PolicySettings
from control_plane.ensembles.records import ensemble_of, record_from
from control_plane.inference.feedback import Feedback, FeedbackStatus
from control_plane.inference.identifiers import uuid7
from control_plane.settings import EnsemblesSettings
from control_plane.telemetry.exposition import Exposition
from tests.integration.ensembles.conftest import AGENTS, CARD, NAME, LearningWorker, StartWorker, decision

HALF_LIFE_HOURS = 1000.0
PERIOD_S = HALF_LIFE_HOURS * 3600 * 64
OF_LOAD = msgspec.structs.replace(
    CARD,
    config=CARD.config | {"weights_policy": {"half_life_hours": HALF_LIFE_HOURS}},
    content_digest="ab" * 8,
)


async def learn(worker: LearningWorker, count: int = 30) -> None:
    ids = [worker.decide(seed=seed) for seed in range(count)]
    results = await worker.desk.take(
        [Feedback(request_id=one, reward=0.01 * at) for at, one in enumerate(ids)]
    )
    assert {result.status for result in results} == {FeedbackStatus.ACCEPTED}


async def test_reward_after_the_version_is_gone_counts_by_the_policy_of_its_load(
    start_worker: StartWorker,
) -> None:
    worker = await start_worker()
    await worker.see(OF_LOAD)
    known = worker.decide(card=OF_LOAD)
    await worker.see(None)
    assert (await worker.give(known, 1.0)).status is FeedbackStatus.ACCEPTED
    ensemble = ensemble_of(OF_LOAD)
    state = (await worker.store.states([ensemble]))[ensemble]
    assert state.rewards == 1
    assert list(state.sums) == [int(time.time() // PERIOD_S)]


async def test_policy_of_the_load_holds_until_another_is_set(start_worker: StartWorker) -> None:
    worker = await start_worker()
    await worker.see(OF_LOAD)
    assert (await worker.operations.look(NAME)).learned.settings.half_life_hours == HALF_LIFE_HOURS
    await worker.operations.change_policy(NAME, PolicySettings())
    await worker.see(OF_LOAD)
    assert (await worker.operations.look(NAME)).learned.settings.half_life_hours is None


async def test_other_agents_begin_with_nothing_and_rewards_go_to_those_that_decided(
    start_worker: StartWorker,
) -> None:
    worker = await start_worker()
    await learn(worker)
    late = worker.decide()
    await worker.see(msgspec.structs.replace(CARD, content_digest="fedcba9876543210"))
    assert (await worker.operations.look(NAME)).learned.state.rewards == 0
    assert (await worker.give(late, 1.0)).status is FeedbackStatus.ACCEPTED
    assert (await worker.operations.look(NAME)).learned.state.rewards == 0
    await worker.see(CARD)
    assert (await worker.operations.look(NAME)).learned.state.rewards == 31


async def test_same_agents_in_another_format_keep_what_was_learned(start_worker: StartWorker) -> None:
    worker = await start_worker()
    onnx, torchscript = (
        msgspec.structs.replace(
            CARD, config=CARD.config | {"agents_digest": "feedface" * 8}, content_digest=one
        )
        for one in ("11" * 8, "22" * 8)
    )
    await worker.see(onnx)
    ids = [worker.decide(seed=seed, card=onnx) for seed in range(30)]
    await worker.desk.take([Feedback(request_id=one, reward=float(at % 7)) for at, one in enumerate(ids)])
    await worker.weights.refresh()
    weights = worker.weights.current(onnx).weights
    assert weights.max() > 0.34
    np.testing.assert_array_equal(worker.weights.current(torchscript).weights, weights)
    await worker.see(torchscript)
    np.testing.assert_array_equal(worker.weights.current(torchscript).weights, weights)


async def test_weights_of_a_version_that_is_gone_are_not_shown(start_worker: StartWorker) -> None:
    worker = await start_worker()
    await worker.weights.refresh()
    shown = [one["labels"] for one in Exposition(None).json()["ensemble_weight"]]
    assert {"model": NAME, "agent": "ppo"} in shown
    await worker.see(None)
    left = Exposition(None).json().get("ensemble_weight", [])
    assert not [one for one in left if one["labels"]["model"] == NAME]
    assert NAME.encode() not in b"".join(
        line for line in Exposition(None).text().splitlines() if line.startswith(b"ensemble_weight{")
    )


async def test_id_that_was_used_twice_has_the_later_decision(start_worker: StartWorker) -> None:
    clock = [time.time()]
    early, late = [await start_worker(wall=lambda: clock[0], flush_interval_s=60) for _ in range(2)]
    for name, order in (("early-first", (early, late)), ("late-first", (late, early))):
        early.decide(name, seed=1)
        clock[0] += 1.0
        late.decide(name, seed=2)
        for worker in order:
            await worker.recorder.flush()
        kept = record_from((await early.store.decisions([name]))[name])
        assert kept.agent_probs == decision(seed=2).agent_probs.tobytes()
        assert kept.time_s == clock[0]


async def test_feedback_to_an_id_that_is_used_again_is_known_for_as_long_as_the_id(
    start_worker: StartWorker,
) -> None:
    worker = await start_worker(retention_s=100.0)
    known = worker.decide()
    await worker.give(known, 1.0)
    keys = worker.redis.keys
    async with worker.redis.session() as redis:
        assert 95 < await redis.ttl(keys.decision(known)) <= 100
        assert 195 < await redis.ttl(keys.feedback(known, 0)) <= 200


async def test_nothing_is_kept_without_retention_nor_beyond_the_memory(start_worker: StartWorker) -> None:
    off, full = await start_worker(retention_s=0.0), await start_worker(max_redis_bytes=1)
    request_id = off.decide()
    await off.recorder.flush()
    assert await off.store.decisions([request_id]) == {}
    assert (await off.give(request_id, 1.0)).status is FeedbackStatus.EXPIRED
    deadline = time.monotonic() + 10
    while not (warnings := full.recorder.note("a", CARD, decision())):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert "feedback.max_redis_bytes" in warnings[0]


async def test_decision_that_cannot_be_read_costs_only_its_own_feedback(start_worker: StartWorker) -> None:
    worker = await start_worker(flush_interval_s=60)
    known, broken = worker.decide("known"), uuid7(time_s=time.time() - 60)
    odd = replace(decision(), propensity=np.array([np.nan]))
    assert "finite" in worker.recorder.note("odd", CARD, odd)[0]
    async with worker.redis.session() as redis:
        await redis.set(worker.redis.keys.decision(broken), "[1]")
    results = await worker.desk.take([Feedback(request_id=one, reward=1.0) for one in (broken, known)])
    assert [result.status.value for result in results] == ["unknown", "accepted"]


async def test_calls_that_wait_are_bounded_and_ids_from_the_future_are_not_waited_for(
    start_worker: StartWorker,
) -> None:
    worker = await start_worker()
    ahead = uuid7(time_s=time.time() + 60)
    result = await asyncio.wait_for(worker.give(ahead, 1.0), timeout=3)
    assert result.status is FeedbackStatus.UNKNOWN
    waiting = [asyncio.create_task(worker.give(uuid7(), 1.0)) for _ in range(120)]
    done, pending = await asyncio.wait(waiting, timeout=2)
    assert len(done) >= 120 - 64
    assert {task.result().status for task in done} == {FeedbackStatus.UNKNOWN}
    assert pending
    for task in pending:
        task.cancel()


async def test_last_change_enters_the_history_when_its_turn_comes(start_worker: StartWorker) -> None:
    settings = EnsemblesSettings(history_interval_s=0.5, poll_interval_s=0.05)
    workers = [await start_worker(ensembles=settings) for _ in range(2)]
    await learn(workers[0])
    await workers[0].weights.refresh()
    await learn(workers[0])
    deadline = time.monotonic() + 10
    while True:
        view = await workers[0].operations.look(NAME)
        if view.history and view.history[-1].rewards == 60:
            break
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert view.history[-1].weights == pytest.approx(view.learned.weights.tolist())
    await asyncio.sleep(1.2)  # two more turns, in which nothing is new
    assert (await workers[1].operations.look(NAME)).history == view.history


async def test_reset_leaves_no_more_than_the_policy(start_worker: StartWorker) -> None:
    worker = await start_worker()
    await learn(worker)
    await worker.weights.refresh()
    view = await worker.operations.reset(NAME)
    assert (view.learned.state.rewards, view.history) == (0, ())
    ensemble = ensemble_of(CARD)
    assert await worker.store.log(ensemble) == []
    assert (await worker.operations.evaluate(NAME)).entries == 0
    async with worker.redis.session() as redis:
        kinds = ("sums", "log", "history", "history_turn", "state")
        left = [await redis.exists(worker.redis.keys.ensembles(kind, ensemble)) for kind in kinds]
    assert left == [0, 0, 0, 0, 1]


async def test_periods_that_count_for_nothing_are_swept_up(start_worker: StartWorker) -> None:
    clock = [time.time() - 30 * 86_400]
    worker = await start_worker(wall=lambda: clock[0])
    await worker.operations.change_policy(NAME, PolicySettings(half_life_hours=0.01))
    await worker.give(worker.decide("old"), 1.0)
    clock[0] = time.time()
    await worker.give(worker.decide("new"), 2.0)
    await worker.weights.refresh()
    state = (await worker.store.states([ensemble_of(CARD)]))[ensemble_of(CARD)]
    assert list(state.sums) == [int(clock[0] // (36 * 64))]
    assert state.rewards == 2


async def test_log_of_many_pages_is_read_whole_and_in_order(start_worker: StartWorker) -> None:
    worker = await start_worker()
    key = worker.redis.keys.ensembles("log", "x")
    async with worker.redis.session() as redis, redis.pipeline() as pipe:
        for number in range(1_700):
            pipe.xadd(key, {"e": str(number)})
        await pipe.execute()
    assert await worker.store.log("x") == [str(number) for number in range(1_700)]
    async with worker.redis.session() as redis:
        await redis.xtrim(key, maxlen=1_000, approximate=False)
    assert await worker.store.log("x") == [str(number) for number in range(700, 1_700)]


async def test_odd_entry_of_the_log_is_left_out_of_the_evaluation(start_worker: StartWorker) -> None:
    worker = await start_worker()
    await learn(worker, 200)
    key = worker.redis.keys.ensembles("log", ensemble_of(CARD))
    async with worker.redis.session() as redis:
        await redis.xadd(key, {"e": "[]"})
    found = await worker.operations.evaluate(NAME)
    assert (found.entries, found.left_out) == (201, 1)
    assert found.evaluation is not None
    assert found.evaluation.entries == 200
    assert found.weights["uniform"] == pytest.approx(dict.fromkeys(("ppo", "dqn", "td3"), 1 / AGENTS))
