"""Measures a model's calls of several sizes, within a time, on a machine that does other things too.

First every size is called alone, smallest first: that warms it up, and ends the sizes where one call alone takes longer
than the objective. Then rounds in which the sizes take turns, in an order that changes, so that a slow spell of the
machine meets all of them; `choice.py` takes medians over the rounds. The sizes first, then those between the chosen one
and its neighbours, then the calls in flight, and at last once more all that may be the best.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from control_plane.models.tuning.choice import (
    CallSize,
    Point,
    Round,
    calls_to_try,
    choose,
    default_calls,
    fewer_calls,
    finalists,
    rows_near,
    rows_to_try,
    summarise,
)

Call = Callable[[int], Awaitable[object]]
"""Runs one call of so many rows."""
Progress = Callable[[str], None]

_ROUNDS = 5
_WARM_UP_UNTIL, _SIZES_UNTIL, _NEAR_UNTIL, _CALLS_UNTIL = 0.2, 0.45, 0.55, 0.75
"""Shares of the time by whose end each step is over; the finalists have the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What was measured, and the choice from it."""

    objective_p95_ms: float
    """Longest 95th percentile of a request that was asked for, in milliseconds."""
    points: tuple[Point, ...]
    """In order of rows, then of calls in flight."""
    chosen: Point | None
    """None: no size meets the objective."""
    skipped_rows: tuple[int, ...] = ()
    """Sizes that weren't measured: one call alone of fewer rows takes longer than the objective, or time was up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What may be tried."""

    max_rows: int
    """Most rows of a call."""
    instance_count: int
    """The model's instances."""
    calls_in_flight: int | None = None
    """The one number of calls in flight that may be; None: whichever is best."""


def ignore_progress(_step: str) -> None:
    """For who doesn't want to hear of it."""


async def measure(
    call: Call,
    bounds: Bounds,
    *,
    objective_p95_ms: float,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    on_progress: Progress = ignore_progress,
) -> Curve:
    """Measures and chooses.

    Args:
        call: Runs one call of so many rows; several may be in flight.
        bounds: What may be tried.
        objective_p95_ms: Longest 95th percentile of a request, in milliseconds.
        seconds: For all of it; a call that is in flight then is waited for.
        clock: Monotonic time in seconds.
        on_progress: Told each step, in words.

    Raises:
        Whatever a call raises.
    """
    session = _Session(call, clock, on_progress)
    began = clock()

    def until(share: float) -> float:
        return began + seconds * share

    def best() -> Point | None:
        return choose(session.points(), objective_p95_ms=objective_p95_ms)

    wanted = rows_to_try(bounds.max_rows)
    rows = await session.warm_up(wanted, longest_s=objective_p95_ms / 1000, until=until(_WARM_UP_UNTIL))
    calls = bounds.calls_in_flight or default_calls(bounds.instance_count)
    await session.rounds([CallSize(rows=one, calls_in_flight=calls) for one in rows], until(_SIZES_UNTIL))
    if bounds.calls_in_flight is None:
        for fewer in fewer_calls(bounds.instance_count):
            if best() is None:
                calls = fewer
                sizes = [CallSize(rows=one, calls_in_flight=calls) for one in rows]
                await session.rounds(sizes, until(_NEAR_UNTIL))
    knee = best()
    if knee is not None:
        near = rows_near(knee.size.rows, max_rows=bounds.max_rows, known=rows)
        if near:
            await session.warm_up(near, longest_s=float("inf"), until=until(1))
            sizes = [knee.size, *(CallSize(rows=one, calls_in_flight=calls) for one in near)]
            await session.rounds(sizes, until(_NEAR_UNTIL))
            knee = best() or knee
        if bounds.calls_in_flight is None and calls in calls_to_try(bounds.instance_count):
            sizes = [
                CallSize(rows=knee.size.rows, calls_in_flight=one)
                for one in calls_to_try(bounds.instance_count)
            ]
            await session.rounds(sizes, until(_CALLS_UNTIL))
        close = finalists(session.points(), objective_p95_ms=objective_p95_ms)
        if len(close) > 1:
            await session.rounds(close, until(1))
    return Curve(
        objective_p95_ms=objective_p95_ms,
        points=session.points(),
        chosen=best(),
        skipped_rows=tuple(one for one in wanted if one not in rows),
    )


class _Session:
    """All rounds of one measurement."""

    def __init__(self, call: Call, clock: Callable[[], float], on_progress: Progress) -> None:
        self._call = call
        self._clock = clock
        self._on_progress = on_progress
        self._rounds: dict[CallSize, list[Round]] = {}
        # The same order each time: what differs between two measurements is the machine.
        self._order = random.Random(0)  # noqa: S311  no secret

    def points(self) -> tuple[Point, ...]:
        """What is known of each size."""
        return tuple(summarise(size, rounds) for size, rounds in sorted(self._rounds.items()))

    async def warm_up(self, rows: Iterable[int], *, longest_s: float, until: float) -> tuple[int, ...]:
        """Calls each size twice, smallest first; returns those up to the first that takes longer than `longest_s`."""
        tried: list[int] = []
        for one in rows:
            if tried and self._clock() >= until:
                break
            self._on_progress(f"warming up calls of {one} rows")
            took_s = await self._timed(one)
            if self._clock() < until:
                # The first of a shape allocates and compiles.
                took_s = await self._timed(one)
            tried.append(one)
            if took_s > longest_s:
                break
        return tuple(tried)

    async def rounds(self, sizes: Iterable[CallSize], until: float) -> None:
        """Measures the sizes in turns until the time is up; each at least once."""
        order = sorted(sizes)
        length_s = max(0.0, until - self._clock()) / (_ROUNDS * len(order))
        for number in range(_ROUNDS):
            self._order.shuffle(order)
            for size in order:
                if number and self._clock() >= until:
                    return
                self._on_progress(
                    f"round {number + 1} of {_ROUNDS}: {size.rows} rows, {size.calls_in_flight} calls in flight"
                )
                self._rounds.setdefault(size, []).append(await self._round(size, length_s))

    async def _round(self, size: CallSize, length_s: float) -> Round:
        latencies_s: list[float] = []
        began = self._clock()
        ended = began

        async def caller() -> None:
            nonlocal ended
            while True:
                latencies_s.append(await self._timed(size.rows))
                ended = self._clock()
                if ended >= began + length_s:
                    return

        await _all(caller, size.calls_in_flight)
        rows_per_s = size.rows * len(latencies_s) / max(ended - began, 1e-9)
        # The first calls found Triton idle.
        early = size.calls_in_flight - 1
        steady = latencies_s[early:] if len(latencies_s) > 2 * early else latencies_s
        return Round(latencies_s=tuple(steady), rows_per_s=rows_per_s)

    async def _timed(self, rows: int) -> float:
        began = self._clock()
        await self._call(rows)
        return self._clock() - began


async def _all(work: Callable[[], Awaitable[None]], count: int) -> None:
    """Runs `work` so many times at once; the first error ends all."""
    tasks = [asyncio.ensure_future(work()) for _ in range(count)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
