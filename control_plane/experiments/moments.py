"""Sums of a metric in 256 buckets of units: the only state that estimates need, and they add up. Pure.

The unit of randomisation is the unit of analysis. Requests of one account are alike, so their own spread says too
little of how sure a mean is; but units fall into buckets at random, so the spread between buckets says it, whatever
happens inside a unit.

Source: S. Deng, R. Longbotham, T. Walker, Y. Xu, "Choice of the Randomization Unit in Online Controlled Experiments",
JSM 2011 (bucketing); A. Deng, U. Knoblich, J. Lu, "Applying the Delta Method in Metric Analytics", KDD 2018.
"""

import hashlib

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

BUCKETS = 256
MOMENTS = ("n", "y", "yy", "xn", "x")
"""Columns: observations, their sum, their sum of squares; observations with a covariate, the covariates' sum.

Sums of products with the covariate aren't kept: theta regresses the buckets' sums of y on those of x (estimates.py).
"""
N, Y, YY, XN, X = range(len(MOMENTS))


def empty(*leading: int) -> Floats:
    """Moments of nothing; float64 [*leading, 256, 5]."""
    return np.zeros((*leading, BUCKETS, len(MOMENTS)))


def bucket_of(experiment_id: str, unit: str) -> int:
    """The bucket of a unit, 0 to 255: the last byte of an MD5, whose first bytes decide the assignment."""
    return hashlib.md5(f"{experiment_id}:{unit}".encode(), usedforsecurity=False).digest()[-1]


def add(
    moments: Floats,
    bucket: npt.ArrayLike,
    y: npt.ArrayLike,
    x: npt.ArrayLike | None = None,
    *,
    where: npt.ArrayLike | None = None,
) -> None:
    """Counts observations, in place.

    Args:
        moments: float64 [..., 256, 5], contiguous.
        bucket: int [..., observations], or one; the leading axes are those of `moments`.
        y: Likewise, finite: the metric.
        x: Likewise: the covariate, NaN where an observation has none. None: none has.
        where: Likewise bool: which to count. None: all.
    """
    lead = moments.shape[:-2]
    experiments = int(np.prod(lead, dtype=np.int64))
    buckets = np.asarray(bucket, dtype=np.int64).reshape(experiments, -1)
    offsets = np.arange(experiments, dtype=np.int64)[:, np.newaxis] * BUCKETS
    values = np.broadcast_to(np.asarray(y, dtype=np.float64), np.shape(bucket)).reshape(buckets.shape)
    counted = np.ones(buckets.shape, dtype=bool)
    if where is not None:
        counted = np.broadcast_to(np.asarray(where, dtype=bool), np.shape(bucket)).reshape(buckets.shape)
    place = (buckets + offsets)[counted]
    values = values[counted]
    sums = moments.reshape(experiments * BUCKETS, len(MOMENTS))
    if not np.shares_memory(sums, moments):
        raise ValueError("the moments must be contiguous: they are changed in place")
    _into(sums, place, N, None)
    _into(sums, place, Y, values)
    _into(sums, place, YY, values * values)
    if x is not None:
        covariates = np.broadcast_to(np.asarray(x, dtype=np.float64), np.shape(bucket)).reshape(
            buckets.shape
        )[counted]
        known = ~np.isnan(covariates)
        _into(sums, place[known], XN, None)
        _into(sums, place[known], X, covariates[known])


def _into(sums: Floats, place: Integers, column: int, weights: Floats | None) -> None:
    sums[:, column] += np.bincount(place, weights=weights, minlength=len(sums))
