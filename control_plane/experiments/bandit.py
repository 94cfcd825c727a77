"""Shares of a bandit's next epoch: how probable it is that each variant is the best. Pure, deterministic.

Levels drift while shares change, so sums over all epochs would favour what was given most in good times. Means are
taken from a model with an effect of each epoch and one of each variant, by least squares weighted with the counts.

Source: W. R. Thompson, "On the likelihood that one unknown probability exceeds another in view of the evidence of two
samples", Biometrika 25 (1933), 285-294; O. Chapelle, L. Li, "An Empirical Evaluation of Thompson Sampling", NIPS 2011.
"""

import numpy as np

from control_plane.experiments.design import Direction, MetricKind
from control_plane.experiments.estimates import design_effect
from control_plane.experiments.moments import YY, Floats, N, Y

DRAWS = 4096
_PRIOR_COUNT = 1.0
"""How many observations the prior is worth, at the mean and the spread of all."""


def shares(
    moments: Floats, kind: MetricKind, direction: Direction, *, floor_share: float, seed: int
) -> tuple[float, ...]:
    """The shares of the next epoch, in declared order.

    Args:
        moments: Of the outcome metric, float64 [epochs, variants, 256, moments].
        kind: Rates have Beta posteriors, the others normal ones.
        direction: Which way is better.
        floor_share: Least share of a variant; the number of variants times this is at most 1.
        seed: Of the draws; the same on all replicas, another one for each epoch.
    """
    variants = moments.shape[1]
    spare = 1.0 - variants * floor_share
    if spare < -1e-9:
        raise ValueError(f"{variants} variants can't have a share of {floor_share} each")
    best = best_probabilities(moments, kind, direction, seed=seed)
    raw = floor_share + max(spare, 0.0) * best
    return tuple((raw / raw.sum()).tolist())


def best_probabilities(moments: Floats, kind: MetricKind, direction: Direction, *, seed: int) -> Floats:
    """By 4,096 draws from the posteriors; float64 [variants], sums to 1.

    Args:
        moments: float64 [epochs, variants, 256, moments].
        kind: Of the metric.
        direction: Which way is better.
        seed: Of the draws.
    """
    means, counts, variance = level(moments)
    draw = np.random.Generator(np.random.PCG64(seed))
    size = (DRAWS, len(means))
    known = counts.sum()
    centre = float(counts @ means / known) if known else 0.0
    if kind.binary:
        centre = min(max(centre, 0.0), 1.0) if known else 0.5
        hits = counts * np.clip(means, 0.0, 1.0)
        prior = 2.0 * _PRIOR_COUNT
        drawn = draw.beta(
            prior * (0.5 + centre) / 2.0 + hits, prior * (1.5 - centre) / 2.0 + counts - hits, size
        )
    else:
        weight = counts / (counts + _PRIOR_COUNT)
        sd = np.sqrt(variance / (counts + _PRIOR_COUNT))
        drawn = (centre + weight * (means - centre)) + sd * draw.standard_normal(size)
    if direction is Direction.DOWN:
        drawn = -drawn
    wins = np.bincount(drawn.argmax(axis=1), minlength=len(means))
    if not known or (not variance > 0.0 and float(np.ptp(means)) == 0.0):
        return np.full(len(means), 1.0 / len(means))
    return (wins + 0.5) / (DRAWS + 0.5 * len(means))


def level(moments: Floats) -> tuple[Floats, Floats, float]:
    """Mean, effective count and variance of the variants, as if all epochs were alike.

    Args:
        moments: float64 [epochs, variants, 256, moments].

    Returns:
        Means float64 [variants]; counts float64 [variants], of independent observations: divided by how much more the
        buckets spread than independent requests would; variance of an observation.
    """
    n, y = moments[..., N].sum(axis=-1), moments[..., Y].sum(axis=-1)
    cells = np.where(n > 0.0, y / np.where(n > 0.0, n, 1.0), 0.0)
    means = _variant_means(n, cells)
    squares = float(moments[..., YY].sum() - np.sum(n * cells**2))
    degrees = float(n.sum() - np.count_nonzero(n))
    variance = max(squares, 0.0) / degrees if degrees > 0.0 else 0.0
    effect = float(np.mean(design_effect(np.moveaxis(moments, 1, 0))))
    return means, n.sum(axis=0) / effect, variance


def _variant_means(n: Floats, cells: Floats) -> Floats:
    """Weighted least squares of cell = epoch + variant; float64 [variants], at the level of all observations."""
    variants = n.shape[1]
    per_variant, per_epoch = n.sum(axis=0), n.sum(axis=1)
    safe = np.where(per_epoch > 0.0, per_epoch, 1.0)
    # The epochs' effects are eliminated; what remains is variants × variants, of one rank less.
    normal = np.diag(per_variant) - n.T @ (n / safe[:, np.newaxis])
    right = np.sum(n * cells, axis=0) - n.T @ (np.sum(n * cells, axis=1) / safe)
    effects = np.linalg.lstsq(normal, right, rcond=1e-10)[0]
    total = float(n.sum())
    if not total:
        return np.zeros(variants)
    centre = float(np.sum(n * cells)) / total
    found: Floats = centre + effects - float(per_variant @ effects) / total
    return found
