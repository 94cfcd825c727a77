"""How a reward is shared among the agents, and how what they got is summed up and forgotten. Pure numpy.

All sums are plain sums of what single rewards contribute, so the order of arrival doesn't matter, and the sums of
several replicas add up. Axes: agents, actions; leading axes are allowed wherever arrays are taken.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CREDIT_CAP = 10.0
"""The most that one reward counts for an agent: an action that the mixture hardly ever takes must not decide alone."""

STATISTICS = ("c", "c2", "cr", "crr")
"""Last axis of the statistics: Σc, Σc², Σc·r, Σc·r²; each term times its decay."""

_PERIOD_HALF_LIVES = 64
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, slots=True, kw_only=True)
class Decay:
    """Forgetting by forward decay: a contribution is scaled once, by the request's time, and never touched again.

    A reward of time t weighs 2^((t - L) / half-life) in the sums, L being a landmark before it; as of now all of that
    is divided by 2^((now - L) / half-life). So that nothing overflows, landmarks are 64 half-lives apart, and the sums
    of each such period are kept apart until they are combined.

    Source: G. Cormode, V. Shkapenyuk, D. Srivastava, B. Xu, "Forward Decay: A Practical Time Decay Model for Streaming
    Systems", ICDE 2009.

    Attributes:
        half_life_s: Seconds after which a reward counts half; None: for ever.
    """

    half_life_s: float | None

    def __post_init__(self) -> None:
        """Raises ValueError unless the half-life is a positive, finite number."""
        if self.half_life_s is not None and not (
            self.half_life_s > 0 and math.isfinite(self.half_life_s * _PERIOD_HALF_LIVES)
        ):
            raise ValueError(f"half_life_s must be positive and finite, got {self.half_life_s!r}")

    def period(self, time_s: float) -> int:
        """Number of the period that a time (seconds since the epoch) lies in; 0 where nothing is forgotten."""
        return self._split(time_s)[0]

    def factor(self, time_s: float) -> float:
        """What a reward of that time weighs within its period: from 1 to below 2^64."""
        if self.half_life_s is None:
            return 1.0
        factor = math.exp2(self._split(time_s)[1] / self.half_life_s)
        return min(factor, math.nextafter(math.exp2(_PERIOD_HALF_LIVES), 0.0))

    def is_spent(self, period: int, now_s: float) -> bool:
        """Whether all rewards of the period count less than 2^-128 now, so that its sums can be dropped."""
        return self.half_life_s is not None and self.period(now_s) - period > 2

    def _split(self, time_s: float) -> tuple[int, float]:
        """The period, and the seconds since it began (exact: the remainder of a division of floats is)."""
        if self.half_life_s is None:
            return 0, 0.0
        number, rest_s = divmod(time_s, self.half_life_s * _PERIOD_HALF_LIVES)
        return int(number), rest_s


def credits(  # noqa: A001 (the term of the field; nobody calls the interpreter's `credits` in a program)
    agent_probs: Floats, weights: Floats, action: int | npt.NDArray[np.intp], *, cap: float = CREDIT_CAP
) -> Floats:
    """How much each agent would have had a hand in the action: min(10, π_k(a|x) / π_mix(a|x)).

    If the action was drawn from the mixture, that is the agent's importance weight, 1 in expectation. An action that no
    agent would take gives no credit; one that only agents of weight 0 would take gives them the cap.

    Args:
        agent_probs: Each agent's probabilities, float64 [..., agents, actions].
        weights: The weights in force, float64 [..., agents].
        action: Which was taken, an int or int [...].
        cap: The most credit; the simulations vary it.

    Returns:
        float64 [..., agents].

    Source: D. G. Horvitz, D. J. Thompson, JASA 47 (1952), 663-685; capped: E. L. Ionides, "Truncated Importance
    Sampling", J. Comput. Graph. Stat. 17 (2008), 295-311.
    """
    if isinstance(action, (int, np.integer)):
        taken = agent_probs[..., action]
    else:
        taken = np.take_along_axis(agent_probs, action[..., np.newaxis, np.newaxis], axis=-1)[..., 0]
    mixture = (weights * taken).sum(axis=-1, keepdims=True)
    # The mixture may be 0, or so small that the quotient overflows; the cap is meant then.
    capped = np.where(taken < cap * mixture, taken / np.maximum(mixture, _TINY), cap)
    return np.where(taken > 0.0, capped, 0.0)


def contribution(credit: Floats, reward: float | Floats, factor: float | Floats) -> Floats:
    """What one reward adds to the sums of its period.

    The decay enters Σc² linearly, like all others: all four sums then shrink alike with time, and so does the effective
    count that is made of them.

    Args:
        credit: What `credits` gave, float64 [..., agents].
        reward: The reward, or float64 [...].
        factor: Its decay (`Decay.factor`), or float64 [...].

    Returns:
        float64 [..., agents, 4], in the order of `STATISTICS`.

    Raises:
        ValueError: a term isn't finite (the reward isn't, or its square overflows).
    """
    rewards, factors = np.asarray(reward)[..., np.newaxis], np.asarray(factor)[..., np.newaxis]
    with np.errstate(over="ignore", invalid="ignore"):
        decayed = credit * factors
        rewarded = decayed * rewards
        terms: Floats = np.stack((decayed, decayed * credit, rewarded, rewarded * rewards), axis=-1)
    if not np.isfinite(terms).all():
        raise ValueError("expected a finite reward whose square doesn't overflow, got one that isn't or does")
    return terms


def combine(periods: Mapping[int, Floats], decay: Decay, now_s: float) -> Floats:
    """The sums of all periods, as of now.

    Args:
        periods: Sums by period, float64 [..., agents, 4] each; at least one.
        decay: How they were made.
        now_s: Seconds since the epoch. Where rewards bear a later period (a clock is wrong), the beginning of the last
            one counts as now, so that nothing overflows.

    Returns:
        float64 [..., agents, 4].

    Raises:
        ValueError: there are no periods.
    """
    if not periods:
        raise ValueError("expected the sums of at least one period, got none")
    now, factor = decay.period(now_s), decay.factor(now_s)
    if (last := max(periods)) > now:
        now, factor = last, 1.0
    total: Floats = np.zeros_like(next(iter(periods.values())), dtype=np.float64)
    for period in sorted(periods):
        total += periods[period] * math.ldexp(1.0 / factor, -_PERIOD_HALF_LIVES * (now - period))
    return total
