"""What a canary does next: stay, step up, be promoted, or go back at once. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    """What happens to the treatment's share."""

    HOLD = "hold"
    STEP = "step"
    PROMOTE = "promote"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One share of the treatment, and what it takes to leave it for the next.

    Attributes:
        share: Of the treatment.
        duration_s: At least so long.
        requests: And at least so many of the treatment's, counted in this step.
    """

    share: float
    duration_s: float
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryState:
    """Where a canary is.

    Attributes:
        steps: All, with rising shares.
        step: Place of the present one.
        step_began_s: Wall time.
        auto_promote: After the last step the treatment takes over by itself.
    """

    steps: tuple[Step, ...]
    step: int
    step_began_s: float
    auto_promote: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do, with the treatment's share from now on, and why (for results, log and metric)."""

    action: Action
    share: float
    reason: str


def next_step(state: CanaryState, *, now_s: float, requests: int, broken: Sequence[str]) -> Decision:
    """The next thing to do.

    Args:
        state: Where the canary is.
        now_s: Wall time.
        requests: Of the treatment in this step.
        broken: A sentence for each guardrail that doesn't hold; any of them sends the treatment's share to 0 at once,
            whatever the time and the number of requests.
    """
    step = state.steps[state.step]
    if broken:
        return Decision(action=Action.ROLLBACK, share=0.0, reason="; ".join(broken))
    remaining_s = state.step_began_s + step.duration_s - now_s
    missing = step.requests - requests
    if remaining_s > 0.0 or missing > 0:
        waits = [f"{remaining_s:.0f} s"] if remaining_s > 0.0 else []
        waits += [f"{missing} requests"] if missing > 0 else []
        return Decision(action=Action.HOLD, share=step.share, reason=f"this step lacks {' and '.join(waits)}")
    if state.step + 1 < len(state.steps):
        share = state.steps[state.step + 1].share
        return Decision(
            action=Action.STEP, share=share, reason=f"guardrails held at a share of {100 * step.share:g} %"
        )
    if state.auto_promote:
        return Decision(action=Action.PROMOTE, share=1.0, reason="guardrails held through all steps")
    return Decision(
        action=Action.HOLD, share=step.share, reason="all steps are done; promotion waits for a call"
    )
