"""Means with their uncertainty: of independent scores, of ratios, and of scores whose policy learned meanwhile.

The last is the one to believe on a log that the learning policy wrote itself: its scores grow noisier as the policy
stops trying what it thinks poor, and their plain mean isn't normal then. Weighting each score by one over the standard
deviation that was foreseeable when it arose makes all equally noisy, and the weighted mean normal again.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from control_plane.ensembles.credit import Floats

Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

FEWEST_DEGREES = 4.0
"""Of freedom, that an interval is computed with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """From `lower` to `upper`, in units of the reward."""

    lower: float
    upper: float

    @property
    def width(self) -> float:
        """`upper − lower`."""
        return self.upper - self.lower


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """An estimated mean reward; `lower` to `upper` is its confidence interval."""

    estimate: float
    standard_error: float
    lower: float
    upper: float

    @property
    def interval(self) -> Interval:
        """`lower` to `upper`."""
        return Interval(lower=self.lower, upper=self.upper)


def mean(scores: Floats, *, level: float) -> Estimate:
    """Of independent scores: their mean, and the normal interval around it.

    Args:
        scores: float64 [entries], at least 2.
        level: Of confidence, in (0, 1).
    """
    count = len(scores)
    return normal(float(scores.mean()), float(scores.std(ddof=1)) / count**0.5, level=level)


def ratio(weights: Floats, rewards: Floats, *, level: float) -> Estimate:
    """Σ weights · rewards / Σ weights, with the delta method's standard error.

    Args:
        weights: float64 [entries], not negative, not all zero.
        rewards: float64 [entries].
        level: Of confidence.

    Source: A. Owen, Monte Carlo theory, methods and examples (2013), chapter 9, self-normalised
        importance sampling.
    """
    total = float(weights.sum())
    estimate = float(weights @ rewards) / total
    error = float(np.sqrt(np.sum((weights * (rewards - estimate)) ** 2))) / total
    return normal(estimate, error, level=level)


def stabilised(scores: Floats, weights: Floats, *, level: float) -> Estimate:
    """The mean of martingale scores, each weighted by one over its foreseeable standard deviation.

    The standard error is √(Σ u²) / Σ h with u = h·(score − estimate), or, where scores close in time turn out alike,
    Newey and West's, which counts that as well: requests may come from contexts that stay for a while. The interval is
    by Student's distribution, with fewer degrees of freedom the fewer entries make up most of Σ u².

    Args:
        scores: float64 [entries], oldest first: given what came before it, each has the sought value as expectation.
        weights: float64 [entries], positive: h, known before the entry's context and action were.
        level: Of confidence.

    Source: Hadad, Hirshberg, Zhan, Wager, Athey, 'Confidence intervals for policy evaluation in adaptive experiments',
        PNAS 118(15), 2021; with contexts: Zhan, Hadad, Hirshberg, Athey, 'Off-policy evaluation via adaptive weighting
        with data from contextual bandits', KDD 2021; Bibaut et al., 'Post-contextual-bandit inference', NeurIPS 2021;
        Newey, West, 'A simple, positive semi-definite, heteroskedasticity and autocorrelation consistent covariance
        matrix', Econometrica 55(3), 1987.
    """
    total = float(weights.sum())
    estimate = float(weights @ scores) / total
    terms = weights * (scores - estimate)
    squares = terms**2
    variance = float(squares.sum())
    if variance == 0.0:
        return normal(estimate, 0.0, level=level)
    degrees = max(FEWEST_DEGREES, variance**2 / float(squares @ squares) - 1.0)
    error = max(variance, long_run_variance(terms)) ** 0.5 / total
    return around(estimate, error, factor=float(stdtrit(degrees, 0.5 + level / 2)))


def long_run_variance(terms: Floats) -> float:
    """Of the sum of a series around 0, by Bartlett's weights over √entries lags.

    Args:
        terms: float64 [entries].
    """
    lags = int(len(terms) ** 0.5)
    nearby = ((1.0 - lag / (lags + 1.0)) * float(terms[lag:] @ terms[:-lag]) for lag in range(1, lags + 1))
    return float(terms @ terms) + 2.0 * sum(nearby)


def normal(estimate: float, standard_error: float, *, level: float) -> Estimate:
    """With the normal interval."""
    return around(estimate, standard_error, factor=float(ndtri(0.5 + level / 2)))


def around(estimate: float, standard_error: float, *, factor: float) -> Estimate:
    """With the interval of so many standard errors on either side."""
    half = factor * standard_error
    return Estimate(
        estimate=estimate, standard_error=standard_error, lower=estimate - half, upper=estimate + half
    )
