"""Is the split what it was declared to be? A sequential test on units' first assignments. Pure, vectorised.

A split that differs from its declaration means that units were lost or counted twice on one side, and then no
comparison can be trusted.

The counts must be exact, or lose units alike in all variants. Counts of HyperLogLog are neither: its error of 0.8 % is
far more than chance leaves between two halves of a million units.

Source: M. Lindon, A. Malek, "Anytime-Valid Inference For Multinomial Count Data", NeurIPS 2022, section 3.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PRIOR = 1000.0
"""Weight of the Dirichlet prior: as many units as had been split as declared."""
ALARM = 100.0
"""Bayes factor of the alarm: one false alarm in a hundred experiments at most, however often one looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioCheck:
    """The split of one share epoch.

    Attributes:
        counts: Units by their first assignment, in declared order.
        expected: What the declared shares make of their sum.
        bayes_factor: How much likelier the counts are under another split than under the declared.
        threshold: Alarm from this factor on: `ALARM` over the epoch's part of alpha.
        p_any_time: 1 / (bayes_factor · the epoch's part of alpha), at most 1: holds however often one looks.
        p_chi_square: Pearson's, which holds at one look; None without units.
        alarm: The split is broken.
    """

    counts: tuple[int, ...]
    expected: tuple[float, ...]
    bayes_factor: float
    threshold: float
    p_any_time: float
    p_chi_square: float | None
    alarm: bool


def log_bayes_factor(counts: npt.ArrayLike, shares: npt.ArrayLike) -> Any:
    """The Dirichlet-multinomial mixture against the declared split; float64 [...].

    log B(α + n)/B(α) - Σ n·log(share) with α = 1000·share; a martingale when the split is as declared.

    Args:
        counts: Units of each variant, [..., variants].
        shares: [variants] or [..., variants], sum to 1. A unit in a variant of share 0 refutes the split: infinite.
    """
    seen = np.asarray(counts, dtype=np.float64)
    declared = np.broadcast_to(np.asarray(shares, dtype=np.float64), seen.shape)
    possible = declared > 0.0
    prior = np.where(possible, PRIOR * declared, 1.0)
    counted = np.where(possible, seen, 0.0)
    total = counted.sum(axis=-1)
    gammaln = _special().gammaln
    mixture = (
        gammaln(PRIOR) - gammaln(PRIOR + total) + np.sum(gammaln(prior + counted) - gammaln(prior), axis=-1)
    )
    found = mixture - np.sum(counted * np.log(np.where(possible, declared, 1.0)), axis=-1)
    return np.where(np.any(~possible & (seen > 0.0), axis=-1), np.inf, found)


def chi_square_p(counts: npt.ArrayLike, shares: npt.ArrayLike) -> Any:
    """Pearson's chi-square p-value; float64 [...], 1 without units."""
    seen = np.asarray(counts, dtype=np.float64)
    declared = np.broadcast_to(np.asarray(shares, dtype=np.float64), seen.shape)
    expected = declared * seen.sum(axis=-1, keepdims=True)
    apart = (seen - expected) ** 2 / np.where(expected > 0.0, expected, 1.0)
    statistic = np.sum(np.where(expected > 0.0, apart, 0.0), axis=-1)
    degrees = np.maximum(np.sum(declared > 0.0, axis=-1) - 1, 1)
    impossible = np.any((declared == 0.0) & (seen > 0.0), axis=-1)
    return np.where(impossible, 0.0, _special().gammaincc(degrees / 2.0, statistic / 2.0))


def check(
    counts: npt.ArrayLike, shares: npt.ArrayLike, *, planned_epochs: int | None = 1
) -> tuple[RatioCheck, ...]:
    """The checks of all share epochs. Any alarm is an alarm of the experiment.

    Units come back in later epochs at the same place of the line, so that epochs aren't independent evidence and their
    factors can't be multiplied. Instead each has its part of alpha (a union bound holds whatever they have in common).

    Args:
        counts: Units by their first assignment in each epoch, int [epochs, variants].
        shares: Declared in each, float [epochs, variants].
        planned_epochs: How many there can be, which share alpha alike; None: nobody knows (bandit), and the k-th has
            the part 1/(k·(k + 1)).
    """
    seen = np.asarray(counts, dtype=np.int64)
    declared = np.asarray(shares, dtype=np.float64)
    factors, ps = log_bayes_factor(seen, declared), chi_square_p(seen, declared)
    checks = []
    for epoch, (row, split) in enumerate(zip(seen, declared, strict=True)):
        part = 1.0 / planned_epochs if planned_epochs else 1.0 / ((epoch + 1) * (epoch + 2))
        factor = float(np.exp(min(factors[epoch], _LARGEST_LOG)))
        total = int(row.sum())
        checks.append(
            RatioCheck(
                counts=tuple(row.tolist()),
                expected=tuple((split * total).tolist()),
                bayes_factor=factor,
                threshold=ALARM / part,
                p_any_time=min(1.0, 1.0 / (factor * part)) if factor > 0.0 else 1.0,
                p_chi_square=float(ps[epoch]) if total else None,
                alarm=factor >= ALARM / part,
            )
        )
    return tuple(checks)


_LARGEST_LOG = 700.0
"""exp of more overflows."""


def _special() -> Any:
    from scipy import special  # noqa: PLC0415

    return special
