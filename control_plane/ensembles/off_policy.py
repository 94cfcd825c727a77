"""Off-policy evaluation: how other weights would have done, estimated from a log of sampled actions.

The log is what feedback keeps of each request: the agents' probabilities, the weights in force, the action and the
propensity with which it was drawn, the reward. A target policy is a vector v of weights: it takes action a with
probability π_v(a|x) = Σ_k v_k π_k(a|x). Its value is the mean reward it would have earned, E_x Σ_a π_v(a|x) μ(x, a).

Only sampled actions tell: beside a greedy action nothing else could have happened. docs/off_policy.md has the
formulas, docs/ensembles_validation.md what became of the intervals in simulations.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from control_plane.ensembles import confidence
from control_plane.ensembles.confidence import Estimate, Interval
from control_plane.ensembles.credit import Floats
from control_plane.ensembles.logged import SUM_TOLERANCE, Log, check
from control_plane.ensembles.scores import Scores, score

__all__ = ["Evaluation", "Log", "NotIdentifiable", "PolicyValue", "evaluate", "evaluate_probabilities"]

FEWEST_SAMPLED = 100
"""Sampled entries, below which nothing is estimated."""
FEWEST_EFFECTIVE = 10.0
"""`expected_effective_size`, below which a target isn't evaluated."""
MOST_UNSUPPORTED = 0.02
"""`unsupported`, above which a target isn't evaluated."""
INTERVAL_METHOD = "adaptively_weighted_doubly_robust"


class NotIdentifiable(Exception):
    """The log can't tell what was asked.

    Attributes:
        reason: In words for people.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyValue:
    """A target policy's estimated mean reward. ρ below is π_v(a|x) / propensity.

    Attributes:
        estimate: Adaptively weighted mean of doubly robust scores; `interval` belongs to it.
        standard_error: Of `estimate`.
        interval: Valid also where the policy that wrote the log was learning from it.
        naive_interval: That of `dr`, which takes the entries for independent and equally noisy.
        ips: Inverse propensity: mean of ρ·r.
        snips: Self-normalised: Σ ρ·r / Σ ρ.
        dr: Doubly robust, each entry counting the same.
        effective_sample_size: Kish's (Σρ)² / Σρ².
        expected_effective_size: (Σh)² / Σ h²·E[ρ²|x], with the weights h of `estimate`: how many entries it rests on,
            whichever actions were drawn.
        mean_weight: Mean of ρ: 1 within a few of its standard errors, else the propensities are wrong.
        mean_weight_error: Its standard error.
        max_weight: Largest ρ.
        max_weight_share: Of Σρ.
        unsupported: Share of the target's probability on actions less probable in the log than once in as many such
            entries, entries weighted as in `estimate`.
    """

    estimate: float
    standard_error: float
    interval: Interval
    naive_interval: Interval
    ips: Estimate
    snips: Estimate
    dr: Estimate
    effective_sample_size: float
    expected_effective_size: float
    mean_weight: float
    mean_weight_error: float
    max_weight: float
    max_weight_share: float
    unsupported: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a log says about some target policies.

    Attributes:
        entries: Of the log.
        sampled: Of these, drawn with a known propensity; the others were left out.
        level: Of the intervals.
        interval_method: How `interval` is made.
        logged: Mean reward of the sampled entries: of what was really done.
        policies: Name to value.
        not_identifiable: Name to reason, for targets that this log says nothing reliable about.
    """

    entries: int
    sampled: int
    level: float
    interval_method: str
    logged: Estimate
    policies: Mapping[str, PolicyValue]
    not_identifiable: Mapping[str, str]


def evaluate(log: Log, policies: Mapping[str, Floats], *, level: float = 0.95) -> Evaluation:
    """Estimates the values of ensembles with given weights.

    Args:
        log: Oldest first.
        policies: Name to float64 [agents] weights; at least one.
        level: Of the intervals, in (0, 1).

    Raises:
        NotIdentifiable: too few sampled entries, or none of the policies has enough support in the log.
        ValueError: arrays that don't fit each other, or values that can't be.
    """
    check(log)
    agents = log.agent_probs.shape[1]
    matrix = np.stack([checked_weights(name, weights, agents) for name, weights in policies.items()])
    probs = np.einsum("va,nak->vnk", matrix, log.agent_probs, optimize=True)
    return evaluate_probabilities(log, dict(zip(policies, probs, strict=True)), level=level)


