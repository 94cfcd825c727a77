"""`rl_ensemble`: market features to an action, from a mixture of agents whose weights come with the request."""

from collections.abc import Mapping

import numpy as np

from control_plane.errors import FieldError, InvalidInput
from control_plane.inference import uncertainty
from control_plane.inference.decisions import Decision, UniformWeights, WeightsSource, agent_names
from control_plane.inference.plans import (
    Interpretation,
    Plan,
    TensorNames,
    contiguous,
    non_finite_warnings,
    null_where_unknown,
    unused_options,
)
from control_plane.inference.requests import AnyPredictRequest
from control_plane.inference.shapes import feature_input
from control_plane.inference.tensors import Array
from control_plane.models.card import ModelCard

WEIGHTS_TOLERANCE = 1e-3
"""How far from 1 the sum of a caller's weights may be, as the shares of an experiment may."""
_OUTPUTS = ("action_probs", "value", "agent_action_probs", "agent_values")
_ACTIONS = "agent_actions"

_generator = np.random.default_rng()


class RLEnsembleModel:
    """One version of the ensemble.

    Args:
        card: Its card.
        weights: Which weights are in force where the request pins none.
    """

    def __init__(self, card: ModelCard, weights: WeightsSource | None = None) -> None:
        self._card = card
        self._source = weights or UniformWeights()
        self._names = TensorNames.of(card)
        shapes = {tensor.name: tensor.shape for tensor in card.inputs}
        observation = shapes.get("x") or card.inputs[0].shape
        self._features = observation[0] if observation[0] > 0 else None
        self._agents = agent_names(card)
        self._action_sizes = _action_sizes(card, self._agents)
        self._outputs = self._names.triton_outputs((*_OUTPUTS, _ACTIONS) if self._action_sizes else _OUTPUTS)

    def plan(self, request: AnyPredictRequest, *, max_rows: int) -> Plan:
        """See `Kind.plan`. Without `weights` those in force hold."""
        array = feature_input(request.data, features=self._features, max_rows=max_rows)
        warnings = unused_options(request, ("return_attention",))
        if request.weights is None:
            current = self._source.current(self._card)
            weights = current.weights
            warnings += current.warnings
        else:
            weights = self._pinned(request.weights)
        inputs = {self._names.inputs["x"]: array}
        if (name := self._names.inputs.get("weights")) is not None:
            inputs[name] = np.repeat(weights[None], len(array), axis=0)
        return Plan(
            inputs=inputs,
            outputs=self._outputs,
            rows=len(array),
            lane=self._outputs,
            warnings=warnings,
            weights=weights,
        )

    def interpret(
        self, request: AnyPredictRequest, plan: Plan, outputs: Mapping[str, Array]
    ) -> Interpretation:
        """See `Kind.interpret`."""
        probs, values, agent_probs, agent_values = (outputs[self._names.outputs[name]] for name in _OUTPUTS)
        weights = plan.weights
        assert weights is not None  # noqa: S101  `plan` sets them
        is_sampled = request.action_selection == "sample"
        actions, propensity = sample(probs, request.seed) if is_sampled else greedy(probs)
        agreement = uncertainty.agreement_with_top(
            agent_probs, probs, np.repeat(weights[None], len(probs), axis=0)
        )
        agreement[~np.isfinite(probs).all(axis=1)] = np.nan
        agents: dict[str, dict[str, Array]] = {
            name: {
                "action_probs": contiguous(agent_probs[:, index]),
                "value": contiguous(agent_values[:, index]),
            }
            for index, name in enumerate(self._agents)
        }
        if self._action_sizes:
            raw = outputs[self._names.outputs[_ACTIONS]]
            for index, (name, size) in enumerate(zip(self._agents, self._action_sizes, strict=True)):
                agents[name]["action"] = contiguous(raw[:, index, :size])
        return Interpretation(
            predictions={
                "action_probs": probs,
                "action": null_where_unknown(actions, probs),
                "values": values,
                "agents": agents,
                "propensity": propensity,
            },
            uncertainty={"ensemble_weights": weights, "agreement": agreement}
            if request.return_uncertainty
            else None,
            confidence_scores=(1 - uncertainty.normalised_entropy(probs)) * agreement,
            warnings=non_finite_warnings({"action_probs": probs, "values": values}),
            decision=Decision(
                agent_probs=agent_probs,
                weights=weights,
                actions=actions,
                propensity=propensity,
                is_sampled=is_sampled,
            ),
        )

    def _pinned(self, given: list[float] | dict[str, float]) -> Array:
        """The caller's weights, float32 [agents]; what the sum lacks of 1 by rounding is made up."""
        count = len(self._agents)
        if isinstance(given, dict):
            if set(given) != set(self._agents):
                raise self._wrong_weights(f"weights for {', '.join(name[:80] for name in list(given)[:20])}")
            given = [given[name] for name in self._agents]
        if len(given) != count:
            raise self._wrong_weights(f"{len(given)} weights")
        total = sum(given)
        if not abs(total - 1) <= WEIGHTS_TOLERANCE:
            raise self._wrong_weights(f"weights that sum to {total:.6g}")
        return np.asarray(np.array(given, dtype=np.float64) / total, dtype=np.float32)

    def _wrong_weights(self, got: str) -> InvalidInput:
        return InvalidInput(
            "weights don't fit the model's agents.",
            expected=f"one number of at least 0 for each of {', '.join(self._agents)}, with the sum 1",
            got=got,
            remedy="Send them in that order, or as an object by these names, or leave weights out.",
            errors=[FieldError(path="weights", message=f"expected {len(self._agents)} weights, got {got}")],
        )


def greedy(probs: Array) -> tuple[Array, Array]:
    """The most probable action of each row of [B, K], int64 [B], and its propensity, 1: nothing was left to chance.

    Of a row that isn't finite the action means nothing, and its propensity is NaN.
    """
    return probs.argmax(axis=1), np.where(np.isfinite(probs).all(axis=1), 1.0, np.nan)


def sample(probs: Array, seed: int | None) -> tuple[Array, Array]:
    """An action drawn for each row of [B, K], int64 [B], and the probability with which it was, float64 [B].

    Args:
        probs: Of each action; rows that don't quite sum to 1, as float32 leaves them, are made to. Of a row that isn't
            finite the action means nothing, and its propensity is NaN.
        seed: Draws the same for the same seed; from the process's own generator when None.
    """
    generator = _generator if seed is None else np.random.default_rng(seed)
    shares = probs.astype(np.float64)
    shares[~np.isfinite(shares).all(axis=1)] = np.nan
    shares /= shares.sum(axis=1, keepdims=True)
    edges = shares.cumsum(axis=1)
    edges[:, -1] = 1.0
    actions = (generator.random(len(probs))[:, None] >= edges).sum(axis=1)
    return actions, shares[np.arange(len(probs)), actions]


def _action_sizes(card: ModelCard, agents: tuple[str, ...]) -> tuple[int, ...]:
    """How many numbers each agent's raw action has; empty where the card doesn't say, or the graph gives none."""
    listed = card.config.get("agents") or ()
    sizes = tuple(
        1 if agent.get("action_space") == "discrete" else int(agent["action_size"])
        for agent in listed
        if isinstance(agent, dict) and "action_size" in agent
    )
    return sizes if len(sizes) == len(agents) and _ACTIONS in card.output_names else ()
