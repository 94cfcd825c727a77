"""From what is known of the agents to the weights they act with. Pure."""

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec
import numpy as np

from control_plane.ensembles.credit import Floats
from control_plane.ensembles.posteriors import (
    Beta,
    Evidence,
    Normal,
    Posterior,
    best_probabilities,
    beta_posterior,
    evidence,
    normal_posterior,
)

_SUM_TOLERANCE = 1e-6
HALF_LIFE_HOURS = (1e-3, 1e6)
TEMPERATURE = (1e-6, 1e6)
"""From and to: beyond them sums and exponents leave the range of floating-point numbers."""


class WeightsPolicy(StrEnum):
    """How weights follow from the posteriors."""

    THOMPSON = "thompson"
    """The probability that the agent is the best."""
    FIXED = "fixed"
    """As given; uniform where nothing is."""
    SOFTMAX = "softmax"
    """In proportion to exp(posterior mean / temperature), in standard deviations of the reward."""


class RewardKind(StrEnum):
    """What rewards look like."""

    NORMAL = "normal"
    """Any finite number."""
    BINARY = "binary"
    """0 or 1, or a share of success between them."""


class PolicySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model's weights learn.

    Attributes:
        policy: How weights follow from the posteriors.
        reward: What rewards look like.
        half_life_hours: Hours after which a reward counts half; None: for ever.
        temperature: Of softmax: by how many standard deviations of a reward an agent must be better to get e times the
            weight.
        weights: Of fixed, by the agents' names; None: uniform.
        floor: The least weight of each agent.
    """

    policy: WeightsPolicy = WeightsPolicy.THOMPSON
    reward: RewardKind = RewardKind.NORMAL
    half_life_hours: float | None = None
    temperature: float = 0.05
    weights: dict[str, float] | None = None
    floor: float = 0.0


def check(settings: PolicySettings, agents: Sequence[str]) -> None:
    """Whether the settings make sense for these agents.

    Raises:
        ValueError: they don't; its text says what was expected and got.
    """
    hours, (shortest, longest) = settings.half_life_hours, HALF_LIFE_HOURS
    if hours is not None and not shortest <= hours <= longest:
        raise ValueError(f"half_life_hours: expected from {shortest:g} to {longest:g} or null, got {hours:g}")
    lowest, highest = TEMPERATURE
    if not lowest <= settings.temperature <= highest:
        raise ValueError(
            f"temperature: expected from {lowest:g} to {highest:g}, got {settings.temperature:g}"
        )
    if not 0 <= settings.floor * len(agents) <= 1:
        raise ValueError(
            f"floor: expected from 0 to {1 / len(agents):g} (1 / {len(agents)} agents), got {settings.floor:g}"
        )
    if settings.weights is not None:
        if settings.policy is not WeightsPolicy.FIXED:
            raise ValueError(f"weights: expected none with policy {settings.policy}, they belong to fixed")
        if settings.floor:
            raise ValueError(f"floor: expected 0 beside given weights, got {settings.floor:g}")
        _check_weights(settings.weights, agents)


def check_reward(settings: PolicySettings, reward: float) -> None:
    """Whether a reward is of the kind that the model learns from.

    Raises:
        ValueError: it isn't; the text says what was expected and got.
    """
    if settings.reward is RewardKind.BINARY and not 0.0 <= reward <= 1.0:
        raise ValueError(f"reward: expected from 0 to 1, as the model's rewards are binary, got {reward:g}")
    if not math.isfinite(reward * reward):
        raise ValueError(f"reward: expected a finite number whose square is finite, got {reward:g}")


def learned_weights(
    settings: PolicySettings, agents: tuple[str, ...], statistics: Floats
) -> tuple[Floats, tuple[Posterior, ...]]:
    """The weights that the agents act with, and what is known of each.

    The same arguments always give the same weights, on every replica; another order of the agents only reorders them.

    Args:
        settings: Checked.
        agents: Names, in the model's order.
        statistics: Sums as of now, float64 [agents, 4] (`credit.STATISTICS`).

    Returns:
        Weights, float64 [agents], at least `floor` each, sum 1; and the posteriors in the same order.
    """
    found = evidence(statistics)
    posterior: Normal | Beta = (
        beta_posterior(found) if settings.reward is RewardKind.BINARY else normal_posterior(found)
    )
    weights = _weights(settings, agents, found, posterior)
    return settings.floor + (1.0 - settings.floor * len(agents)) * weights, posterior.summaries(found.count)


def _weights(
    settings: PolicySettings, agents: tuple[str, ...], found: Evidence, posterior: Normal | Beta
) -> Floats:
    uniform = np.full(len(agents), 1.0 / len(agents))
    if settings.policy is WeightsPolicy.FIXED:
        given = settings.weights
        return uniform if given is None else np.array([given[name] for name in agents]) / sum(given.values())
    if settings.policy is WeightsPolicy.SOFTMAX:
        if found.pooled == 0.0:
            return uniform
        scores = (posterior.means - found.centre) / (math.sqrt(found.pooled) * settings.temperature)
        powers = np.exp(scores - scores.max())
        return np.asarray(powers / powers.sum())
    if not found.count.any() or (isinstance(posterior, Normal) and found.pooled == 0.0):
        return uniform
    # The draws belong to places: the agents take theirs by name, so that their order in the model makes no difference.
    order = np.argsort(np.array(agents))
    weights = np.empty(len(agents))
    weights[order] = best_probabilities(posterior.take(order))
    return weights


def _check_weights(weights: dict[str, float], agents: Sequence[str]) -> None:
    if set(weights) != set(agents):
        raise ValueError(
            f"weights: expected one for each of {', '.join(agents)}, got {', '.join(weights) or 'none'}"
        )
    for name, weight in weights.items():
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"weights: expected a number of at least 0 for {name}, got {weight:g}")
    if abs((total := sum(weights.values())) - 1.0) > _SUM_TOLERANCE:
        raise ValueError(f"weights: expected a sum of 1, got {total:g}")
