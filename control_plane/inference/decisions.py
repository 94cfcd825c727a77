"""What the RL ensemble asks of those who learn its weights, and tells them: `control_plane.ensembles` answers.

Only the forms: inference knows no posterior and no Redis.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from control_plane.inference.tensors import Array
from control_plane.models.card import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentWeights:
    """The weights in force: float32 [agents], normalised; `warnings` go into the answer."""

    weights: Array
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The actions of one request, with what is needed to credit them later.

    `agent_probs` float32 [B, A, K]; `weights` float32 [A], those that mixed them; `actions` int64 [B];
    `propensity` float64 [B], the probability with which each was chosen; `is_sampled` is false for greedy ones.
    """

    agent_probs: Array
    weights: Array
    actions: Array
    propensity: Array
    is_sampled: bool


class WeightsSource(Protocol):
    """Says which weights are in force."""

    def current(self, card: ModelCard) -> CurrentWeights:
        """The version's weights; called for each request, so without any waiting."""
        ...


class DecisionSink(Protocol):
    """Takes note of decisions."""

    def note(self, request_id: str, card: ModelCard, decision: Decision) -> tuple[str, ...]:
        """Keeps a decision until its reward comes; called for each request, so without any waiting.

        Returns:
            Warnings for the answer.
        """
        ...


class UniformWeights:
    """All agents weigh the same: where nothing learns."""

    def current(self, card: ModelCard) -> CurrentWeights:
        """See `WeightsSource`."""
        count = len(agent_names(card))
        return CurrentWeights(weights=np.full(count, 1 / count, dtype=np.float32))


class NoDecisions:
    """Nobody takes note: where nothing learns."""

    def note(self, request_id: str, card: ModelCard, decision: Decision) -> tuple[str, ...]:  # noqa: ARG002
        """See `DecisionSink`."""
        return ()


def agent_names(card: ModelCard) -> tuple[str, ...]:
    """The agents of an `rl_ensemble`, in the order of its weights; numbered where the card doesn't name them."""
    names = tuple(
        str(agent["name"]) if isinstance(agent, dict) else str(agent)
        for agent in card.config.get("agents") or ()
    )
    if names:
        return names
    outputs = {tensor.name: tensor.shape for tensor in card.outputs}
    inputs = {tensor.name: tensor.shape for tensor in card.inputs}
    counts = (shape[0] for shape in (outputs.get("agent_values"), inputs.get("weights")) if shape)
    count = next((count for count in counts if count > 0), 1)
    return tuple(f"agent_{index}" for index in range(count))
