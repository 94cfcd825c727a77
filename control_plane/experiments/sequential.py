"""Intervals and p-values that hold at all looks jointly: the normal-mixture confidence sequence. Pure.

People look at results while they come in, and stop when they like what they see. An ordinary interval is right at one
look that was chosen before; these are right at all of them with probability 1 - alpha (asymptotically, from a first
look at `MIN_REQUESTS` requests and `MIN_UNITS` units on).

Source: H. Robbins, "Statistical Methods Related to the Law of the Iterated Logarithm", Ann. Math. Stat. 41 (1970),
1397-1409; I. Waudby-Smith, D. Arbour, R. Sinha, E. H. Kennedy, A. Ramdas, "Time-uniform central limit theory and
asymptotic confidence sequences", Ann. Stat. 52 (2024), theorem 2.2 and appendix B.1; in the time that
information (1 / se²) makes.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from control_plane.experiments.moments import Floats

MIN_REQUESTS = 100
"""Requests of each variant before the first look; `min_sample` where an experiment says so."""
MIN_UNITS = 50
"""Units of each variant before the first look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """From `lower` to `upper`; None where there is no bound yet."""

    lower: float | None
    upper: float | None

    def excludes(self, value: float) -> bool:
        """Whether the value lies outside."""
        return (self.lower is not None and value < self.lower) or (
            self.upper is not None and value > self.upper
        )


@functools.lru_cache(maxsize=64)
def planned_length(alpha: float) -> float:
    """The L = c at which an interval is tightest: 8.2 for alpha 0.05, where its factor √(1 + c) is 3.04.

    The derivative of (1 + 1/L)·ln((1 + L)/α²) is zero where L = ln((1 + L)/α²), which iteration finds.
    """
    length = -2.0 * math.log(alpha)
    for _ in range(100):
        length = math.log1p(length) - 2.0 * math.log(alpha)
    return length


def started(requests: npt.ArrayLike, units: npt.ArrayLike, *, min_sample: int = MIN_REQUESTS) -> Any:
    """Whether both variants of a pair have enough for a valid approximation; bool [...].

    Args:
        requests: [..., 2].
        units: [..., 2].
        min_sample: Requests that each needs.
    """
    return np.all((np.asarray(requests) >= min_sample) & (np.asarray(units) >= MIN_UNITS), axis=-1)


def planned_information(
    standard_error: npt.ArrayLike, requests: npt.ArrayLike, planned_requests: float
) -> Any:
    """The information, 1 / se², expected at the planned end; to be fixed at the first look, once.

    Args:
        standard_error: At the first look, [...].
        requests: Of the whole experiment until then, [...].
        planned_requests: Of the whole experiment.

    Returns:
        float64 [...]; 0 while the standard error isn't finite: not known yet.
    """
    return information_of(standard_error) * planned_requests / np.asarray(requests, dtype=np.float64)


def information_of(standard_error: npt.ArrayLike) -> Any:
    """1 / se², float64 [...]; 0 where se is infinite."""
    se = np.asarray(standard_error, dtype=np.float64)
    return 1.0 / (se * se)


def half_width(
    standard_error: npt.ArrayLike,
    information: npt.ArrayLike,
    planned_information: npt.ArrayLike,
    alpha: float,
) -> Any:
    """Half the width of the confidence sequence: se·√((1 + 1/L)·ln((1 + L)/α²)) with L = c·I/I_planned.

    Args:
        standard_error: [...], positive; infinite: nothing is known.
        information: I = 1 / se², [...].
        planned_information: At the planned end, [...].
        alpha: The chance that any of all the intervals misses.

    Returns:
        float64 [...], infinite where nothing is known.
    """
    length = _length(information, planned_information, alpha)
    with np.errstate(divide="ignore", over="ignore"):
        factor = np.sqrt((1.0 + 1.0 / length) * (np.log1p(length) - 2.0 * math.log(alpha)))
    return np.asarray(standard_error, dtype=np.float64) * factor


def half_width_one_sided(
    standard_error: npt.ArrayLike,
    information: npt.ArrayLike,
    planned_information: npt.ArrayLike,
    alpha: float,
) -> Any:
    """As `half_width`, for a bound on one side only: se·√(2·(1 + 1/L)·ln(1 + √(1 + L)/(2α))).

    Source: S. R. Howard, A. Ramdas, J. McAuliffe, J. Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence
    sequences", Ann. Stat. 49 (2021), section 3.2 (the closed form of the one-sided normal mixture).
    """
    length = _length(information, planned_information, 2.0 * alpha)
    with np.errstate(divide="ignore", over="ignore"):
        factor = np.sqrt(2.0 * (1.0 + 1.0 / length) * np.log1p(np.sqrt(1.0 + length) / (2.0 * alpha)))
    return np.asarray(standard_error, dtype=np.float64) * factor


def p_always_valid(
    difference: npt.ArrayLike,
    standard_error: npt.ArrayLike,
    planned_information: npt.ArrayLike,
    alpha: float,
) -> Any:
    """The smallest alpha whose interval excludes 0, with c as the experiment's alpha sets it; float64 [...].

    √(1 + L)·exp(-z²·L / (2·(1 + L))): one over the mixture martingale. At most alpha exactly when `half_width` is
    below |difference|.
    """
    se = np.asarray(standard_error, dtype=np.float64)
    length = _length(information_of(se), planned_information, alpha)
    z = np.asarray(difference, dtype=np.float64) / se
    log_p = 0.5 * np.log1p(length) - 0.5 * z * z * length / (1.0 + length)
    return np.exp(np.minimum(log_p, 0.0))


def _length(information: npt.ArrayLike, planned_information: npt.ArrayLike, alpha: float) -> Floats:
    """L; 0, without any bound, where the planned information isn't known."""
    now = np.asarray(information, dtype=np.float64)
    planned = np.asarray(planned_information, dtype=np.float64)
    known = planned > 0.0
    found: Floats = np.where(
        known, planned_length(min(alpha, 0.5)) * now / np.where(known, planned, 1.0), 0.0
    )
    return found
