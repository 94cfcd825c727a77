"""A mergeable sketch of latencies whose quantiles are within 1 %. Pure.

Source: C. Masson, J. E. Rim, H. K. Lee, "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error
Guarantees", PVLDB 12 (2019), definition 4 and algorithm 1; without collapsing: latencies from a microsecond to a day
fill at most 1,260 buckets.
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

ACCURACY = 0.01
"""Largest relative error of a quantile."""
GAMMA = (1.0 + ACCURACY) / (1.0 - ACCURACY)
"""Bucket i holds the values in (GAMMA^(i-1), GAMMA^i]."""
NOT_POSITIVE = -1_000_000
"""Index of the bucket of zero and negative values; no positive double has an index below -37,300."""

_LOG_GAMMA = math.log(GAMMA)


def index_of(value: float) -> int:
    """The bucket of a value, which must be finite."""
    return math.ceil(math.log(value) / _LOG_GAMMA) if value > 0.0 else NOT_POSITIVE


def value_of(index: int) -> float:
    """The value that stands for a bucket: within 1 % of all that are in it; 0 for what isn't positive."""
    return 0.0 if index == NOT_POSITIVE else 2.0 * GAMMA**index / (GAMMA + 1.0)


def upper_edge(index: int) -> float:
    """The largest value in a bucket."""
    return 0.0 if index == NOT_POSITIVE else math.exp(index * _LOG_GAMMA)


class Sketch:
    """Counts of values by bucket; sketches add up, in any order, to the sketch of all their values.

    Args:
        counts: Index of a bucket to its count, as Redis keeps it; copied.
    """

    __slots__ = ("counts",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: dict[int, int] = dict(counts or {})

    @property
    def count(self) -> int:
        """How many values were added."""
        return sum(self.counts.values())

    def add(self, values: npt.ArrayLike) -> None:
        """Counts values, finite, of any shape."""
        given = np.asarray(values, dtype=np.float64).ravel()
        positive = given[given > 0.0]
        self._add(NOT_POSITIVE, given.size - positive.size)
        found, counts = np.unique(np.ceil(np.log(positive) / _LOG_GAMMA).astype(np.int64), return_counts=True)
        for index, count in zip(found.tolist(), counts.tolist(), strict=True):
            self._add(index, count)

    def merge(self, other: "Sketch") -> None:
        """Adds another sketch's counts."""
        for index, count in other.counts.items():
            self._add(index, count)

    def quantile(self, q: float) -> float | None:
        """The value below which the share `q` lies, within 1 %, interpolated between ranks as `numpy.quantile` does.

        Args:
            q: 0 to 1.

        Returns:
            None without values.
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"a quantile's share is from 0 to 1, not {q}")
        indices, upto = self.cumulative()
        if not upto.size:
            return None
        rank = q * (int(upto[-1]) - 1)
        below, above = (
            value_of(int(indices[np.searchsorted(upto, whole, side="right")]))
            for whole in (math.floor(rank), math.ceil(rank))
        )
        return below + (rank - math.floor(rank)) * (above - below)

    def mean(self) -> float | None:
        """The mean, within 1 % when all values are positive; None without values."""
        total = self.count
        return sum(n * value_of(i) for i, n in self.counts.items()) / total if total else None

    def cumulative(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The buckets in use in ascending order, and how many values are in each and those before; [buckets] each."""
        ordered = sorted((i, n) for i, n in self.counts.items() if n > 0)
        indices = np.array([i for i, _ in ordered], dtype=np.int64)
        return indices, np.cumsum(np.array([n for _, n in ordered], dtype=np.int64))

    def _add(self, index: int, count: int) -> None:
        if count:
            self.counts[index] = self.counts.get(index, 0) + count
