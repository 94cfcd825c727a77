"""From the hybrid's raw outputs to the answer of POST /api/v1/predict: what every peer does around its model.

Written apart from the control plane, which the peers' environments lack: numpy and the standard library only. All rows
of a merged call are worked out together and then cut into answers, so that a peer's batching pays here too.
"""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

MODEL_TYPE, MODEL_VERSION = "cnn_lstm_hybrid", "v1.0"
LEVEL = 0.9
Floats = npt.NDArray[np.float32]
Fields = dict[str, Any]
"""Of an answer: arrays with a row for each sample, or objects of such."""

_TINY = np.float32(np.finfo(np.float32).tiny)


def window(data: Any) -> Floats:
    """`data` of a request as float32 [batch, channels, time].

    Raises:
        ValueError: it has another depth, is ragged, or holds something that is no finite number.
    """
    array = np.asarray(data, dtype=np.float32)
    if array.ndim != 3 or not np.isfinite(array).all():
        raise ValueError("data must be finite numbers, [batch][channels][time]")
    return array


def fields_of(outputs: Mapping[str, Floats]) -> Fields:
    """Predictions, uncertainty and confidence of all rows of one call.

    Args:
        outputs: The graph's outputs by name: classification_probs [B, K], regression_pred [B, R], member_probs
            [B, M, K], member_regression [B, M, R], ensemble_weights [B, M], mc_regression [B, T, R] and mc_probs
            [B, T, K]; float32.
    """
    weights, samples, mc_probs = outputs["ensemble_weights"], outputs["mc_regression"], outputs["mc_probs"]
    drawn = np.float32(samples.shape[1])
    logits = np.einsum("bm,bmk->bk", weights, np.log(np.maximum(outputs["member_probs"], _TINY)))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs = powers / powers.sum(axis=1, keepdims=True)
    regression = np.einsum("bm,bmr->br", weights, outputs["member_regression"])
    mean = samples.sum(axis=1) / drawn
    centred = samples - mean[:, None]
    lower, upper = _interval(samples, regression - mean)
    mean_probs = mc_probs.sum(axis=1) / drawn
    entropy = -np.einsum("bk,bk->b", mean_probs, np.log(np.maximum(mean_probs, _TINY)))
    expected = -np.einsum("btk,btk->b", mc_probs, np.log(np.maximum(mc_probs, _TINY))) / drawn
    aleatoric = np.minimum(expected, entropy)
    return {
        "predictions": {
            "classification_probs": probs,
            "classification_pred": probs.argmax(axis=1),
            "regression_pred": regression,
            "base_classification_probs": outputs["classification_probs"],
            "base_regression_pred": outputs["regression_pred"],
            "ensemble_classification_probs": probs,
            "ensemble_regression_pred": regression,
        },
        "uncertainty": {
            "regression_uncertainty": np.sqrt(
                np.einsum("btr,btr->br", centred, centred) / (drawn - np.float32(1))
            ),
            "ensemble_weights": weights,
            "interval": {"lower": lower, "upper": upper},
            "entropy": entropy,
            "aleatoric": aleatoric,
            "epistemic": entropy - aleatoric,
        },
        "confidence_scores": probs.max(axis=1),
    }


def _interval(samples: Floats, shift: Floats) -> tuple[Floats, Floats]:
    """Quantiles of the samples, linearly interpolated, moved by `shift`; float32 [B, R] each."""
    ordered = np.sort(samples, axis=1)
    last = ordered.shape[1] - 1
    bounds = []
    for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        below = int(share * last)
        low, high = ordered[:, below], ordered[:, min(below + 1, last)]
        bounds.append(low + np.float32(share * last - below) * (high - low) + shift)
    return bounds[0], bounds[1]


def rows_of(fields: Fields, sizes: Sequence[int]) -> Iterator[Fields]:
    """Cuts a merged call's fields into each request's; `sizes` are their numbers of rows."""
    start = 0
    for size in sizes:
        yield _cut(fields, slice(start, start + size))
        start += size


def _cut(fields: Fields, rows: slice) -> Fields:
    return {
        name: _cut(value, rows) if isinstance(value, dict) else value[rows] for name, value in fields.items()
    }


def lists(value: Any) -> Any:
    """Plain lists and numbers instead of arrays, for writers of JSON that know no numpy."""
    if isinstance(value, dict):
        return {name: lists(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def answer(fields: Fields, began: float) -> dict[str, Any]:
    """The whole answer.

    Args:
        fields: Those of this request's rows, as arrays or as lists.
        began: `time.perf_counter()` when the request came.
    """
    uncertainty = fields["uncertainty"]
    return {
        "request_id": str(uuid.uuid4()),
        "model_type": MODEL_TYPE,
        "model_version": MODEL_VERSION,
        "predictions": fields["predictions"],
        "uncertainty": {
            **uncertainty,
            "ensemble_weights": uncertainty["ensemble_weights"][0],
            "interval": {"level": LEVEL, **uncertainty["interval"], "method": "mc", "calibrated": False},
        },
        "confidence_scores": fields["confidence_scores"],
        "processing_time_ms": round((time.perf_counter() - began) * 1000, 3),
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "ab_test_group": None,
        "cached": False,
        "degraded": None,
        "warnings": [],
    }
