"""Estimates against statsmodels' cluster-robust regression, repeated sampling, and identities."""

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st

from control_plane.experiments.estimates import adjusted, design_effect, effective_buckets, estimate, level
from control_plane.experiments.moments import BUCKETS, Floats, N, add, empty


def moments(buckets: Floats, y: Floats, x: Floats | None = None) -> Floats:
    """float64 [1, 256, moments]: one epoch."""
    found = empty()
    add(found, buckets, y, x)
    return found[np.newaxis]


def test_standard_error_equals_statsmodels_clustered_by_bucket() -> None:
    draw = np.random.default_rng(2)
    buckets = np.repeat(np.arange(BUCKETS), 6)
    arms = [draw.normal(1.0, 2.0, buckets.size) + np.repeat(draw.normal(0, 1, BUCKETS), 6) for _ in range(2)]
    found = estimate(*(moments(buckets, y) for y in arms))
    design = np.column_stack([np.ones(2 * buckets.size), np.repeat([1.0, 0.0], buckets.size)])
    groups = np.concatenate([buckets, buckets + BUCKETS])
    fit = sm.OLS(np.concatenate(arms), design).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    assert found.difference == pytest.approx(fit.params[1])
    assert found.standard_error == pytest.approx(fit.bse[1] * np.sqrt(BUCKETS / (BUCKETS - 1)))
    assert found.treatment - found.control == pytest.approx(found.difference)
    assert found.degrees == pytest.approx(2 * (BUCKETS - 1), rel=0.02)


def test_standard_error_of_one_unit_a_bucket_is_welchs() -> None:
    draw = np.random.default_rng(3)
    arms = [draw.normal(0, 1, size) for size in (40, 90)]
    found = estimate(*(moments(np.arange(y.size), y) for y in arms))
    assert found.standard_error == pytest.approx(np.sqrt(sum(np.var(y, ddof=1) / y.size for y in arms)))


def test_standard_error_of_accounts_is_right_where_the_naive_one_is_not() -> None:
    draw = np.random.default_rng(4)
    experiments, accounts, each = 400, 200, 10
    effects = np.repeat(draw.normal(0, 0.5, (experiments, accounts)), each, axis=1)
    y = effects + draw.normal(0, 1, effects.shape)
    buckets = np.repeat(draw.integers(0, BUCKETS, (experiments, accounts)), each, axis=1)
    treated = np.repeat(draw.random((experiments, accounts)) < 0.5, each, axis=1)
    arms = [empty(experiments, 1) for _ in range(2)]
    add(arms[0], buckets, y, where=treated)
    add(arms[1], buckets, y, where=~treated)
    found = estimate(*arms)
    z = found.difference / found.standard_error
    assert np.std(z) == pytest.approx(1.0, abs=0.12)
    naive = np.sqrt(2 * 1.25 / (accounts * each / 2))
    assert np.std(found.difference / naive) > 1.5


def test_epochs_keep_a_drift_of_the_level_out_of_the_difference() -> None:
    draw = np.random.default_rng(5)
    arms = [empty(3), empty(3)]
    for epoch, share in enumerate((0.01, 0.1, 0.5)):
        treated = draw.random(20_000) < share
        y = 10.0 * epoch + draw.normal(0, 1, treated.size)
        for arm, mask in zip(arms, (treated, ~treated), strict=True):
            add(arm[epoch], draw.integers(0, BUCKETS, mask.sum()), y[mask])
    stratified = estimate(*arms)
    pooled = estimate(*(arm.sum(axis=0, keepdims=True) for arm in arms))
    assert abs(stratified.difference) < 4 * stratified.standard_error
    assert pooled.difference > 1.0


def test_epochs_of_the_same_accounts_are_not_independent_evidence() -> None:
    draw = np.random.default_rng(6)
    effects = draw.normal(0, 1, (2, 300))
    one = [moments(np.arange(300) % BUCKETS, effect) for effect in effects]
    many = [np.concatenate([arm] * 4) for arm in one]
    assert estimate(*many).standard_error == pytest.approx(estimate(*one).standard_error)


def test_epoch_with_a_single_variant_or_request_changes_nothing() -> None:
    draw = np.random.default_rng(7)
    arms = [moments(draw.integers(0, BUCKETS, 500), draw.normal(0, 1, 500)) for _ in range(2)]
    alone = moments(np.zeros(1, dtype=np.int64), np.array([99.0]))
    more = [np.concatenate([arms[0], alone, empty(1)]), np.concatenate([arms[1], arms[1], arms[1]])]
    assert estimate(*more).difference == pytest.approx(estimate(*arms).difference)
    assert estimate(*more).standard_error == pytest.approx(estimate(*arms).standard_error)


@pytest.mark.parametrize("y", [np.zeros(50), np.full(50, 0.1)])
def test_estimate_without_any_spread_knows_nothing(y: Floats) -> None:
    arm = moments(np.arange(50), y)
    found = estimate(arm, arm)
    assert found.difference == 0.0
    assert found.standard_error == np.inf
    nothing = estimate(empty(1), empty(1))
    assert (nothing.difference, nothing.standard_error, nothing.treatment_buckets) == (0.0, np.inf, 0.0)
    assert nothing.degrees == 1.0


def test_binary_without_any_success_has_the_spread_of_one_more_of_each() -> None:
    arm = moments(np.arange(100), np.zeros(100))
    p = 1 / 102
    assert estimate(arm, arm, binary=True).standard_error == pytest.approx(np.sqrt(2 * p * (1 - p) / 100))


