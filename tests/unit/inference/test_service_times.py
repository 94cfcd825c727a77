"""What is learnt of call times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.inference.service_times import ServiceTimes

rows_of_calls = st.lists(st.integers(1, 64), min_size=40, max_size=60)
seconds = st.floats(1e-5, 1.0)


@given(rows_of_calls.filter(lambda rows: len(set(rows[-15:])) > 3), seconds, seconds)
def test_affine_times_are_learnt(rows: list[int], base_s: float, slope_s: float) -> None:
    times = ServiceTimes()
    for count in rows:
        times.observe_call(count, base_s + slope_s * count)
    for count in {min(rows[-10:]), max(rows[-10:])}:
        assert times.call_s(count) == pytest.approx(base_s + slope_s * count, rel=0.3)


@given(rows_of_calls, st.lists(seconds, min_size=60, max_size=60))
def test_more_rows_never_take_less_and_times_are_positive(rows: list[int], noise: list[float]) -> None:
    times = ServiceTimes()
    for count, time_s in zip(rows, noise, strict=False):
        times.observe_call(count, time_s)
    predicted = [times.call_s(count) for count in (1, 2, 8, 64)]
    assert predicted == sorted(predicted)
    assert predicted[0] >= -1e-9


@given(rows_of_calls, seconds, seconds, st.floats(0.001, 10))
def test_rows_within_is_the_inverse(rows: list[int], base_s: float, slope_s: float, time_s: float) -> None:
    times = ServiceTimes()
    for count in rows:
        times.observe_call(count, base_s + slope_s * count)
    fitting = times.rows_within(time_s)
    if fitting != float("inf"):
        assert times.call_s(fitting) == pytest.approx(time_s, rel=1e-6, abs=1e-9)


def test_nothing_is_known_before_some_calls() -> None:
    times = ServiceTimes()
    assert not times.is_known
    assert times.call_s(64) == 0.0
    for _ in range(5):
        times.observe_call(1, 0.01)
    assert times.is_known


@given(st.floats(0.2, 8.0))
def test_margin_follows_what_really_happened_within_bounds(factor: float) -> None:
    times = ServiceTimes()
    for _ in range(100):
        times.observe_finish(expected_s=0.1, actual_s=0.1 * factor)
    assert 0.5 < times.margin < 30
    assert times.margin >= 1.3 * min(max(factor, 0.5), 4.0)


def test_slow_stretch_is_forgotten() -> None:
    times = ServiceTimes()
    for _ in range(50):
        times.observe_call(8, 5.0)
    for _ in range(60):
        times.observe_call(8, 0.01)
    assert times.call_s(8) == pytest.approx(0.01, rel=1.0)
