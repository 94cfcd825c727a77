"""Who is let in, held to what a server whose call times are exact would really have done."""

import asyncio
from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from control_plane.errors import DeadlineExceeded, Overloaded
from control_plane.inference.dispatcher import Dispatcher, DispatcherLimits
from tests.unit.inference.test_admission import BASE_S, ROW_S, Serial
from tests.unit.inference.virtual_time import now, run

MAX_ROWS = 8
CALL_S = BASE_S + ROW_S * MAX_ROWS


@dataclass(frozen=True)
class Arrival:
    after_s: float
    rows: int
    timeout_s: float


arrivals = st.builds(
    Arrival,
    after_s=st.sampled_from([0.0, 0.0, 0.001, 0.005, 0.02]),
    rows=st.integers(1, 4),
    timeout_s=st.floats(0.01, 0.8),
)


@dataclass
class Watched:
    """A dispatcher before a server with exact times, and what would really become of a request that comes now."""

    server: Serial
    dispatcher: Dispatcher

    async def submit(self, rows: int, timeout_s: float) -> None:
        await self.dispatcher.submit(
            {"x": np.zeros((rows, 1), np.float32)}, ("y",), lane=0, deadline=now() + timeout_s
        )

    async def learn(self) -> None:
        """Calls of all sizes, alone and together."""
        for _ in range(8):
            await asyncio.gather(*(self.submit(rows, 60.0) for rows in (1, 2, 3, 4, 4, 2, 1, 8)))
            for rows in (1, 8, 4):
                await self.submit(rows, 60.0)

    def finish_s(self, rows: int) -> tuple[float, float]:
        """The least and the most time to its answer: in calls as full as they can be, or each request in its own."""
        waiting = [entry.rows for entry in self.dispatcher._queue]
        total = sum(waiting) + rows
        work_s = max(0.0, self.server.busy_until - now()) + total * ROW_S
        return work_s + -(-total // MAX_ROWS) * BASE_S, work_s + (len(waiting) + 1) * BASE_S


@given(plan=st.lists(arrivals, min_size=20, max_size=60), calls_in_flight=st.integers(1, 3))
def test_let_in_is_what_can_be_done_and_refused_what_hardly_can(
    plan: list[Arrival], calls_in_flight: int
) -> None:
    async def scenario() -> None:
        server = Serial()
        limits = DispatcherLimits(max_rows=MAX_ROWS, calls_in_flight=calls_in_flight, max_queue_size=1000)
        watched = Watched(server, Dispatcher(model="m-v1", infer=server.infer, limits=limits, clock=now))
        await watched.learn()

        async def ask(arrival: Arrival) -> None:
            least_s, most_s = watched.finish_s(arrival.rows)
            is_idle = watched.dispatcher.is_idle
            began = now()
            try:
                await watched.submit(arrival.rows, arrival.timeout_s)
                is_let_in = True
            except Overloaded:
                is_let_in = now() > began
            except DeadlineExceeded:
                is_let_in = True
            assert now() <= began + arrival.timeout_s + 1e-6
            if is_let_in:
                assert is_idle or least_s <= arrival.timeout_s + CALL_S
            else:
                assert not is_idle
                assert arrival.timeout_s < 4 * most_s

        async with asyncio.TaskGroup() as group:
            for arrival in plan:
                await asyncio.sleep(arrival.after_s)
                group.create_task(ask(arrival))
        await asyncio.sleep(2)
        assert watched.dispatcher.is_idle

    run(scenario())
