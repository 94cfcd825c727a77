"""Whatever comes, in whatever order: nobody is lost, answered twice, or given another's rows."""

import asyncio
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from control_plane.errors import DeadlineExceeded, InferenceFailed, Overloaded, QueueFull, TritonUnavailable
from tests.unit.inference.in_memory import BAD, Doubler, dispatcher, submit
from tests.unit.inference.virtual_time import now, run


@dataclass(frozen=True)
class Arrival:
    """A request, and when its client leaves."""

    at: float
    rows: int
    priority: int
    lane: str
    timeout_s: float
    leaves_after: float | None
    is_bad: bool


arrivals = st.builds(
    Arrival,
    at=st.floats(0, 3),
    rows=st.integers(1, 5),
    priority=st.integers(1, 5),
    lane=st.sampled_from(["short", "long"]),
    timeout_s=st.sampled_from([0.05, 0.3, 1.0, 30.0]),
    leaves_after=st.none() | st.floats(0, 1),
    is_bad=st.sampled_from([False, False, False, False, True]),
)


@given(
    plan=st.lists(arrivals, min_size=1, max_size=40),
    max_rows=st.integers(1, 8),
    calls_in_flight=st.integers(1, 3),
    max_queue_size=st.integers(1, 20),
    hold_back_s=st.sampled_from([0.0, 0.0, 0.1]),
    down=st.integers(0, 6),
)
def test_every_request_gets_its_own_answer_once(
    plan: list[Arrival],
    max_rows: int,
    calls_in_flight: int,
    max_queue_size: int,
    hold_back_s: float,
    down: int,
) -> None:
    async def scenario() -> None:
        infer = Doubler(
            service_s=lambda number: 0.05 * (number % 4),
            error=lambda number: TritonUnavailable("down") if down and number % 7 == down else None,
        )
        target = dispatcher(
            infer,
            max_rows=max_rows,
            calls_in_flight=calls_in_flight,
            max_queue_size=max_queue_size,
            hold_back_s=hold_back_s,
        )
        began = now()
        deepest = 0
        deadlines: dict[float, float] = {}
        lanes: dict[float, str] = {}

        async def client(number: int, arrival: Arrival) -> Any:
            nonlocal deepest
            await asyncio.sleep(arrival.at)
            first = float(number * 10)
            values = [first + row for row in range(arrival.rows)]
            if arrival.is_bad:
                values[-1] = BAD
            deadline = now() + arrival.timeout_s
            deadlines[first], lanes[first] = deadline, arrival.lane
            work = asyncio.create_task(
                submit(target, *values, lane=arrival.lane, priority=arrival.priority, deadline=deadline)
            )
            if arrival.leaves_after is not None:
                asyncio.get_running_loop().call_later(arrival.leaves_after, work.cancel)
            await asyncio.sleep(0)
            deepest = max(deepest, target.waiting)
            try:
                answer = await work
            except (QueueFull, Overloaded, DeadlineExceeded, TritonUnavailable) as error:
                if isinstance(error, DeadlineExceeded):
                    assert now() <= deadline + 0.01
                return error
            except InferenceFailed as error:
                assert arrival.is_bad
                return error
            except asyncio.CancelledError:
                assert arrival.leaves_after is not None
                return None
            assert not arrival.is_bad
            assert answer == [2 * value for value in values]
            assert now() <= deadline + 0.01
            return answer

        results = await asyncio.gather(*(client(number, arrival) for number, arrival in enumerate(plan)))
        assert len(results) == len(plan)
        assert infer.most_in_flight <= calls_in_flight
        # Members of a failed call come back past the bound: they were let in before.
        assert deepest <= max_queue_size + calls_in_flight * max_rows
        for call in infer.calls:
            heads = [value for value in call.values if value in deadlines]
            assert len({lanes[head] for head in heads}) <= 1
            assert len(call.values) <= max_rows or len(heads) <= 1
            assert all(call.began - began <= deadlines[head] - began for head in heads)
        await asyncio.sleep(2)
        assert target.is_idle

    run(scenario())
