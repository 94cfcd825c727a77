"""The ratio check against scipy's Dirichlet-multinomial, and how often it alarms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from control_plane.experiments.ratio_mismatch import ALARM, PRIOR, check, chi_square_p, log_bayes_factor


@given(st.lists(st.tuples(st.integers(0, 2000), st.floats(0.05, 1)), min_size=2, max_size=6))
def test_bayes_factor_equals_scipys_probabilities(rows: list[tuple[int, float]]) -> None:
    counts, raw = np.array([n for n, _ in rows]), np.array([share for _, share in rows])
    shares = raw / raw.sum()
    total = counts.sum()
    expected = stats.dirichlet_multinomial(PRIOR * shares, total).logpmf(counts) - stats.multinomial(
        total, shares
    ).logpmf(counts)
    assert log_bayes_factor(counts, shares) == pytest.approx(expected, abs=1e-6)
    if total:
        assert chi_square_p(counts, shares) == pytest.approx(
            stats.chisquare(counts, shares * total).pvalue, abs=1e-9
        )


def alarmed(draw: np.random.Generator, runs: int, true_share: float) -> float:
    """Share of runs that ever alarm, looked at every 100 of 20,000 units."""
    seen = np.cumsum(draw.binomial(100, true_share, (runs, 200)), axis=1)
    counts = np.stack([seen, 100 * np.arange(1, 201) - seen], axis=-1)
    return float(np.mean(log_bayes_factor(counts, [0.5, 0.5]).max(axis=1) >= np.log(ALARM)))


def test_check_of_a_sound_split_hardly_ever_alarms() -> None:
    assert alarmed(np.random.default_rng(1), 5000, 0.5) <= 0.01


def test_check_finds_a_split_of_52_to_48() -> None:
    assert alarmed(np.random.default_rng(2), 1000, 0.52) >= 0.95


def test_unit_in_a_variant_without_share_is_an_alarm() -> None:
    (found,) = check([[10, 1]], [[1.0, 0.0]])
    assert found.alarm
    assert found.p_chi_square == 0.0
    assert np.isfinite(found.bayes_factor)
    (sound,) = check([[10, 0]], [[1.0, 0.0]])
    assert (sound.alarm, sound.bayes_factor) == (False, pytest.approx(1.0))


def test_check_without_units_says_nothing() -> None:
    (found,) = check([[0, 0]], [[0.5, 0.5]])
    assert (found.bayes_factor, found.p_any_time, found.p_chi_square, found.alarm) == (1.0, 1.0, None, False)


def test_epochs_share_alpha() -> None:
    counts, shares = [[600, 400], [500, 500]], [[0.5, 0.5], [0.5, 0.5]]
    assert [one.threshold for one in check(counts, shares, planned_epochs=4)] == [400.0, 400.0]
    assert [one.threshold for one in check(counts, shares, planned_epochs=None)] == [200.0, 600.0]
    assert [one.alarm for one in check(counts, shares, planned_epochs=2)] == [True, False]
