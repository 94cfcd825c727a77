"""How far two versions' answers to one request lie apart. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from control_plane.inference.tensors import Array

_PROBS = ("classification_probs", "action_probs")
_REGRESSION = ("regression_pred", "values")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """Means over the rows; None where the answers have nothing of the kind in common.

    Attributes:
        class_flips: Share of rows whose most probable classes differ.
        total_variation: ½ Σ |p - q| of the class probabilities.
        regression_difference: Mean absolute difference of the forecasts, state values or other outputs.
    """

    class_flips: float | None
    total_variation: float | None
    regression_difference: float | None


def disagreement(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Disagreement:
    """Compares two `predictions` of the same data."""
    pair = _first(_PROBS, ours, theirs)
    flips = variation = None
    if pair is not None:
        p, q = pair
        flips = float((p.argmax(axis=1) != q.argmax(axis=1)).mean())
        variation = float(np.abs(p - q).sum(axis=1).mean() / 2)
    numbers = _first(_REGRESSION, ours, theirs) or (None if pair is not None else _any(ours, theirs))
    difference = None if numbers is None else float(np.abs(numbers[0] - numbers[1]).mean())
    return Disagreement(
        class_flips=_finite(flips),
        total_variation=_finite(variation),
        regression_difference=_finite(difference),
    )


def _first(
    names: tuple[str, ...], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[Array, Array] | None:
    return next((pair for name in names if (pair := _pair(ours.get(name), theirs.get(name)))), None)


def _any(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[Array, Array] | None:
    return next((pair for name in ours if (pair := _pair(ours[name], theirs.get(name)))), None)


def _pair(ours: Any, theirs: Any) -> tuple[Array, Array] | None:
    if not (isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray)) or ours.shape != theirs.shape:
        return None
    if ours.dtype.kind not in "fiu" or theirs.dtype.kind not in "fiu":
        return None
    return ours.astype(np.float64), theirs.astype(np.float64)


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
