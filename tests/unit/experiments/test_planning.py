"""Sample sizes against statsmodels, and against simulated experiments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import samplesize_proportions_2indep_onetail

from control_plane.experiments.planning import plan_mean, plan_rate
from control_plane.experiments.sequential import half_width


@given(st.floats(0.05, 1.0), st.floats(0.1, 0.9), st.floats(0.001, 0.1), st.floats(0.7, 0.99))
def test_fixed_plan_equals_statsmodels(effect: float, share: float, alpha: float, power: float) -> None:
    found = plan_mean(sd=2.0, effect=2.0 * effect, shares=(1 - share, share), alpha=alpha, power=power)
    control = NormalIndPower().solve_power(effect, alpha=alpha, power=power, ratio=share / (1 - share))
    assert found.fixed.requests == pytest.approx(control / (1 - share), rel=2e-3, abs=1.01)


def test_rate_plan_is_close_to_statsmodels_score_test() -> None:
    found = plan_rate(base=0.02, effect=0.01, shares=(0.5, 0.5))
    expected = samplesize_proportions_2indep_onetail(0.01, 0.02, 0.8, alpha=0.05)
    assert found.fixed.per_variant[0] == pytest.approx(expected, rel=0.02)


def test_plan_has_the_power_that_it_promises() -> None:
    draw = np.random.default_rng(1)
    found = plan_mean(sd=1.0, effect=0.2, shares=(0.5, 0.5))
    looks = np.arange(100, found.always_valid.requests + 1, 20)
    steps = np.diff(np.concatenate([[0], looks])) / 4.0
    information = np.cumsum(steps)
    path = np.cumsum(draw.normal(0.2 * steps, np.sqrt(steps), (4000, looks.size)), axis=1) / information
    half = half_width(1 / np.sqrt(information), information, information[-1], 0.05)
    called = path > half
    assert 0.8 <= called.any(axis=1).mean() <= 0.92
    before = looks <= found.typical.requests
    assert called[:, before].any(axis=1).mean() >= 0.5


def test_always_valid_verdict_finds_by_twice_the_fixed_plan_what_that_finds() -> None:
    draw = np.random.default_rng(2)
    planned = (1.959964 + 0.841621) ** 2  # information that gives an effect of 1 a power of 80 %
    steps = np.full(200, 2 * planned / 200)
    information = np.cumsum(steps)
    path = np.cumsum(draw.normal(steps, np.sqrt(steps), (4000, 200)), axis=1) / information
    called = path > half_width(1 / np.sqrt(information), information, planned, 0.05)
    assert called.any(axis=1).mean() >= 0.8


def test_plan_orders_methods_and_tells_durations() -> None:
    found = plan_rate(
        base=0.1, effect=-0.02, shares=(0.7, 0.2, 0.1), requests_per_hour=1000.0, design_effect=2.0
    )
    assert found.fixed.requests < found.always_valid.requests
    assert found.typical.requests < found.always_valid.requests
    assert found.fixed.duration_s == pytest.approx(found.fixed.requests * 3.6)
    assert sum(found.fixed.per_variant) == pytest.approx(found.fixed.requests, abs=3)
    single = plan_rate(base=0.1, effect=-0.02, shares=(0.7, 0.2, 0.1))
    assert found.fixed.requests == pytest.approx(2 * single.fixed.requests, abs=2)
    assert single.fixed.duration_s is None


@pytest.mark.parametrize(
    "bad",
    [
        {"effect": 0.0},
        {"effect": 0.95},
        {"alpha": 0.0},
        {"power": 0.01},
        {"shares": (1.0, 0.0)},
        {"design_effect": 0.5},
        {"requests_per_hour": 0.0},
    ],
)
def test_plan_of_nonsense_fails(bad: dict) -> None:
    with pytest.raises(ValueError, match=r"must|rates|at least"):
        plan_rate(**{"base": 0.1, "effect": 0.05, "shares": (0.5, 0.5), **bad})
