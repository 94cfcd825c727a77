"""The choice of a call size, from what calls took."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.models.tuning.choice import (
    MOST_TOLERANCE,
    TOLERANCE,
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
    tolerance_of,
)


def point(
    rows: int, calls: int = 2, *, p95_ms: float, rows_per_s: float, error: float = 0.0, count: int = 100
) -> Point:
    return Point(
        size=CallSize(rows=rows, calls_in_flight=calls),
        p50_ms=p95_ms,
        p95_ms=p95_ms,
        rows_per_s=rows_per_s,
        rows_per_s_error=error,
        calls=count,
    )


def affine(rows: int, calls: int, *, start_ms: float, row_ms: float) -> Point:
    """Of one instance that needs `start_ms + row_ms * rows` for a call, with others waiting in Triton."""
    service_ms = start_ms + row_ms * rows
    return point(rows, calls, p95_ms=calls * service_ms, rows_per_s=1000 * rows / service_ms)


POINTS = st.lists(
    st.builds(
        point,
        rows=st.integers(1, 256),
        calls=st.integers(1, 8),
        p95_ms=st.floats(0.01, 1e4),
        rows_per_s=st.floats(0.1, 1e6),
        error=st.floats(0, 1e5),
    ),
    max_size=20,
)


@given(points=POINTS, objective=st.floats(0.01, 1e4))
def test_choice_meets_the_objective_and_nothing_as_good_has_fewer_rows_in_flight(
    points: list[Point], objective: float
) -> None:
    chosen = choose(points, objective_p95_ms=objective)
    good = [one for one in points if one.request_p95_ms <= objective]
    assert (chosen is None) == (not good)
    if chosen is None:
        return
    best = max(good, key=lambda one: one.rows_per_s)
    assert chosen in good
    assert chosen.rows_per_s >= best.rows_per_s * (1 - MOST_TOLERANCE)
    for one in good:
        if one.rows_per_s >= best.rows_per_s * (1 - TOLERANCE):
            assert one.size.rows_in_flight >= chosen.size.rows_in_flight


@given(points=POINTS, objective=st.floats(0.01, 1e4), seed=st.integers())
def test_choice_is_the_same_in_any_order(points: list[Point], objective: float, seed: int) -> None:
    distinct = list({one.size: one for one in points}.values())
    shuffled = list(distinct)
    random.Random(seed).shuffle(shuffled)
    first, second = (choose(some, objective_p95_ms=objective) for some in (distinct, shuffled))
    assert (first and first.rows_per_s, first and first.size.rows_in_flight) == (
        second and second.rows_per_s,
        second and second.size.rows_in_flight,
    )


@given(
    start_ms=st.floats(0.1, 20),
    row_ms=st.floats(0.01, 5),
    noise=st.floats(0, 0.02),
    objective=st.floats(1, 1000),
    seed=st.integers(),
)
def test_choice_from_noisy_measurements_has_nearly_the_best_true_throughput(
    start_ms: float, row_ms: float, noise: float, objective: float, seed: int
) -> None:
    rng = random.Random(seed)
    true = {rows: affine(rows, 2, start_ms=start_ms, row_ms=row_ms) for rows in rows_to_try(64)}
    measured = [
        point(rows, p95_ms=one.p95_ms, rows_per_s=one.rows_per_s * rng.uniform(1 - noise, 1 + noise))
        for rows, one in true.items()
    ]
    chosen = choose(measured, objective_p95_ms=objective)
    good = [one for one in true.values() if one.request_p95_ms <= objective]
    if not good:
        assert chosen is None
        return
    assert chosen is not None
    best = max(one.rows_per_s for one in good)
    assert true[chosen.size.rows].rows_per_s >= best * (1 - TOLERANCE) * (1 - noise) / (1 + noise) * 0.999


@given(start_ms=st.floats(0.1, 20), row_ms=st.floats(0.01, 5), objectives=st.tuples(*[st.floats(1, 1e3)] * 2))
def test_a_longer_objective_never_chooses_less_throughput(
    start_ms: float, row_ms: float, objectives: tuple[float, float]
) -> None:
    points = [affine(rows, 2, start_ms=start_ms, row_ms=row_ms) for rows in rows_to_try(64)]
    shorter, longer = (choose(points, objective_p95_ms=one) for one in sorted(objectives))
    if shorter is not None:
        assert longer is not None
        assert longer.rows_per_s >= shorter.rows_per_s * (1 - TOLERANCE)


def test_flat_throughput_chooses_a_single_row() -> None:
    points = [point(rows, p95_ms=float(rows), rows_per_s=1000.0) for rows in (1, 2, 4, 8)]
    chosen = choose(points, objective_p95_ms=50)
    assert chosen is not None
    assert chosen.size.rows == 1


def test_equal_rows_in_flight_choose_the_smaller_call() -> None:
    points = [point(4, 1, p95_ms=4, rows_per_s=990), point(2, 2, p95_ms=4, rows_per_s=1000)]
    chosen = choose(points, objective_p95_ms=50)
    assert chosen is not None
    assert chosen.size == CallSize(rows=2, calls_in_flight=2)


def test_waiting_for_a_free_call_counts_for_the_objective() -> None:
    assert point(8, 1, p95_ms=30, rows_per_s=1).request_p95_ms == 60
    assert point(8, 2, p95_ms=30, rows_per_s=1).request_p95_ms == 45
    assert choose([point(8, 1, p95_ms=30, rows_per_s=1)], objective_p95_ms=50) is None


def test_noise_widens_the_tolerance_within_bounds() -> None:
    assert tolerance_of(point(1, p95_ms=1, rows_per_s=100, error=1)) == TOLERANCE
    assert tolerance_of(point(1, p95_ms=1, rows_per_s=100, error=6)) == 0.06
    assert tolerance_of(point(1, p95_ms=1, rows_per_s=100, error=60)) == MOST_TOLERANCE


def test_a_disturbed_round_changes_nothing() -> None:
    calm = [Round(latencies_s=(0.010,) * 30, rows_per_s=800.0) for _ in range(4)]
    disturbed = Round(latencies_s=(0.5,) * 30, rows_per_s=16.0)
    size = CallSize(rows=8, calls_in_flight=1)
    found = summarise(size, [*calm, disturbed])
    assert (found.p50_ms, found.p95_ms, found.rows_per_s, found.calls) == (10.0, 10.0, 800.0, 150)
    assert found.rows_per_s_error == 0


def test_rounds_of_few_calls_are_taken_together_for_the_tail() -> None:
    rounds = [Round(latencies_s=(0.01, 0.01, 0.01), rows_per_s=1.0) for _ in range(5)]
    rounds[0] = Round(latencies_s=(0.01, 0.01, 0.09), rows_per_s=1.0)
    found = summarise(CallSize(rows=1, calls_in_flight=1), rounds)
    assert (found.p50_ms, found.p95_ms) == (10.0, 90.0)
    with pytest.raises(ValueError, match="nothing"):
        summarise(CallSize(rows=1, calls_in_flight=1), [])


@given(max_rows=st.integers(0, 2000))
def test_rows_to_try_go_from_one_to_the_most_in_steps_of_at_most_two(max_rows: int) -> None:
    rows = rows_to_try(max_rows)
    assert rows[0] == 1
    assert rows[-1] == max(1, max_rows)
    assert all(low < high <= 2 * low for low, high in pairwise(rows))


@given(chosen=st.integers(1, 64), max_rows=st.integers(64, 100))
def test_rows_near_are_new_and_allowed(chosen: int, max_rows: int) -> None:
    known = rows_to_try(max_rows)
    near = rows_near(chosen, max_rows=max_rows, known=known)
    assert not set(near) & set(known)
    assert all(1 <= rows <= max_rows and 0.5 < rows / chosen <= 1.5 for rows in near)


@given(instances=st.integers(0, 200))
def test_calls_to_try_keep_every_instance_busy_and_hold_the_default(instances: int) -> None:
    calls = calls_to_try(instances)
    assert calls[0] == min(64, max(1, instances) + 1)
    assert default_calls(instances) in calls
    assert calls[-1] <= 64
    fewer = fewer_calls(instances)
    assert fewer[-1] == 1
    assert fewer[0] <= calls[0]
    assert (calls_to_try(1), fewer_calls(1), fewer_calls(3)) == ((2, 3, 4), (1,), (3, 1))


@given(points=POINTS, objective=st.floats(0.01, 1e4))
def test_finalists_hold_the_choice_or_are_full(points: list[Point], objective: float) -> None:
    sizes = finalists(points, objective_p95_ms=objective)
    chosen = choose(points, objective_p95_ms=objective)
    assert len(sizes) <= 6
    assert (chosen is None) == (not sizes)
    assert chosen is None or chosen.size in sizes or len(sizes) == 6
