"""Which call size a model is best served with: from what calls took to the choice. Pure.

A request that comes while all calls are in flight waits for one to end before its own begins. With k calls in flight
that each take L, one ends every L / k, so the request takes up to L * (1 + 1/k). That is what the latency objective
holds for. Among the sizes that meet it, the best throughput counts; among those that can't be told from it (within 3 %,
or within the standard error of a noisy measurement), the one with the fewest rows in flight: by Little's law that is
the one with the lowest latency.

Source: D. Crankshaw et al., "Clipper", NSDI 2017, section 4.3.1 (throughput under a latency objective); R. Jain, "The
Art of Computer Systems Performance Analysis", 1991, section 3.3 (usable capacity and knee capacity); J. D. C. Little,
"A Proof for the Queuing Formula: L = λW", Operations Research 9(3), 1961; L. Breiman et al., "Classification and
Regression Trees", 1984, section 3.4.3 (the one-standard-error rule).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 0.03
"""Throughputs that differ by less than this share count as equal: repeated measurements differ by as much."""
MOST_TOLERANCE = 0.1
"""However noisy they are, throughputs that differ by more than this share don't."""
MOST_CALLS = 64
_LEAST_FOR_P95 = 20
_FINALISTS = 6


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class CallSize:
    """How a model is called."""

    rows: int
    """Rows of one call."""
    calls_in_flight: int
    """Calls to Triton at once."""

    @property
    def rows_in_flight(self) -> int:
        """Rows that Triton holds at once."""
        return self.rows * self.calls_in_flight


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round of calls of one size, with never fewer in flight than the size says."""

    latencies_s: tuple[float, ...]
    """Of each call."""
    rows_per_s: float
    """Throughput of the round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What calls of one size take."""

    size: CallSize
    p50_ms: float
    """Median of a call, in milliseconds."""
    p95_ms: float
    """95th percentile of a call, in milliseconds."""
    rows_per_s: float
    """Throughput."""
    rows_per_s_error: float
    """Its standard error."""
    calls: int
    """How many were measured."""

    @property
    def request_p95_ms(self) -> float:
        """95th percentile of a request that waits for a free call first, in milliseconds."""
        return self.p95_ms * (1 + 1 / self.size.calls_in_flight)


def summarise(size: CallSize, rounds: Sequence[Round]) -> Point:
    """Medians over the rounds, so that one disturbed round doesn't count.

    Rounds of too few calls to have a 95th percentile are taken together for that.

    Raises:
        ValueError: there is no call at all.
    """
    if not any(one.latencies_s for one in rounds):
        raise ValueError("nothing was measured")
    counts = [len(one.latencies_s) for one in rounds]
    together = np.concatenate([np.asarray(one.latencies_s) for one in rounds])
    parts = [np.asarray(one.latencies_s) for one in rounds if one.latencies_s]
    throughputs = np.asarray([one.rows_per_s for one in rounds])
    middle = float(np.median(throughputs))
    # Of a median: 1.25 times that of a mean; the deviation from the median one, which outliers don't spoil.
    deviation = 1.4826 * float(np.median(np.abs(throughputs - middle)))
    tails = parts if float(np.median(counts)) >= _LEAST_FOR_P95 else [together]
    return Point(
        size=size,
        p50_ms=1000 * float(np.median([np.median(part) for part in parts])),
        p95_ms=1000 * float(np.median([np.quantile(part, 0.95, method="inverted_cdf") for part in tails])),
        rows_per_s=middle,
        rows_per_s_error=1.2533 * deviation / math.sqrt(len(rounds)),
        calls=sum(counts),
    )


def choose(points: Iterable[Point], *, objective_p95_ms: float) -> Point | None:
    """The point to serve with; None where none meets the objective.

    Args:
        points: In any order.
        objective_p95_ms: Longest 95th percentile of a request, in milliseconds.
    """
    good = [point for point in points if point.request_p95_ms <= objective_p95_ms]
    if not good:
        return None
    best = max(good, key=lambda point: point.rows_per_s)
    enough = best.rows_per_s * (1 - tolerance_of(best))
    return min(
        (point for point in good if point.rows_per_s >= enough),
        key=lambda point: (point.size.rows_in_flight, point.size.rows),
    )


def tolerance_of(best: Point) -> float:
    """The share of the best throughput by which others may be lower, and can't be told from it."""
    error = best.rows_per_s_error / best.rows_per_s if best.rows_per_s > 0 else 0.0
    return min(max(TOLERANCE, error), MOST_TOLERANCE)


def finalists(points: Iterable[Point], *, objective_p95_ms: float) -> tuple[CallSize, ...]:
    """The sizes among which the choice is, or may fall when they are measured more: at most the best `_FINALISTS`."""
    good = [point for point in points if point.request_p95_ms <= objective_p95_ms]
    enough = max((point.rows_per_s for point in good), default=0.0) * (1 - MOST_TOLERANCE)
    near = sorted(good, key=lambda point: -point.rows_per_s)
    return tuple(point.size for point in near if point.rows_per_s >= enough)[:_FINALISTS]


def rows_to_try(max_rows: int) -> tuple[int, ...]:
    """The powers of two below `max_rows`, and `max_rows`."""
    powers = [2**exponent for exponent in range(max(1, max_rows).bit_length())]
    return tuple(sorted({*(power for power in powers if power <= max_rows), max(1, max_rows)}))


def rows_near(chosen: int, *, max_rows: int, known: Iterable[int]) -> tuple[int, ...]:
    """Numbers of rows between the chosen one and its neighbours in `rows_to_try` that aren't known yet."""
    near = {chosen * 3 // 4, chosen * 3 // 2}
    return tuple(sorted(rows for rows in near - set(known) if 1 <= rows <= max_rows))


def default_calls(instance_count: int) -> int:
    """Calls in flight where nothing was tuned: one that each instance computes, and one that waits there."""
    return min(MOST_CALLS, 2 * max(1, instance_count))


def calls_to_try(instance_count: int) -> tuple[int, ...]:
    """Numbers of calls in flight: one more than the instances, and two to four for each.

    Not fewer: a measurement sends its next call at once, but a worker has answers to write first, and the instances
    would be idle meanwhile.
    """
    count = max(1, instance_count)
    return tuple(sorted({min(MOST_CALLS, calls) for calls in (count + 1, 2 * count, 3 * count, 4 * count)}))


def fewer_calls(instance_count: int) -> tuple[int, ...]:
    """Numbers of calls in flight for when `calls_to_try` are too slow: one for each instance, then a single one."""
    return tuple(sorted({min(MOST_CALLS, max(1, instance_count)), 1}, reverse=True))