def test_binary_with_many_successes_is_the_plain_estimate() -> None:
    draw = np.random.default_rng(8)
    arms = [moments(draw.integers(0, BUCKETS, 20_000), (draw.random(20_000) < 0.3) * 1.0) for _ in range(2)]
    plain, smoothed = (estimate(*arms, binary=binary).standard_error for binary in (False, True))
    assert smoothed == pytest.approx(plain, rel=1e-3)


def test_paired_estimate_is_that_of_the_differences() -> None:
    draw = np.random.default_rng(9)
    common = draw.normal(0, 3, 256)
    a, b = common + draw.normal(0.2, 0.1, 256), common
    found = estimate(moments(np.arange(256), a), moments(np.arange(256), b), paired=True)
    assert found.standard_error == pytest.approx(np.std(a - b, ddof=1) / 16)
    assert estimate(moments(np.arange(256), a), moments(np.arange(256), b)).standard_error > 0.2


def test_ratio_is_the_contrast_with_a_multiple_of_the_control() -> None:
    draw = np.random.default_rng(10)
    a, b = (moments(np.arange(256), draw.normal(5, 1, 256)) for _ in range(2))
    found = estimate(a, b, ratio=1.5)
    assert found.difference == pytest.approx(found.treatment - 1.5 * found.control)
    assert found.standard_error == pytest.approx(np.hypot(found.treatment_error, 1.5 * found.control_error))
    assert found.relative == pytest.approx(found.treatment / found.control - 1)


def test_leading_axes_are_separate_experiments() -> None:
    draw = np.random.default_rng(11)
    arms = [
        np.stack([moments(draw.integers(0, 256, 400), draw.normal(0, 1, 400)) for _ in range(3)])
        for _ in range(2)
    ]
    together = estimate(*arms)
    for row in range(3):
        alone = estimate(arms[0][row], arms[1][row])
        assert together.difference[row] == pytest.approx(alone.difference)
        assert together.standard_error[row] == pytest.approx(alone.standard_error)


def test_covariate_that_foretells_takes_its_variance_away() -> None:
    draw = np.random.default_rng(12)
    arms, effects = [], []
    for shift in (0.3, 0.0):
        x = draw.normal(0, 1, 4000)
        y = shift + 2.0 * x + draw.normal(0, 1, 4000)
        arms.append(moments(draw.integers(0, 256, 4000), y, x))
        effects.append(y)
    raw, found = estimate(*arms), adjusted(*arms)
    assert found.theta == pytest.approx(2.0, abs=0.2)
    assert found.variance_reduction == pytest.approx(0.8, abs=0.04)
    assert found.estimate.standard_error < raw.standard_error / 2
    assert abs(found.estimate.difference - 0.3) < 4 * found.estimate.standard_error


def test_covariate_of_some_requests_leaves_the_others_as_they_are() -> None:
    draw = np.random.default_rng(13)
    experiments = []
    for _ in range(300):
        arms = []
        for _ in range(2):
            x = np.where(draw.random(600) < 0.5, draw.normal(3, 1, 600), np.nan)
            arms.append(
                moments(draw.integers(0, 256, 600), np.nan_to_num(x, nan=3.0) + draw.normal(0, 0.5, 600), x)
            )
        found = adjusted(*arms)
        experiments.append(
            (found.estimate.difference, found.estimate.standard_error, found.variance_reduction)
        )
    difference, error, reduction = np.array(experiments).T
    assert np.std(difference / error) == pytest.approx(1.0, abs=0.13)
    assert abs(np.mean(difference)) < 4 * np.std(difference) / np.sqrt(300)
    assert np.mean(reduction) == pytest.approx(0.5 / 0.75, abs=0.05)


def test_covariate_that_nobody_sends_changes_nothing() -> None:
    draw = np.random.default_rng(14)
    arms = [moments(draw.integers(0, 256, 400), draw.normal(0, 1, 400)) for _ in range(2)]
    found = adjusted(*arms)
    assert (found.theta, found.variance_reduction) == (0.0, 0.0)
    assert found.estimate.standard_error == estimate(*arms).standard_error
    assert adjusted(empty(1), empty(1)).variance_reduction == 0.0


def test_level_of_one_epoch_is_its_mean() -> None:
    draw = np.random.default_rng(15)
    y = draw.normal(3, 1, 100)
    found = level(moments(np.arange(100), y))
    assert found.difference == pytest.approx(y.mean())
    assert found.standard_error == pytest.approx(np.std(y, ddof=1) / 10)


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_adjusted_error_is_never_above_the_raw_one(seed: int, size: int) -> None:
    draw = np.random.default_rng(seed)
    arms = [
        moments(draw.integers(0, 256, size), draw.normal(0, 1, size), draw.normal(0, 1, size))
        for _ in range(2)
    ]
    raw, found = estimate(*arms), adjusted(*arms)
    assert found.estimate.standard_error <= raw.standard_error * (1 + 1e-9)
    assert effective_buckets(arms[0][..., N])[0] <= min(size, BUCKETS) + 1e-9


def test_design_effect_is_kishs() -> None:
    draw = np.random.default_rng(16)
    accounts, each = 1000, 20
    effects = np.repeat(draw.normal(0, 0.5, accounts), each)
    arm = moments(np.repeat(draw.integers(0, 256, accounts), each), effects + draw.normal(0, 1, effects.size))
    assert design_effect(arm) == pytest.approx(1 + (each - 1) * 0.2, rel=0.25)
    alone = moments(draw.integers(0, 256, 20_000), draw.normal(0, 1, 20_000))
    assert 1.0 <= design_effect(alone) < 1.25
    assert design_effect(np.concatenate([arm] * 3)) == pytest.approx(3 * design_effect(arm), rel=0.01)
    assert design_effect(empty(2)) == 1.0
    assert design_effect(moments(np.arange(9), np.ones(9))) == 1.0
