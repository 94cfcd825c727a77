"""`cnn_lstm_hybrid`: a window of the market to class probabilities and a forecast, with their uncertainty."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from control_plane.inference import uncertainty
from control_plane.inference.merged import evaluate_shared
from control_plane.inference.plans import (
    Interpretation,
    Plan,
    TensorNames,
    non_finite_warnings,
    null_where_unknown,
    unused_options,
)
from control_plane.inference.requests import AnyPredictRequest
from control_plane.inference.shapes import window_input
from control_plane.inference.tensors import Array
from control_plane.models.card import ModelCard

_BASE = ("classification_probs", "regression_pred")
_ENSEMBLE = ("member_probs", "member_regression", "ensemble_weights")
_MONTE_CARLO = ("mc_regression", "mc_probs")
_ATTENTION = ("attention_weights",)


class HybridModel:
    """One version of the hybrid."""

    def __init__(self, card: ModelCard) -> None:
        self._names = TensorNames.of(card)
        self._input = card.inputs[0].triton_name
        length = card.config.get("sequence_length")
        self._channels = (
            card.inputs[0].shape[0] if card.inputs[0].shape[0] > 0 else int(card.config["input_dim"])
        )
        self._sequence_length = int(length) if length is not None else None
        outputs = card.output_names
        self._has_ensemble = outputs.issuperset(_ENSEMBLE)
        self._has_monte_carlo = outputs.issuperset(_MONTE_CARLO)
        self._has_attention = outputs.issuperset(_ATTENTION)

    def plan(self, request: AnyPredictRequest, *, max_rows: int) -> Plan:
        """See `Kind.plan`."""
        window = window_input(
            request.data, channels=self._channels, sequence_length=self._sequence_length, max_rows=max_rows
        )
        wanted: tuple[str, ...] = _BASE
        if request.use_ensemble and self._has_ensemble:
            wanted += _ENSEMBLE
        if request.return_uncertainty and self._has_monte_carlo:
            wanted += _MONTE_CARLO
        if request.return_attention and self._has_attention:
            wanted += _ATTENTION
        outputs = self._names.triton_outputs(wanted)
        return Plan(
            inputs={self._input: window.array},
            outputs=outputs,
            rows=len(window.array),
            lane=(window.array.shape[2], outputs),
            warnings=window.warnings + self._warnings(request),
        )

    def interpret(
        self,
        request: AnyPredictRequest,
        plan: Plan,  # noqa: ARG002  the tensors say all
        outputs: Mapping[str, Array],
    ) -> Interpretation:
        """See `Kind.interpret`. Requests of one call that agree in their options are evaluated together."""
        is_ensemble = request.use_ensemble and self._has_ensemble
        has_uncertainty = request.return_uncertainty and self._has_monte_carlo
        level = request.interval if has_uncertainty else None
        forecast, rows = evaluate_shared(
            outputs,
            (is_ensemble, level),
            lambda tensors: self._evaluate(tensors, is_ensemble=is_ensemble, level=level),
        )
        probs, regression = forecast.probs[rows], forecast.regression[rows]
        predictions: dict[str, Any] = {
            "classification_probs": probs,
            "classification_pred": forecast.classes[rows]
            if forecast.is_finite
            else null_where_unknown(forecast.classes[rows], probs),
            "regression_pred": regression,
        }
        if is_ensemble:
            predictions["base_classification_probs"] = forecast.base_probs[rows]
            predictions["base_regression_pred"] = forecast.base_regression[rows]
            predictions["ensemble_classification_probs"] = probs
            predictions["ensemble_regression_pred"] = regression
        if request.return_attention and self._has_attention:
            predictions["attention_weights"] = outputs[self._names.outputs["attention_weights"]]
        return Interpretation(
            predictions=predictions,
            uncertainty=_uncertainty(request, forecast.spread, rows) if forecast.spread else None,
            confidence_scores=forecast.confidence[rows],
            warnings=()
            if forecast.is_finite
            else non_finite_warnings({"classification_probs": probs, "regression_pred": regression}),
        )

    def _evaluate(
        self, outputs: Mapping[str, Array], *, is_ensemble: bool, level: float | None
    ) -> "_Forecast":
        named = {name: outputs[triton] for name, triton in self._names.outputs.items() if triton in outputs}
        probs, regression = named["classification_probs"], named["regression_pred"]
        if is_ensemble:
            weights = named["ensemble_weights"]
            probs = uncertainty.combine_member_probs(named["member_probs"], weights)
            regression = uncertainty.combine_member_regression(named["member_regression"], weights)
        spread = None
        if level is not None:
            samples = named["mc_regression"]
            mean = uncertainty.mean_of_samples(samples)
            spread = _Spread(
                deviation=uncertainty.standard_deviation(samples, mean),
                interval=uncertainty.quantile_interval(samples, regression, level, mean),
                entropies=uncertainty.split_entropy(named["mc_probs"]),
                weights=named["ensemble_weights"][0] if is_ensemble else None,
            )
        return _Forecast(
            probs=probs,
            regression=regression,
            base_probs=named["classification_probs"],
            base_regression=named["regression_pred"],
            classes=probs.argmax(axis=1),
            confidence=probs.max(axis=1),
            is_finite=bool(np.isfinite(probs).all() and np.isfinite(regression).all()),
            spread=spread,
        )

    def _warnings(self, request: AnyPredictRequest) -> tuple[str, ...]:
        warnings = unused_options(request, ("weights", "action_selection", "seed"))
        if request.use_ensemble and not self._has_ensemble:
            warnings += ("This version has no ensemble: the base heads answer.",)
        if request.return_uncertainty and not self._has_monte_carlo:
            warnings += ("This version gives no Monte Carlo samples: uncertainty is null.",)
        if request.return_attention and not self._has_attention:
            warnings += ("This version gives no attention weights.",)
        return warnings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spread:
    """The uncertainty of all rows of a call. `weights` are the graph's, the same for all rows."""

    deviation: Array
    interval: uncertainty.Interval
    entropies: uncertainty.EntropySplit
    weights: Array | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Forecast:
    """What all rows of a call say; each array's first axis is the rows."""

    probs: Array
    regression: Array
    base_probs: Array
    base_regression: Array
    classes: Array
    confidence: Array
    is_finite: bool
    spread: _Spread | None


def _uncertainty(request: AnyPredictRequest, spread: _Spread, rows: slice) -> dict[str, Any]:
    return {
        "regression_uncertainty": spread.deviation[rows],
        "ensemble_weights": spread.weights,
        "interval": {
            "level": request.interval,
            "lower": spread.interval.lower[rows],
            "upper": spread.interval.upper[rows],
            "method": request.interval_method,
            "calibrated": False,
        },
        "entropy": spread.entropies.entropy[rows],
        "aleatoric": spread.entropies.aleatoric[rows],
        "epistemic": spread.entropies.epistemic[rows],
    }
