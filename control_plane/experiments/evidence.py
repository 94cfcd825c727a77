"""Evidence against a limit that is exact at any time, for rates and for quantiles. Pure, vectorised.

With B the beta-binomial mixture of the likelihoods of k of n, B / L(p) is a martingale when the probability is p: the
chance that it ever reaches 1/alpha is at most alpha, from the first request on. Against "at most p" the likeliest p
in the hypothesis takes its place, L(min(p, k/n)), against "at least p" L(max(p, k/n)).

Two samples: were the control's probability q, the treatment's would be at most limit(q). So at each q the product of
both evidences is a supermartingale under the hypothesis, and the least over all q is evidence against it. The control's
evidence enters as ½ + ½·E: it may weigh half a bet, and costs at most ln 2 where the control is known well. It is never
weaker than two confidence sequences with alpha/2 each that don't meet: there E_control(q) ≥ 2/alpha for each q beyond
the control's bound, and E_treatment ≥ 2/alpha before it.

Requests are taken to be independent. Where those of one account are alike, k and n are to be divided by the design
effect (estimates.py): the likelihood of so many independent requests as say the same.

Source: H. Robbins, "Statistical Methods Related to the Law of the Iterated Logarithm", Ann. Math. Stat. 41 (1970);
J. Ville, "Étude critique de la notion de collectif", 1939; S. R. Howard, A. Ramdas, "Sequential estimation of quantiles
with applications to A/B testing and best-arm identification", Bernoulli 28 (2022), theorem 2 (the beta-binomial
quantile confidence sequence, whose martingale this is); for the least over a composite hypothesis L. Wasserman,
A. Ramdas, S. Balakrishnan, "Universal inference", PNAS 117 (2020).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from control_plane.experiments.moments import Floats
from control_plane.experiments.sketch import Sketch, index_of, upper_edge

PRIOR = (0.5, 10.0)
"""Beta prior of error rates and of the share above a P95: most below 20 %."""
_LEAST_RATE = 5e-7


def log_mixture(k: npt.ArrayLike, n: npt.ArrayLike) -> Any:
    """ln B(a + k, b + n - k) / B(a, b); float64 [...]."""
    hits, trials = np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64)
    betaln = _special().betaln
    return betaln(PRIOR[0] + hits, PRIOR[1] + trials - hits) - betaln(*PRIOR)


def log_likelihood(k: npt.ArrayLike, n: npt.ArrayLike, p: npt.ArrayLike) -> Any:
    """k·ln p + (n - k)·ln(1 - p), with 0·ln 0 = 0; float64 [...]."""
    special = _special()
    hits, trials = np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64)
    return special.xlogy(hits, p) + special.xlog1py(trials - hits, -np.asarray(p, dtype=np.float64))


def log_above(k: npt.ArrayLike, n: npt.ArrayLike, p: npt.ArrayLike) -> Any:
    """Log evidence that the probability is above p; float64 [...], falls as p grows."""
    return log_mixture(k, n) - log_likelihood(k, n, np.minimum(p, _share(k, n)))


def log_below(k: npt.ArrayLike, n: npt.ArrayLike, p: npt.ArrayLike) -> Any:
    """Log evidence that the probability is below p; float64 [...], grows with p."""
    return log_mixture(k, n) - log_likelihood(k, n, np.maximum(p, _share(k, n)))


def log_rate_evidence(
    treatment_errors: npt.ArrayLike,
    treatment: npt.ArrayLike,
    control_errors: npt.ArrayLike,
    control: npt.ArrayLike,
    *,
    max_difference: float | None = None,
    max_ratio: float | None = None,
    paired: bool = False,
) -> Any:
    """Log evidence that the treatment's error rate exceeds the control's by more than the limit; float64 [...].

    Between neighbours of the grid of control rates the treatment's evidence at the upper and the control's at the lower
    one stand, which is never too much.

    Args:
        treatment_errors: [...].
        treatment: Requests, [...].
        control_errors: [...].
        control: Requests, [...].
        max_difference: The hypothesis: treatment - control is at most this.
        max_ratio: Or: treatment / control is at most this.
        paired: Both answer the same requests (shadow), so that their evidences may not be multiplied: their mean.
    """
    edges = _rates()
    limits = np.minimum(edges * max_ratio if max_ratio is not None else edges + (max_difference or 0.0), 1.0)
    k, n, j, m = (
        np.asarray(a, dtype=np.float64)[..., np.newaxis]
        for a in (treatment_errors, treatment, control_errors, control)
    )
    own = log_above(k, n, np.maximum(limits, 0.0))[..., 1:]
    against = log_below(j, m, edges)[..., :-1]
    return np.min(_both(own, against, paired=paired), axis=-1)


def log_quantile_evidence(
    treatment: Sketch,
    control: Sketch,
    *,
    max_difference: float | None = None,
    max_ratio: float | None = None,
    quantile: float = 0.95,
    paired: bool = False,
    design_effect: float = 1.0,
) -> float:
    """Log evidence that the treatment's quantile exceeds the control's by more than the limit.

    Were the control's quantile v, at most 1 - quantile of the control would be above it, and at most as much of the
    treatment above what the limit makes of v. Values v are those between edges of the sketch's buckets; counts are
    rounded against the evidence, which costs at most 2 % of the quantile.

    Args:
        treatment: Positive values, such as latencies.
        control: Likewise.
        max_difference: The hypothesis: treatment - control is at most this, in the values' unit.
        max_ratio: Or: treatment / control is at most this.
        quantile: Which.
        paired: See `log_rate_evidence`.
        design_effect: Divides all counts.
    """
    theirs, below = control.cumulative()
    ours, upto = treatment.cumulative()
    if not theirs.size or not ours.size:
        return 0.0
    tail = 1.0 - quantile
    n, m = int(upto[-1]), int(below[-1])
    # v in bucket i: the control's values below v are at least those of the buckets before i, the treatment's below the
    # limit at most those up to the bucket that holds the limit at i's upper edge. The last v is beyond all values.
    before = np.concatenate([[0], below])
    edges = [upper_edge(int(index)) for index in theirs]
    limits = [v * max_ratio if max_ratio is not None else v + (max_difference or 0.0) for v in edges]
    within = [_count(ours, upto, index_of(limit)) for limit in limits]
    own = log_above((n - np.array([*within, n])) / design_effect, n / design_effect, tail)
    against = log_below((m - before) / design_effect, m / design_effect, tail)
    return float(np.min(_both(own, against, paired=paired)))


def combine_epochs(logs: Sequence[npt.ArrayLike], *, planned_epochs: int) -> Any:
    """Log evidence from all share epochs so far, which compare like with like each; float64 [...].

    The mean over starts j of the product of the epochs from j on, epochs to come counting 1: a treatment that is
    harmful from the beginning gathers evidence over epochs, and one that becomes so isn't acquitted by its past.

    Args:
        logs: Of each epoch in order, [...].
        planned_epochs: How many there can be.
    """
    stacked = np.stack([np.asarray(log, dtype=np.float64) for log in logs])
    products = np.cumsum(stacked[::-1], axis=0)
    future = max(planned_epochs, len(logs)) - len(logs)
    total = np.logaddexp.reduce(products, axis=0)
    if future:
        total = np.logaddexp(total, math.log(future))
    return total - math.log(len(logs) + future)


def _count(indices: npt.NDArray[np.int64], upto: npt.NDArray[np.int64], index: int) -> int:
    """How many values are in buckets up to this one."""
    place = int(np.searchsorted(indices, index, side="right"))
    return int(upto[place - 1]) if place else 0


def _share(k: npt.ArrayLike, n: npt.ArrayLike) -> Floats:
    trials = np.asarray(n, dtype=np.float64)
    found: Floats = np.asarray(k, dtype=np.float64) / np.where(trials > 0.0, trials, 1.0)
    return found


def _both(own: Floats, against: Floats, *, paired: bool) -> Any:
    """ln(E_own·(½ + ½·E_against)), of dependent ones ln(½·E_own + ½·E_against)."""
    return (np.logaddexp(own, against) if paired else own + np.logaddexp(0.0, against)) - math.log(2.0)


@functools.cache
def _rates() -> Floats:
    """Rates from 0 to 1, 1.2 % apart up to a half; float64 [1217]."""
    low, high = np.geomspace(_LEAST_RATE, 0.5, 1150), np.linspace(0.5, 1.0, 67)[1:]
    return np.concatenate([[0.0], low, high])


def _special() -> Any:
    from scipy import special  # noqa: PLC0415

    return special
