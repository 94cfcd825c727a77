"""The confidence sequence against its formula, its inverse, and the mixture that it comes from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from control_plane.experiments.sequential import (
    Interval,
    half_width,
    half_width_one_sided,
    information_of,
    p_always_valid,
    planned_information,
    planned_length,
    started,
)

ALPHA = st.floats(1e-4, 0.5)


def test_planned_length_is_that_of_the_design() -> None:
    assert planned_length(0.05) == pytest.approx(8.2, abs=0.05)
    assert half_width(1.0, 1.0, 1.0, 0.05) == pytest.approx(3.04, abs=0.01)


@given(ALPHA)
def test_planned_length_makes_the_factor_least(alpha: float) -> None:
    found = optimize.minimize_scalar(
        lambda log: (1 + np.exp(-log)) * (np.log1p(np.exp(log)) - 2 * np.log(alpha)),
        bounds=(-5, 8),
        method="bounded",
    )
    assert half_width(1.0, 1.0, 1.0, alpha) == pytest.approx(np.sqrt(found.fun), rel=1e-6)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(-50, 50), ALPHA)
def test_p_is_at_most_alpha_exactly_when_the_interval_excludes_zero(
    se: float, planned: float, z: float, alpha: float
) -> None:
    half = half_width(se, information_of(se), planned, alpha)
    p = p_always_valid(z * se, se, planned, alpha)
    if abs(abs(z * se) - half) > 1e-9 * half:
        assert (p <= alpha) == (abs(z * se) > half)
    assert 0.0 <= p <= 1.0


@given(st.floats(0.1, 100), st.floats(0.001, 0.1))
def test_one_sided_bound_covers_that_of_the_half_normal_mixture(length: float, alpha: float) -> None:
    scaled = planned_length(2 * alpha)
    half = half_width_one_sided(1.0, length / scaled, 1.0, alpha)

    def log_mixture(z: float) -> float:
        total = 1 + length
        return (
            np.log(2) - 0.5 * np.log(total) + z * z * length / (2 * total)
            + stats.norm.logcdf(z * np.sqrt(length / total))
        )  # fmt: skip

    exact = optimize.brentq(lambda z: log_mixture(z) + np.log(alpha), -5, 500)
    assert exact <= half <= 1.12 * exact
    assert half < half_width(1.0, length / scaled, 1.0, alpha) * 1.2


def test_nothing_is_known_without_spread_or_plan() -> None:
    assert half_width(np.inf, information_of(np.inf), 3.0, 0.05) == np.inf
    assert half_width(1.0, 1.0, 0.0, 0.05) == np.inf
    assert half_width_one_sided(1.0, 1.0, 0.0, 0.05) == np.inf
    assert p_always_valid(0.0, np.inf, 3.0, 0.05) == 1.0
    assert p_always_valid(5.0, 1.0, 0.0, 0.05) == 1.0
    assert planned_information(np.inf, 100, 1000) == 0.0


def test_planned_information_grows_with_the_requests() -> None:
    assert planned_information(0.5, 100, 1000) == pytest.approx(40.0)


def test_started_needs_requests_and_units_of_both() -> None:
    requests, units = [[100, 100], [99, 100], [100, 100]], [[50, 50], [50, 50], [50, 49]]
    assert started(requests, units).tolist() == [True, False, False]
    assert started([20, 20], [50, 50], min_sample=20)


def test_interval_excludes_what_is_outside_its_bounds() -> None:
    assert Interval(lower=1.0, upper=2.0).excludes(0.5)
    assert Interval(lower=None, upper=2.0).excludes(2.5)
    assert not Interval(lower=None, upper=None).excludes(0.0)
