"""`cnn_lstm_hybrid`: a window of the market to class probabilities and a forecast, with their uncertainty."""

from collections.abc import Mapping
from typing import Any

from control_plane.inference import uncertainty
from control_plane.inference.plans import (
    Interpretation,
    Plan,
    TensorNames,
    non_finite_warnings,
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

    def interpret(self, request: AnyPredictRequest, outputs: Mapping[str, Array]) -> Interpretation:
        """See `Kind.interpret`."""
        named = {name: outputs[triton] for name, triton in self._names.outputs.items() if triton in outputs}
        base_probs, base_regression = named["classification_probs"], named["regression_pred"]
        probs, regression = base_probs, base_regression
        is_ensemble = request.use_ensemble and self._has_ensemble
        if is_ensemble:
            weights = named["ensemble_weights"]
            probs = uncertainty.combine_member_probs(named["member_probs"], weights)
            regression = uncertainty.combine_member_regression(named["member_regression"], weights)
        predictions: dict[str, Any] = {
            "classification_probs": probs,
            "classification_pred": probs.argmax(axis=1),
            "regression_pred": regression,
        }
        if is_ensemble:
            predictions["base_classification_probs"] = base_probs
            predictions["base_regression_pred"] = base_regression
            predictions["ensemble_classification_probs"] = probs
            predictions["ensemble_regression_pred"] = regression
        if request.return_attention and self._has_attention:
            predictions["attention_weights"] = named["attention_weights"]
        return Interpretation(
            predictions=predictions,
            uncertainty=self._uncertainty(request, named, regression, is_ensemble=is_ensemble),
            confidence_scores=probs.max(axis=1),
            warnings=non_finite_warnings({"classification_probs": probs, "regression_pred": regression}),
        )

    def _uncertainty(
        self, request: AnyPredictRequest, named: Mapping[str, Array], regression: Array, *, is_ensemble: bool
    ) -> dict[str, Any] | None:
        if not request.return_uncertainty or not self._has_monte_carlo:
            return None
        samples = named["mc_regression"]
        mean = uncertainty.mean_of_samples(samples)
        interval = uncertainty.quantile_interval(samples, regression, request.interval, mean)
        entropies = uncertainty.split_entropy(named["mc_probs"])
        return {
            "regression_uncertainty": uncertainty.standard_deviation(samples, mean),
            "ensemble_weights": named["ensemble_weights"][0] if is_ensemble else None,
            "interval": {
                "level": request.interval,
                "lower": interval.lower,
                "upper": interval.upper,
                "method": request.interval_method,
                "calibrated": False,
            },
            "entropy": entropies.entropy,
            "aleatoric": entropies.aleatoric,
            "epistemic": entropies.epistemic,
        }

    def _warnings(self, request: AnyPredictRequest) -> tuple[str, ...]:
        warnings = unused_options(request, ("weights", "action_selection", "seed"))
        if request.use_ensemble and not self._has_ensemble:
            warnings += ("This version has no ensemble: the base heads answer.",)
        if request.return_uncertainty and not self._has_monte_carlo:
            warnings += ("This version gives no Monte Carlo samples: uncertainty is null.",)
        if request.return_attention and not self._has_attention:
            warnings += ("This version gives no attention weights.",)
        return warnings
