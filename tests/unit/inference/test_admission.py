"""A dispatcher under overload, in virtual time, before a server that works on one call after the other."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from control_plane.errors import Overloaded, ServingError
from control_plane.inference.dispatcher import Dispatcher, DispatcherLimits
from control_plane.inference.tensors import Array
from tests.unit.inference.virtual_time import now, run, work

ROW = {"x": np.zeros((1, 1), dtype=np.float32)}
BASE_S, ROW_S = 0.002, 0.003


@dataclass
class Serial:
    """Triton with one instance: `BASE_S + ROW_S * rows` for each call, more where `noise` is, `slowness` times."""

    noise: float = 0.0
    slowness: float = 1.0
    busy_until: float = 0.0
    generator: random.Random = field(default_factory=lambda: random.Random(7))

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], *, timeout_s: float
    ) -> Mapping[str, Array]:
        del model, outputs, timeout_s
        service_s = (BASE_S + ROW_S * len(inputs["x"])) * (1 + self.noise * self.generator.expovariate(1))
        self.busy_until = max(now(), self.busy_until) + service_s * self.slowness
        await asyncio.sleep(self.busy_until - now())
        return {"y": inputs["x"]}


def dispatcher_of(server: Serial) -> Dispatcher:
    limits = DispatcherLimits(max_rows=64, calls_in_flight=2, max_queue_size=1000)
    return Dispatcher(model="m-v1", infer=server.infer, limits=limits, clock=now)


@dataclass
class Results:
    outcomes: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)

    async def ask(self, dispatcher: Dispatcher, timeout_s: float, priority: int = 3) -> None:
        began = now()
        try:
            await dispatcher.submit(ROW, ("y",), lane=0, deadline=began + timeout_s, priority=priority)
        except ServingError as error:
            self.outcomes[type(error).__name__] += 1
        else:
            self.outcomes["ok"] += 1
            self.latencies_s.append(now() - began)


async def offer(dispatcher: Dispatcher, *, rate: float, seconds: float, timeout_s: float) -> Results:
    """An open loop."""
    generator = random.Random(3)
    results = Results()
    end = now() + seconds
    async with asyncio.TaskGroup() as group:
        while now() < end:
            group.create_task(results.ask(dispatcher, timeout_s))
            await asyncio.sleep(generator.expovariate(rate))
    return results


async def capacity(server: Serial, callers: int = 32, seconds: float = 10.0) -> tuple[float, float]:
    """Requests a second of a closed loop, and its p99 in seconds."""
    dispatcher, results, end = dispatcher_of(server), Results(), now() + seconds

    async def caller() -> None:
        while now() < end:
            await results.ask(dispatcher, 30.0)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return results.outcomes["ok"] / seconds, float(np.quantile(results.latencies_s, 0.99))


@pytest.mark.parametrize(("noise", "least"), [(0.0, 0.9), (0.3, 0.9), (1.0, 0.7)])
@pytest.mark.parametrize("times", [2, 4])
def test_overload_leaves_the_throughput_and_the_deadline(noise: float, least: float, times: int) -> None:
    rate, p99_s = run(capacity(Serial(noise)))
    results = run(offer(dispatcher_of(Serial(noise)), rate=times * rate, seconds=10, timeout_s=2 * p99_s))
    assert results.outcomes["ok"] / 10 > least * rate
    assert max(results.latencies_s) <= 2 * p99_s
    # Most of those who can't be served hear it at once, rather than at their deadline.
    assert results.outcomes["Overloaded"] > 5 * results.outcomes["DeadlineExceeded"]


def test_what_can_be_done_is_let_in() -> None:
    rate, p99_s = run(capacity(Serial(0.3)))
    results = run(offer(dispatcher_of(Serial(0.3)), rate=0.7 * rate, seconds=10, timeout_s=3 * p99_s))
    assert results.outcomes["ok"] / sum(results.outcomes.values()) > 0.99


def test_bursts_leave_no_doubt_behind() -> None:
    """Requests that come together wait for each other's rows: no reason to expect less of those that come later."""

    async def scenario() -> None:
        dispatcher, results = dispatcher_of(Serial()), Results()
        for burst in (8, 16, 24) * 15:
            async with asyncio.TaskGroup() as group:
                for _ in range(burst):
                    group.create_task(results.ask(dispatcher, 30))
        results.outcomes.clear()
        waiting = [asyncio.create_task(results.ask(dispatcher, 30)) for _ in range(16)]
        await asyncio.sleep(0.001)
        # One call of 16 rows is in flight, and this one comes after it.
        await results.ask(dispatcher, 2 * (2 * BASE_S + 17 * ROW_S))
        await asyncio.gather(*waiting)
        assert results.outcomes == {"ok": 17}

    run(scenario())


