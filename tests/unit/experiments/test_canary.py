"""What a canary does next."""

from hypothesis import given
from hypothesis import strategies as st

from control_plane.experiments.canary import Action, CanaryState, Step, next_step

STEPS = tuple(Step(share=share, duration_s=60.0, requests=100) for share in (0.01, 0.05, 0.25, 0.5))


def state(step: int, *, auto_promote: bool = False) -> CanaryState:
    return CanaryState(steps=STEPS, step=step, step_began_s=1000.0, auto_promote=auto_promote)


def test_canary_waits_for_time_and_requests() -> None:
    early = next_step(state(0), now_s=1030.0, requests=40, broken=())
    assert (early.action, early.share) == (Action.HOLD, 0.01)
    assert early.reason == "this step lacks 30 s and 60 requests"
    assert next_step(state(0), now_s=1060.0, requests=99, broken=()).action is Action.HOLD
    assert next_step(state(0), now_s=1059.0, requests=100, broken=()).action is Action.HOLD


def test_canary_steps_up_when_both_are_there() -> None:
    found = next_step(state(1), now_s=1060.0, requests=100, broken=())
    assert (found.action, found.share) == (Action.STEP, 0.25)


def test_canary_after_the_last_step_promotes_itself_only_when_told() -> None:
    assert next_step(state(3), now_s=2000.0, requests=500, broken=()).action is Action.HOLD
    promoted = next_step(state(3, auto_promote=True), now_s=2000.0, requests=500, broken=())
    assert (promoted.action, promoted.share) == (Action.PROMOTE, 1.0)


@given(st.integers(0, 3), st.floats(0, 1e6), st.integers(0, 10_000), st.booleans())
def test_broken_guardrail_always_rolls_back(
    step: int, now_s: float, requests: int, auto_promote: bool
) -> None:
    found = next_step(
        state(step, auto_promote=auto_promote), now_s=now_s, requests=requests, broken=("a", "b")
    )
    assert (found.action, found.share, found.reason) == (Action.ROLLBACK, 0.0, "a; b")
