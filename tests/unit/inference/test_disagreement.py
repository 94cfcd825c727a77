"""How far two answers lie apart."""

import numpy as np
import pytest

from control_plane.inference.disagreement import Disagreement, disagreement


def test_hybrid_answers_are_compared_by_class_and_forecast() -> None:
    ours = {
        "classification_probs": np.array([[0.6, 0.4], [0.5, 0.5]], np.float32),
        "regression_pred": np.array([[1.0], [2.0]], np.float32),
    }
    theirs = {
        "classification_probs": np.array([[0.3, 0.7], [0.5, 0.5]], np.float32),
        "regression_pred": np.array([[1.5], [2.5]], np.float32),
    }
    found = disagreement(ours, theirs)
    assert found.class_flips == pytest.approx(0.5)
    assert found.total_variation == pytest.approx(0.15)
    assert found.regression_difference == pytest.approx(0.5)
    assert disagreement(ours, ours) == Disagreement(
        class_flips=0.0, total_variation=0.0, regression_difference=0.0
    )


def test_what_cannot_be_compared_is_left_out() -> None:
    nothing = Disagreement(class_flips=None, total_variation=None, regression_difference=None)
    assert disagreement({"y": np.zeros((2, 3))}, {"y": np.zeros((2, 4))}) == nothing
    assert disagreement({"y": np.zeros(2)}, {"z": np.zeros(2)}) == nothing
    assert disagreement({"y": np.array([np.nan])}, {"y": np.zeros(1)}) == nothing
    assert disagreement({"y": np.array([[1]])}, {"y": np.array([[3]])}).regression_difference == 2.0
