"""Against statsmodels and textbook tables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest

from control_plane.experiments.fixed_horizon import (
    error_rates,
    fisher_exact_p,
    newcombe,
    score_p,
    t_half_width,
    t_p,
    t_test,
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int, int]:
    n, m = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))
    return draw(st.integers(0, n)), n, draw(st.integers(0, m)), m


@given(tables(), st.sampled_from([0.01, 0.05, 0.2]))
def test_newcombe_equals_statsmodels(table: tuple[int, int, int, int], alpha: float) -> None:
    expected = confint_proportions_2indep(*table, method="newcomb", alpha=alpha)
    found = newcombe(*table, alpha)
    assert (found.lower, found.upper) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((10, 10, 0, 20), (0.6791, 1.0)),
    ],
)
def test_newcombe_equals_its_papers_table(table: tuple, expected: tuple) -> None:
    found = newcombe(*table, 0.05)
    assert (found.lower, found.upper) == pytest.approx(expected, abs=5e-5)


@given(tables())
def test_score_test_equals_statsmodels(table: tuple[int, int, int, int]) -> None:
    k, n, j, m = table
    if 0 < k + j < n + m:
        assert score_p(*table) == pytest.approx(proportions_ztest([k, j], [n, m])[1], abs=1e-12)
    else:
        assert score_p(*table) == 1.0


def test_fisher_of_the_lady_tasting_tea() -> None:
    assert fisher_exact_p(3, 4, 1, 4) == pytest.approx(0.4857, abs=1e-4)


def test_error_rates_choose_the_test_by_the_smaller_side() -> None:
    def method(n: int, m: int) -> str:
        return error_rates(treatment_errors=5, treatment=n, control_errors=9, control=m, alpha=0.05).method

    assert [method(999, 5000), method(5000, 999), method(1000, 1000)] == [
        "fisher_exact",
        "fisher_exact",
        "score",
    ]
    nothing = error_rates(treatment_errors=0, treatment=0, control_errors=1, control=9, alpha=0.05)
    assert (nothing.p, nothing.interval.lower) == (None, None)


def test_t_test_equals_scipys_welch() -> None:
    draw = np.random.default_rng(1)
    a, b = draw.normal(0.3, 1, 40), draw.normal(0, 2, 60)
    expected = stats.ttest_ind(a, b, equal_var=False)
    se = np.sqrt(a.var(ddof=1) / 40 + b.var(ddof=1) / 60)
    found = t_test(a.mean() - b.mean(), se, expected.df, 0.05)
    interval = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.interval.lower, found.interval.upper) == pytest.approx((interval.low, interval.high))
    half = t_half_width(np.array([se]), np.array([expected.df]), 0.05)
    assert half == pytest.approx([(interval.high - interval.low) / 2])


def test_t_test_without_spread_knows_nothing() -> None:
    found = t_test(0.0, np.inf, 1.0, 0.05)
    assert (found.p, found.interval.lower, found.interval.upper) == (None, None, None)
    assert t_p(0.0, np.inf, 1.0) == 1.0
