"""A whole measurement, in virtual time, of models whose times are known."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from control_plane.models.tuning.choice import CallSize
from control_plane.models.tuning.measurement import Bounds, Curve, measure
from tests.unit.inference import virtual_time


class Model:
    """`instances` that each take one call after the other, `start_ms + row_ms * rows` long."""

    def __init__(
        self, *, start_ms: float, row_ms: float, instances: int = 1, jitter: float = 0.0, saturates: int = 0
    ) -> None:
        self._start_ms, self._row_ms, self._saturates = start_ms, row_ms, saturates
        self._free = asyncio.Semaphore(instances)
        self._rng = random.Random(7)
        self._jitter = jitter
        self.calls: list[int] = []
        self.in_flight = self.most_in_flight = 0

    async def __call__(self, rows: int) -> None:
        self.calls.append(rows)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        async with self._free:
            time_ms = self._start_ms + self._row_ms * max(rows, self._saturates)
            await asyncio.sleep(time_ms / 1000 * (1 + self._rng.expovariate(1) * self._jitter))
        self.in_flight -= 1


def measured(
    make: Callable[[], Model],
    *,
    max_rows: int = 64,
    instances: int = 1,
    calls: int | None = None,
    objective_p95_ms: float = 50.0,
    seconds: float = 20.0,
) -> tuple[Curve, Model, float]:
    async def scenario() -> tuple[Curve, Model, float]:
        model = make()
        began = virtual_time.now()
        curve = await measure(
            model,
            Bounds(max_rows=max_rows, instance_count=instances, calls_in_flight=calls),
            objective_p95_ms=objective_p95_ms,
            seconds=seconds,
            clock=virtual_time.now,
        )
        return curve, model, virtual_time.now() - began

    return virtual_time.run(scenario())


@pytest.mark.parametrize("jitter", [0.0, 0.05])
def test_measurement_finds_the_largest_size_that_pays_within_the_objective(jitter: float) -> None:
    # 2 ms + 0.25 ms a row: 32 rows take 10 ms, and with two calls in flight a request up to 30.
    curve, model, took_s = measured(lambda: Model(start_ms=2, row_ms=0.25, jitter=jitter))
    assert curve.chosen is not None
    assert curve.chosen.request_p95_ms <= 50
    assert 32 <= curve.chosen.size.rows_in_flight <= 96
    assert curve.chosen.rows_per_s > 0.85 * 4000 * (1 - jitter)
    assert took_s <= 20.5
    assert model.in_flight == 0


def test_measurement_of_rows_that_are_free_up_to_a_size_finds_it() -> None:
    # As on a GPU: up to 16 rows take as long as one, from there each costs.
    curve, _, _ = measured(lambda: Model(start_ms=1, row_ms=0.5, saturates=16), objective_p95_ms=30)
    assert curve.chosen is not None
    assert curve.chosen.size == CallSize(rows=16, calls_in_flight=2)


def test_measurement_of_costly_rows_chooses_small_calls() -> None:
    curve, _, _ = measured(lambda: Model(start_ms=0.01, row_ms=5))
    assert curve.chosen is not None
    assert curve.chosen.size == CallSize(rows=1, calls_in_flight=2)
    assert curve.skipped_rows == (32, 64)


def test_measurement_without_a_size_in_time_chooses_nothing_and_stays_bounded() -> None:
    curve, model, took_s = measured(lambda: Model(start_ms=400, row_ms=100), seconds=5)
    assert curve.chosen is None
    assert {point.size for point in curve.points} == {
        CallSize(rows=1, calls_in_flight=calls) for calls in (1, 2)
    }
    assert curve.skipped_rows == (2, 4, 8, 16, 32, 64)
    assert set(model.calls) == {1}
    assert took_s < 8


def test_measurement_that_only_one_call_in_flight_satisfies_chooses_that() -> None:
    # One row takes 20 ms: 40 with the wait at one call in flight, 60 at two.
    curve, _, _ = measured(lambda: Model(start_ms=19, row_ms=1))
    assert curve.chosen is not None
    assert curve.chosen.size.calls_in_flight == 1
    assert {point.size.calls_in_flight for point in curve.points} == {1, 2}


def test_measurement_uses_as_many_calls_as_the_instances_need() -> None:
    curve, model, _ = measured(lambda: Model(start_ms=2, row_ms=1, instances=4), instances=4)
    assert curve.chosen is not None
    assert curve.chosen.size.calls_in_flight > 4
    assert {point.size.calls_in_flight for point in curve.points} == {5, 8, 12, 16}
    assert model.most_in_flight == 16


def test_measurement_with_given_calls_in_flight_keeps_to_them() -> None:
    curve, model, _ = measured(lambda: Model(start_ms=2, row_ms=0.25), calls=3)
    assert {point.size.calls_in_flight for point in curve.points} == {3}
    assert model.most_in_flight == 3


def test_measurement_never_exceeds_the_models_rows() -> None:
    curve, model, _ = measured(lambda: Model(start_ms=2, row_ms=0.01), max_rows=12)
    assert max(model.calls) == 12
    assert curve.chosen is not None
    assert {1, 2, 4, 8, 12} <= {point.size.rows for point in curve.points}


def test_measurement_fails_with_the_calls_error_and_leaves_none_running() -> None:
    async def scenario() -> int:
        running = 0

        async def call(rows: int) -> None:
            nonlocal running
            running += 1
            try:
                await asyncio.sleep(0.001)
                if rows == 4 and running > 1:
                    raise ValueError("the model failed")
            finally:
                running -= 1

        bad: Callable[[int], Awaitable[None]] = call
        with pytest.raises(ValueError, match="the model failed"):
            await measure(
                bad,
                Bounds(max_rows=4, instance_count=1),
                objective_p95_ms=50,
                seconds=1,
                clock=virtual_time.now,
            )
        return running

    assert virtual_time.run(scenario()) == 0
