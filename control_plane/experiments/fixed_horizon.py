"""Ordinary intervals and p-values: valid at one look, at the planned end, and not before. Pure."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from control_plane.experiments.moments import Floats
from control_plane.experiments.sequential import Interval

FISHER_BELOW = 1000
"""Fisher's exact test while either side has fewer requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedTest:
    """A test at one look.

    Attributes:
        method: welch_t, fisher_exact or score; the interval beside the latter two is Newcombe's.
        interval: Of the difference.
        p: Two-sided; None while nothing is known.
    """

    method: str
    interval: Interval
    p: float | None


def t_test(difference: float, standard_error: float, degrees: float, alpha: float) -> FixedTest:
    """Student's t with Welch's degrees of freedom (`Estimate.degrees`).

    Args:
        difference: Of the means.
        standard_error: Its; infinite while nothing is known.
        degrees: Of freedom.
        alpha: One minus the interval's level.
    """
    if not np.isfinite(standard_error):
        return FixedTest(method="welch_t", interval=Interval(lower=None, upper=None), p=None)
    half = standard_error * float(_special().stdtrit(degrees, 1.0 - alpha / 2.0))
    return FixedTest(
        method="welch_t",
        interval=Interval(lower=difference - half, upper=difference + half),
        p=float(t_p(difference, standard_error, degrees)),
    )


def t_p(difference: npt.ArrayLike, standard_error: npt.ArrayLike, degrees: npt.ArrayLike) -> Any:
    """The two-sided p-value of Student's t; float64 [...], 1 where nothing is known."""
    ratio = np.abs(np.asarray(difference, dtype=np.float64)) / np.asarray(standard_error, dtype=np.float64)
    return 2.0 * _special().stdtr(np.asarray(degrees, dtype=np.float64), -ratio)


def error_rates(
    *, treatment_errors: int, treatment: int, control_errors: int, control: int, alpha: float
) -> FixedTest:
    """Two error rates of independent requests.

    Args:
        treatment_errors: Of the treatment.
        treatment: Its requests.
        control_errors: Of the control.
        control: Its requests.
        alpha: One minus the interval's level.
    """
    counts = (treatment_errors, treatment, control_errors, control)
    if not treatment or not control:
        return FixedTest(method="fisher_exact", interval=Interval(lower=None, upper=None), p=None)
    exact = min(treatment, control) < FISHER_BELOW
    return FixedTest(
        method="fisher_exact" if exact else "score",
        interval=newcombe(*counts, alpha),
        p=fisher_exact_p(*counts) if exact else score_p(*counts),
    )


def fisher_exact_p(successes: int, total: int, other_successes: int, other_total: int) -> float:
    """Fisher's exact test, two-sided: all tables that are at most as probable as this one."""
    from scipy import stats  # noqa: PLC0415

    table = [[successes, total - successes], [other_successes, other_total - other_successes]]
    return float(stats.fisher_exact(table).pvalue)


def score_p(successes: int, total: int, other_successes: int, other_total: int) -> float:
    """The two-proportion score test, two-sided: z² is Pearson's chi-square without continuity correction."""
    pooled = (successes + other_successes) / (total + other_total)
    if not 0.0 < pooled < 1.0:
        return 1.0
    error = np.sqrt(pooled * (1.0 - pooled) * (1.0 / total + 1.0 / other_total))
    return float(2.0 * _special().ndtr(-abs(successes / total - other_successes / other_total) / error))


def newcombe(successes: int, total: int, other_successes: int, other_total: int, alpha: float) -> Interval:
    """Newcombe's interval of a difference of proportions: from the two Wilson intervals, its method 10.

    Source: R. G. Newcombe, "Interval estimation for the difference between independent proportions: comparison of
    eleven methods", Stat. Med. 17 (1998), 873-890.
    """
    z = float(_special().ndtri(1.0 - alpha / 2.0))
    own, other = successes / total, other_successes / other_total
    (low, high), (other_low, other_high) = (_wilson(own, total, z), _wilson(other, other_total, z))
    return Interval(
        lower=own - other - float(np.hypot(own - low, other_high - other)),
        upper=own - other + float(np.hypot(high - own, other - other_low)),
    )


def _wilson(share: float, total: int, z: float) -> tuple[float, float]:
    """Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927)."""
    square = z * z / total
    centre = share + square / 2.0
    half = z * float(np.sqrt(share * (1.0 - share) / total + square / (4.0 * total)))
    return max((centre - half) / (1.0 + square), 0.0), min((centre + half) / (1.0 + square), 1.0)


def t_half_width(standard_error: Floats, degrees: Floats, alpha: float) -> Floats:
    """Half of the t interval; float64 [...], for simulations of the repeated t-test."""
    found: Floats = standard_error * _special().stdtrit(degrees, 1.0 - alpha / 2.0)
    return found


def _special() -> Any:
    """scipy.special: of no use to a worker that only counts."""
    from scipy import special  # noqa: PLC0415

    return special
