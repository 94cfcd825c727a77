"""What a worker believes of the wait for its turn, and whom it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.api.intake import Intake


def crowd(number: int, *, turn_s: float, max_waiting: int = 1_000) -> Intake:
    """An intake that has learnt `turn_s`, with so many waiting."""
    intake = Intake(max_waiting=max_waiting)
    for _ in range(30):
        places = [intake.arrived() for _ in range(20)]
        for place in places:
            intake.started(place=place, delay_s=place * turn_s)
    for _ in range(number):
        intake.arrived()
    return intake


@given(st.integers(0, 500), st.floats(1e-5, 1e-2))
def test_wait_is_what_those_before_need(number: int, turn_s: float) -> None:
    intake = crowd(number, turn_s=turn_s)
    assert intake.waiting == number
    assert intake.wait_s == pytest.approx(number * turn_s, rel=1e-3)


@given(st.integers(0, 999), st.floats(1e-3, 60))
def test_refused_is_only_who_would_be_late(number: int, timeout_s: float) -> None:
    intake = crowd(number, turn_s=0.001)
    assert intake.refuses(timeout_s) == (6 * intake.wait_s > timeout_s)


def test_bound_refuses_whatever_the_deadline() -> None:
    assert not crowd(99, turn_s=1e-4, max_waiting=100).refuses(30)
    assert crowd(100, turn_s=1e-4, max_waiting=100).refuses(30)


def test_nobody_is_refused_while_nobody_waits() -> None:
    intake = crowd(0, turn_s=10.0)
    assert not intake.is_crowded
    assert not intake.refuses(0.001)


def test_slow_stretch_is_forgotten() -> None:
    intake = crowd(0, turn_s=0.1)
    for _ in range(20):
        places = [intake.arrived() for _ in range(20)]
        for place in places:
            intake.started(place=place, delay_s=place * 0.001)
    for _ in range(10):
        intake.arrived()
    assert intake.wait_s == pytest.approx(0.01, rel=0.01)