def evaluate_probabilities(log: Log, targets: Mapping[str, Floats], *, level: float = 0.95) -> Evaluation:
    """Estimates the values of any policies, given by their probabilities at each entry.

    Args:
        log: Oldest first.
        targets: Name to float64 [entries, actions]; at least one.
        level: Of the intervals.

    Raises:
        NotIdentifiable: see `evaluate`.
        ValueError: see `evaluate`.
    """
    check(log)
    sampled = np.asarray(log.sampled, np.bool_)
    entries, count = len(sampled), int(sampled.sum())
    if (reason := lack_of_entries(entries, count)) is not None:
        raise NotIdentifiable(reason)
    log = log if count == entries else log.only(sampled)
    scores = score(log, np.stack([probs[sampled] for probs in targets.values()]))
    values: dict[str, PolicyValue] = {}
    refused: dict[str, str] = {}
    for index, name in enumerate(targets):
        if (reason := lack_of_support(scores, index)) is None:
            values[name] = value_of(log, scores, index, level=level)
        else:
            refused[name] = reason
    if not values:
        raise NotIdentifiable(" ".join(f"{name}: {reason}" for name, reason in refused.items()))
    return Evaluation(
        entries=entries,
        sampled=count,
        level=level,
        interval_method=INTERVAL_METHOD,
        logged=confidence.mean(log.reward, level=level),
        policies=values,
        not_identifiable=refused,
    )


def value_of(log: Log, scores: Scores, index: int, *, level: float) -> PolicyValue:
    """The estimates of one target."""
    ratios = scores.ratios[index]
    best = confidence.stabilised(scores.robust[index], scores.stabilisers[index], level=level)
    dr = confidence.mean(scores.robust[index], level=level)
    weight = confidence.mean(ratios, level=level)
    return PolicyValue(
        estimate=best.estimate,
        standard_error=best.standard_error,
        interval=best.interval,
        naive_interval=dr.interval,
        ips=confidence.mean(ratios * log.reward, level=level),
        snips=confidence.ratio(ratios, log.reward, level=level),
        dr=dr,
        effective_sample_size=float(ratios.sum()) ** 2 / float(ratios @ ratios),
        expected_effective_size=float(scores.effective[index]),
        mean_weight=weight.estimate,
        mean_weight_error=weight.standard_error,
        max_weight=float(ratios.max()),
        max_weight_share=float(ratios.max() / ratios.sum()),
        unsupported=float(scores.unsupported[index]),
    )


def lack_of_entries(entries: int, sampled: int) -> str | None:
    """Why a log is no use for any target; None when it may be."""
    if entries == 0:
        return "No request has got a reward yet."
    if sampled == 0:
        return (
            "All actions were chosen greedily or by the caller, so no other action had a chance: the log says nothing"
            " about other weights. Send action_selection: sample."
        )
    if sampled < FEWEST_SAMPLED:
        return (
            f"Only {sampled} of {entries} rewarded actions were sampled, at least {FEWEST_SAMPLED} are needed; those"
            " chosen greedily or by the caller don't count."
        )
    return None


def lack_of_support(scores: Scores, index: int) -> str | None:
    """Why a target can't be evaluated with this log; None when it can."""
    effective, unsupported = scores.effective[index], scores.unsupported[index]
    if unsupported > MOST_UNSUPPORTED or not scores.ratios[index].any():
        return (
            f"{unsupported:.1%} of what this policy would do was practically never chosen in such requests, at most"
            f" {MOST_UNSUPPORTED:.0%} may be."
        )
    if effective < FEWEST_EFFECTIVE:
        return (
            "This policy differs too much from what was done: the estimate would rest on"
            f" {effective:.1f} effective requests, at least {FEWEST_EFFECTIVE:g} are needed."
        )
    return None


def checked_weights(name: str, weights: Floats, agents: int) -> Floats:
    """A target's weights as float64 [agents].

    Raises:
        ValueError: wrong length, negative, or not summing to 1.
    """
    weights = np.asarray(weights, np.float64)
    if weights.shape != (agents,):
        raise ValueError(f"{name}: expected {agents} weights, got shape {list(weights.shape)}")
    if not ((weights >= 0.0).all() and abs(float(weights.sum()) - 1.0) <= SUM_TOLERANCE):
        raise ValueError(
            f"{name}: expected weights that aren't negative and sum to 1, got {weights.tolist()}"
        )
    return weights
