"""Exact evidence: martingales by enumeration, never too much between grid points, false alarms, and power."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from control_plane.experiments.evidence import (
    combine_epochs,
    log_above,
    log_below,
    log_mixture,
    log_quantile_evidence,
    log_rate_evidence,
)
from control_plane.experiments.sketch import Sketch

COUNTS = st.tuples(st.integers(0, 300), st.integers(0, 300)).map(lambda pair: (min(pair), max(pair)))


@given(st.integers(1, 40), st.floats(0.001, 0.999))
def test_evidence_has_expectation_at_most_one_under_the_hypothesis(n: int, p: float) -> None:
    k = np.arange(n + 1)
    chances = stats.binom.pmf(k, n, p)
    ways = stats.binom.pmf(k, n, 0.5) * 2.0**n
    assert ways @ np.exp(log_mixture(k, n)) == pytest.approx(1.0)
    for evidence in (log_above, log_below):
        assert chances @ np.exp(evidence(k, n, p)) <= 1.0 + 1e-9


@given(COUNTS, st.floats(0, 1), st.floats(0, 1))
def test_evidence_is_monotone_in_the_limit(counts: tuple[int, int], p: float, q: float) -> None:
    k, n = counts
    low, high = min(p, q), max(p, q)
    assert log_above(k, n, low) >= log_above(k, n, high) - 1e-9
    assert log_below(k, n, low) <= log_below(k, n, high) + 1e-9


@given(COUNTS, COUNTS, st.floats(0, 0.2), st.floats(0, 1), st.booleans())
def test_rate_evidence_is_at_most_that_at_any_control_rate(
    ours: tuple[int, int], theirs: tuple[int, int], allowed: float, q: float, paired: bool
) -> None:
    found = log_rate_evidence(*ours, *theirs, max_difference=allowed, paired=paired)
    own, against = log_above(*ours, min(q + allowed, 1.0)), log_below(*theirs, q)
    at_q = np.logaddexp(own, against) if paired else own + np.logaddexp(0.0, against)
    assert found <= at_q - np.log(2) + 1e-9


def ever_broken(
    draw: np.random.Generator,
    runs: int,
    alpha: float,
    sizes: tuple[int, int],
    rates: tuple[float, float],
    **limit: float,
) -> float:
    """Share of runs that ever break the limit at one of 100 looks."""
    broken, totals = np.zeros(runs, dtype=bool), np.zeros((2, runs))
    for look in range(1, 101):
        totals += np.stack([draw.binomial(size, rate, runs) for size, rate in zip(sizes, rates, strict=True)])
        seen = log_rate_evidence(totals[0], look * sizes[0], totals[1], look * sizes[1], **limit)
        broken |= seen >= -np.log(alpha)
    return float(broken.mean())


def test_harmless_error_rates_at_the_limit_are_hardly_ever_called() -> None:
    draw = np.random.default_rng(1)
    assert ever_broken(draw, 200, 0.05, (5, 95), (0.03, 0.02), max_difference=0.01) <= 0.05
    assert ever_broken(draw, 200, 0.05, (10, 10), (0.04, 0.02), max_ratio=2.0) <= 0.05


def test_failing_treatment_is_found_within_500_requests() -> None:
    draw = np.random.default_rng(2)
    assert ever_broken(draw, 200, 0.05 / 3, (5, 95), (0.05, 0.001), max_difference=0.01) >= 0.95


def test_slow_treatment_is_found_within_500_requests_and_an_equal_one_is_not() -> None:
    draw = np.random.default_rng(3)
    control, slow, equal = Sketch(), Sketch(), Sketch()
    control.add(draw.lognormal(2, 0.2, 9500))
    slow.add(1.3 * draw.lognormal(2, 0.2, 500))
    equal.add(draw.lognormal(2, 0.2, 500))
    assert log_quantile_evidence(slow, control, max_ratio=1.1) > np.log(60)
    assert log_quantile_evidence(equal, control, max_ratio=1.1) < 0
    assert log_quantile_evidence(slow, control, max_ratio=1.1, paired=True) > np.log(60)
    assert log_quantile_evidence(slow, Sketch(), max_ratio=1.1) == 0.0


def test_quantile_evidence_is_never_more_than_the_true_quantiles_allow() -> None:
    draw = np.random.default_rng(4)
    broken = 0
    for _ in range(100):
        arms = [Sketch(), Sketch()]
        ever = False
        for _ in range(10):
            arms[0].add(1.1 * draw.exponential(5.0, 40))
            arms[1].add(draw.exponential(5.0, 60))
            ever |= log_quantile_evidence(arms[0], arms[1], max_ratio=1.1) >= np.log(20)
        broken += ever
    assert broken <= 5


def test_epochs_average_over_starts() -> None:
    a, b = 3.0, 0.2
    assert np.exp(combine_epochs(np.log([a]), planned_epochs=1)) == pytest.approx(a)
    assert np.exp(combine_epochs(np.log([a, b]), planned_epochs=4)) == pytest.approx((a * b + b + 1 + 1) / 4)
    assert np.exp(combine_epochs(np.log([a, b]), planned_epochs=1)) == pytest.approx((a * b + b) / 2)
