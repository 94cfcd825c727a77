"""The formulas against numpy's and scipy's own, and the identities that they must keep."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax
from scipy.stats import entropy

from control_plane.inference import uncertainty


def logits(rows: int, samples: int, classes: int) -> Any:
    return hnp.arrays(np.float32, (rows, samples, classes), elements=st.floats(-30, 30, width=32))


@given(logits(3, 7, 4))
def test_entropy_splits_into_its_parts(values: Any) -> None:
    probs = softmax(values, axis=2)
    split = uncertainty.split_entropy(probs)
    np.testing.assert_allclose(split.entropy, entropy(probs.mean(axis=1), axis=1), atol=1e-5)
    np.testing.assert_allclose(split.aleatoric, entropy(probs, axis=2).mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(split.entropy, split.aleatoric + split.epistemic, atol=1e-6)
    assert (split.epistemic >= 0).all()
    assert (split.entropy <= np.log(4) + 1e-5).all()


def test_entropy_of_agreeing_samples_is_all_aleatoric_and_of_certain_ones_all_epistemic() -> None:
    same = np.full((1, 10, 2), 0.5, dtype=np.float32)
    assert uncertainty.split_entropy(same).epistemic[0] == pytest.approx(0, abs=1e-6)
    apart = np.array([[[1, 0], [0, 1]]], dtype=np.float32)
    split = uncertainty.split_entropy(apart)
    assert split.aleatoric[0] == pytest.approx(0, abs=1e-6)
    assert split.epistemic[0] == pytest.approx(np.log(2))


SAMPLES = hnp.arrays(np.float32, (2, 9, 3), elements=st.floats(-1000, 1000, width=32))


@given(SAMPLES)
def test_standard_deviation_is_the_unbiased_one(samples: Any) -> None:
    np.testing.assert_allclose(
        uncertainty.standard_deviation(samples),
        samples.std(axis=1, ddof=1, dtype=np.float64),
        rtol=1e-3,
        atol=1e-3,
    )


def test_standard_deviation_of_one_sample_is_zero() -> None:
    assert uncertainty.standard_deviation(np.ones((2, 1, 3), dtype=np.float32)).tolist() == [[0.0] * 3] * 2


@given(SAMPLES, st.floats(0.01, 0.99), st.floats(-10, 10))
def test_interval_is_numpys_quantiles_moved_to_the_centre(samples: Any, level: float, offset: float) -> None:
    mean = samples.mean(axis=1)
    interval = uncertainty.quantile_interval(samples, mean + np.float32(offset), level)
    for bound, share in ((interval.lower, (1 - level) / 2), (interval.upper, (1 + level) / 2)):
        np.testing.assert_allclose(bound, np.quantile(samples, share, axis=1) + offset, rtol=1e-3, atol=2e-3)
    assert (interval.lower <= interval.upper).all()


@given(
    hnp.arrays(np.float32, (2, 5, 3), elements=st.floats(-15, 15, width=32)),
    hnp.arrays(np.float32, (5,), elements=st.floats(-3, 3, width=32)),
)
def test_combined_probabilities_are_the_softmax_of_the_mean_logits(values: Any, raw_weights: Any) -> None:
    weights = np.tile(softmax(raw_weights), (2, 1)).astype(np.float32)
    combined = uncertainty.combine_member_probs(softmax(values, axis=2), weights)
    np.testing.assert_allclose(combined, softmax(np.einsum("bm,bmk->bk", weights, values), axis=1), atol=1e-5)


def test_combined_probabilities_survive_members_that_exclude_each_other() -> None:
    members = np.array([[[1, 0], [0, 1]]], dtype=np.float32)
    combined = uncertainty.combine_member_probs(members, np.array([[0.5, 0.5]], dtype=np.float32))
    np.testing.assert_allclose(combined, [[0.5, 0.5]])


def test_combined_regression_is_the_weighted_mean() -> None:
    members = np.array([[[1.0], [3.0]]], dtype=np.float32)
    assert uncertainty.combine_member_regression(members, np.array([[0.25, 0.75]], dtype=np.float32)) == 2.5


def test_agreement_is_the_weight_of_those_who_agree() -> None:
    agents = np.array([[[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]], dtype=np.float32)
    mixture = np.array([[0.7, 0.3]], dtype=np.float32)
    weights = np.array([[0.5, 0.3, 0.2]], dtype=np.float32)
    assert uncertainty.agreement_with_top(agents, mixture, weights)[0] == pytest.approx(0.7)


def test_normalised_entropy_runs_from_certain_to_uniform() -> None:
    probs = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], dtype=np.float32)
    np.testing.assert_allclose(uncertainty.normalised_entropy(probs), [0, 1], atol=1e-6)
    assert uncertainty.normalised_entropy(np.ones((2, 1), dtype=np.float32)).tolist() == [0, 0]
