"""The pause before a restart, a pure function."""

from hypothesis import given
from hypothesis import strategies as st

from control_plane.embedded.process import RestartPolicy


def test_pause_first_failure_is_the_first_pause() -> None:
    policy = RestartPolicy(first_pause_s=0.5, jitter=0.0)
    assert policy.pause_s(1, chance=0.9) == 0.5


def test_pause_later_failures_doubles_up_to_the_longest() -> None:
    policy = RestartPolicy(first_pause_s=1.0, longest_pause_s=6.0, factor=2.0, jitter=0.0)
    assert [policy.pause_s(n, chance=0.0) for n in (1, 2, 3, 4, 5)] == [1.0, 2.0, 4.0, 6.0, 6.0]


@given(failures=st.integers(0, 10_000), chance=st.floats(0, 1, exclude_max=True))
def test_pause_any_failures_stays_within_bounds(failures: int, chance: float) -> None:
    policy = RestartPolicy()
    pause_s = policy.pause_s(failures, chance=chance)
    assert policy.first_pause_s <= pause_s <= policy.longest_pause_s * (1 + policy.jitter)
    assert pause_s <= policy.pause_s(failures + 1, chance=chance)
