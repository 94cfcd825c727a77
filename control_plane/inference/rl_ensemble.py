"""`rl_ensemble`: market features to an action, from a mixture of agents whose weights come with the request."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from control_plane.errors import FieldError, InvalidInput
from control_plane.inference import uncertainty
from control_plane.inference.plans import Interpretation, Plan, TensorNames, contiguous, unused_options
from control_plane.inference.requests import AnyPredictRequest
from control_plane.inference.shapes import feature_input
from control_plane.inference.tensors import Array
from control_plane.models.card import ModelCard

_OUTPUTS = ("action_probs", "value", "agent_action_probs", "agent_values")


class RLEnsembleModel:
    """One version of the ensemble."""

    def __init__(self, card: ModelCard) -> None:
        self._names = TensorNames.of(card)
        shapes = {tensor.name: tensor.shape for tensor in card.inputs}
        observation = shapes.get("x") or card.inputs[0].shape
        self._features = observation[0] if observation[0] > 0 else None
        self._agents = _agent_names(card, shapes.get("weights"))
        self._outputs = self._names.triton_outputs(_OUTPUTS)

    def plan(self, request: AnyPredictRequest, *, max_rows: int) -> Plan:
        """See `Kind.plan`. Without `weights` all agents weigh the same."""
        array = feature_input(request.data, features=self._features, max_rows=max_rows)
        weights = self._weights(request.weights)
        inputs = {self._names.inputs["x"]: array}
        if (name := self._names.inputs.get("weights")) is not None:
            inputs[name] = np.tile(weights, (len(array), 1))
        return Plan(
            inputs=inputs,
            outputs=self._outputs,
            rows=len(array),
            lane=self._outputs,
            warnings=unused_options(request, ("return_attention",)),
        )

    def interpret(self, request: AnyPredictRequest, outputs: Mapping[str, Array]) -> Interpretation:
        """See `Kind.interpret`."""
        probs, values, agent_probs, agent_values = (outputs[self._names.outputs[name]] for name in _OUTPUTS)
        weights = self._weights(request.weights)
        actions, propensity = _select(probs, request)
        agreement = uncertainty.agreement_with_top(agent_probs, probs, np.tile(weights, (len(probs), 1)))
        return Interpretation(
            predictions={
                "action_probs": probs,
                "action": actions,
                "values": values,
                "agents": {
                    name: {
                        "action_probs": contiguous(agent_probs[:, index]),
                        "value": contiguous(agent_values[:, index]),
                    }
                    for index, name in enumerate(self._agents)
                },
                "propensity": propensity,
            },
            uncertainty={"ensemble_weights": weights, "agreement": agreement}
            if request.return_uncertainty
            else None,
            confidence_scores=(1 - uncertainty.normalised_entropy(probs)) * agreement,
        )

    def _weights(self, given: list[float] | dict[str, float] | None) -> Array:
        """Normalised weights, float32 [agents]."""
        count = len(self._agents)
        if given is None:
            return np.full(count, 1 / count, dtype=np.float32)
        if isinstance(given, dict):
            if set(given) != set(self._agents):
                raise self._wrong_weights(f"weights for {', '.join(name[:80] for name in list(given)[:20])}")
            given = [given[name] for name in self._agents]
        if len(given) != count:
            raise self._wrong_weights(f"{len(given)} weights")
        largest = max(given)
        if largest <= 0:
            raise self._wrong_weights("weights that are all 0")
        scaled = np.array(given, dtype=np.float64) / largest
        return np.asarray(scaled / scaled.sum(), dtype=np.float32)

    def _wrong_weights(self, got: str) -> InvalidInput:
        return InvalidInput(
            "weights don't fit the model's agents.",
            expected=f"one number of at least 0, not all 0, for each of {', '.join(self._agents)}",
            got=got,
            remedy="Send them in that order, or as an object by these names, or leave weights out.",
            errors=[FieldError(path="weights", message=f"expected {len(self._agents)} weights, got {got}")],
        )


def _select(probs: Array, request: AnyPredictRequest) -> tuple[Array, Array]:
    """The action of each row, int64 [B], and the probability with which it was chosen, float64 [B]."""
    if request.action_selection == "greedy":
        return probs.argmax(axis=1), np.ones(len(probs))
    generator = np.random.default_rng(request.seed)
    shares = probs.astype(np.float64)
    shares /= shares.sum(axis=1, keepdims=True)
    edges = np.cumsum(shares, axis=1)
    edges[:, -1] = 1.0
    actions = (generator.random(len(probs))[:, None] >= edges).sum(axis=1)
    return actions, np.take_along_axis(shares, actions[:, None], axis=1)[:, 0]


def _agent_names(card: ModelCard, weights_shape: tuple[int, ...] | None) -> tuple[str, ...]:
    listed: list[Any] = card.config.get("agents") or []
    names = tuple(str(agent["name"]) if isinstance(agent, dict) else str(agent) for agent in listed)
    if names:
        return names
    count = next(
        (tensor.shape[0] for tensor in card.outputs if tensor.name == "agent_values" and tensor.shape[0] > 0),
        weights_shape[0] if weights_shape and weights_shape[0] > 0 else 1,
    )
    return tuple(f"agent_{index}" for index in range(count))