def test_what_waits_in_vain_is_refused_when_its_turn_comes() -> None:
    async def scenario() -> None:
        server = Serial()
        dispatcher = dispatcher_of(server)
        await offer(dispatcher, rate=100, seconds=2, timeout_s=30)
        first = [
            asyncio.create_task(dispatcher.submit(ROW, ("y",), lane=0, deadline=now() + 30)) for _ in range(2)
        ]
        await asyncio.sleep(0.0001)
        second = asyncio.create_task(dispatcher.submit(ROW, ("y",), lane=1, deadline=now() + 30))
        await asyncio.sleep(0.0001)
        server.busy_until += 0.5
        deadline = now() + 0.1
        waiting = asyncio.create_task(dispatcher.submit(ROW, ("y",), lane=0, deadline=deadline))
        with pytest.raises(ServingError):
            await waiting
        assert now() <= deadline + 1e-6
        await asyncio.gather(*first, second)

    run(scenario())


def test_busy_worker_is_not_taken_for_a_slow_model() -> None:
    """Something keeps the processor for 50 ms between a call's turn and its sending; Triton takes 5 ms."""

    async def scenario() -> None:
        dispatcher, results = dispatcher_of(Serial()), Results()
        loop = asyncio.get_running_loop()
        for _ in range(30):
            loop.call_soon(loop.call_soon, work, 0.05)
            await results.ask(dispatcher, 30)
            await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(results.ask(dispatcher, 30)) for _ in range(2)]
        await asyncio.sleep(0.0001)
        await dispatcher.submit(ROW, ("y",), lane=0, deadline=now() + 0.08)
        await asyncio.gather(*waiting)

    run(scenario())


def test_long_deadline_is_left_to_the_queue_bound() -> None:
    results = run(offer(dispatcher_of(Serial()), rate=2000, seconds=2, timeout_s=30))
    assert results.outcomes.keys() <= {"ok", "QueueFull"}


def test_slow_stretch_is_got_over() -> None:
    async def scenario() -> None:
        server = Serial()
        dispatcher = dispatcher_of(server)
        await offer(dispatcher, rate=100, seconds=2, timeout_s=0.5)
        server.slowness = 50.0
        slow = await offer(dispatcher, rate=100, seconds=3, timeout_s=0.5)
        assert slow.outcomes["ok"] < slow.outcomes["Overloaded"]
        server.slowness = 1.0
        await asyncio.sleep(max(0.0, server.busy_until - now()))
        await offer(dispatcher, rate=100, seconds=3, timeout_s=0.5)
        after = await offer(dispatcher, rate=100, seconds=2, timeout_s=0.5)
        assert after.outcomes["ok"] / sum(after.outcomes.values()) > 0.99

    run(scenario())


def test_refusal_says_when_to_come_again() -> None:
    async def scenario() -> None:
        dispatcher = dispatcher_of(Serial())
        await offer(dispatcher, rate=100, seconds=1, timeout_s=30)
        results = Results()
        waiting = [asyncio.create_task(results.ask(dispatcher, 30)) for _ in range(500)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await dispatcher.submit(ROW, ("y",), lane=0, deadline=now() + 0.1)
        assert 0.5 < caught.value.retry_after_s < 5
        assert caught.value.expected == "an answer within 100 ms"
        # The highest priority has nobody before it.
        await dispatcher.submit(ROW, ("y",), lane=0, deadline=now() + 1.0, priority=1)
        await asyncio.gather(*waiting)
        assert results.outcomes == {"ok": 500}

    run(scenario())


def test_idle_dispatcher_lets_in_whatever_it_believes() -> None:
    async def scenario() -> None:
        server = Serial(slowness=100.0)
        dispatcher = dispatcher_of(server)
        for _ in range(8):
            await dispatcher.submit(ROW, ("y",), lane=0, deadline=now() + 30)
        server.slowness = 1.0
        await dispatcher.submit(ROW, ("y",), lane=0, deadline=now() + 0.1)

    run(scenario())
