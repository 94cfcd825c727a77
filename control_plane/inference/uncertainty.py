"""Uncertainty from Monte Carlo samples, and the combination of an ensemble's members. Pure numpy.

T samples are drawn by the T dropout masks in the graph (docs/models.md); axes are named B (rows), T (samples), K
(classes), R (regression targets), M (ensemble members), A (agents).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
_TINY = np.float32(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropySplit:
    """Predictive entropy and its two parts, in nats; each float32 [B]. entropy = aleatoric + epistemic."""

    entropy: Floats
    aleatoric: Floats
    epistemic: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A central interval; float32 [B, R] each."""

    lower: Floats
    upper: Floats


def entropy_nats(probs: Floats) -> Floats:
    """Shannon entropy along the last axis, in nats; 0·log 0 is 0."""
    return np.asarray(-np.einsum("...k,...k->...", probs, np.log(np.maximum(probs, _TINY))))


def split_entropy(mc_probs: Floats) -> EntropySplit:
    """Splits the entropy of the mean prediction.

    Args:
        mc_probs: Sampled class probabilities, float32 [B, T, K].

    Returns:
        entropy H[E p], aleatoric E H[p] (what more data would leave), epistemic their difference (the mutual
        information of the class and the weights, which more data would shrink), not below 0.

    Source: Depeweg et al. (2018), Decomposition of Uncertainty in Bayesian Deep Learning, eq. 3; Gal (2016), 3.3.1.
    """
    samples = mc_probs.shape[1]
    total = entropy_nats(mean_of_samples(mc_probs))
    aleatoric = np.minimum(
        -np.einsum("btk,btk->b", mc_probs, np.log(np.maximum(mc_probs, _TINY))) / np.float32(samples), total
    )
    return EntropySplit(entropy=total, aleatoric=aleatoric, epistemic=total - aleatoric)


def standard_deviation(mc_regression: Floats, mean: Floats | None = None) -> Floats:
    """Standard deviation over the samples, float32 [B, R]: the unbiased variance's root (n - 1), 0 for one sample.

    Args:
        mc_regression: Sampled forecasts, float32 [B, T, R].
        mean: Their mean over the samples, float32 [B, R], where it is known.
    """
    samples = mc_regression.shape[1]
    if samples < 2:
        return np.zeros_like(mc_regression[:, 0])
    if mean is None:
        mean = mean_of_samples(mc_regression)
    centred = mc_regression - mean[:, None]
    return np.asarray(np.sqrt(np.einsum("btr,btr->br", centred, centred) / np.float32(samples - 1)))


def quantile_interval(
    mc_regression: Floats, centre: Floats, level: float, mean: Floats | None = None
) -> Interval:
    """The samples' central interval, moved so that it sits on the reported forecast.

    Args:
        mc_regression: Sampled forecasts, float32 [B, T, R].
        centre: The reported forecast, float32 [B, R].
        level: Share of the mass inside, e.g. 0.9 for the quantiles 0.05 and 0.95.
        mean: The samples' mean, float32 [B, R], where it is known.

    Returns:
        The quantiles less the samples' mean, plus `centre`. Quantiles are linearly interpolated (type 7).

    Source: Hyndman and Fan (1996), Sample Quantiles in Statistical Packages, definition 7.
    """
    ordered = np.sort(mc_regression, axis=1)
    last = ordered.shape[1] - 1
    shift = centre - (mean_of_samples(mc_regression) if mean is None else mean)
    bounds = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        position = share * last
        below = int(position)
        above = min(below + 1, last)
        low, high = ordered[:, below], ordered[:, above]
        bounds.append(low + np.float32(position - below) * (high - low) + shift)
    return Interval(lower=bounds[0], upper=bounds[1])


def combine_member_probs(member_probs: Floats, weights: Floats) -> Floats:
    """The ensemble's class probabilities: softmax of the weighted mean of the members' logits; float32 [B, K].

    Members give probabilities, which fix their logits up to a constant that the softmax cancels: so the weighted mean
    of their logarithms serves as well.

    Args:
        member_probs: float32 [B, M, K].
        weights: Normalised, float32 [B, M].
    """
    logits = np.einsum("bm,bmk->bk", weights, np.log(np.maximum(member_probs, _TINY)))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def combine_member_regression(member_regression: Floats, weights: Floats) -> Floats:
    """The weighted mean of the members' forecasts, float32 [B, R], from [B, M, R] and weights [B, M]."""
    return np.asarray(np.einsum("bm,bmr->br", weights, member_regression))


def agreement_with_top(agent_probs: Floats, mixture: Floats, weights: Floats) -> Floats:
    """The weighted share of agents whose top action is the mixture's; float32 [B].

    Args:
        agent_probs: float32 [B, A, K].
        mixture: float32 [B, K].
        weights: Normalised, float32 [B, A].
    """
    agrees = agent_probs.argmax(axis=2) == mixture.argmax(axis=1)[:, None]
    return np.asarray(np.einsum("ba,ba->b", weights, agrees.astype(np.float32)))


def normalised_entropy(probs: Floats) -> Floats:
    """Entropy along the last axis over its maximum, the logarithm of the number of classes: 0 to 1; float32 [B]."""
    classes = probs.shape[-1]
    if classes < 2:
        return np.zeros(probs.shape[:-1], dtype=np.float32)
    return np.asarray(np.clip(entropy_nats(probs) / np.float32(np.log(classes)), 0, 1))


def mean_of_samples(samples: Floats) -> Floats:
    """The mean over T of [B, T, ·]; numpy's own `mean` spends more on its bookkeeping than on so few numbers."""
    return np.asarray(np.add.reduce(samples, axis=1) / np.float32(samples.shape[1]))
