"""What the kinds of models have in common: a request as tensors to send, and tensors as the parts of an answer."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from control_plane.inference.decisions import Decision
from control_plane.inference.requests import AnyPredictRequest
from control_plane.inference.tensors import Array
from control_plane.models.card import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A checked request, ready to send."""

    inputs: Mapping[str, Array]
    """Arrays by Triton tensor name, each with a leading batch axis."""
    outputs: tuple[str, ...]
    """Triton names of the wanted outputs, and no others."""
    rows: int
    lane: Hashable
    """Requests of one model with equal lanes may share a call."""
    warnings: tuple[str, ...]
    weights: Array | None = None
    """`rl_ensemble`: those that mix the agents, float32 [agents]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpretation:
    """What the outputs mean: the parts of the answer that depend on the kind of model."""

    predictions: dict[str, Any]
    uncertainty: dict[str, Any] | None = None
    confidence_scores: Array | None = None
    warnings: tuple[str, ...] = ()
    decision: Decision | None = None
    """What was decided, for those who learn from it."""


class Kind(Protocol):
    """A kind of model, made for one card."""

    def plan(self, request: AnyPredictRequest, *, max_rows: int) -> Plan:
        """Checks the request against the model, and says what to send.

        Raises:
            InvalidInput: `data` or an option doesn't fit the model.
        """
        ...

    def interpret(
        self, request: AnyPredictRequest, plan: Plan, outputs: Mapping[str, Array]
    ) -> Interpretation:
        """Turns the outputs of a plan, by Triton name, into the parts of the answer."""
        ...


@dataclass(frozen=True, slots=True)
class TensorNames:
    """Client names to Triton's, for one card."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    wanted: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, card: ModelCard) -> "TensorNames":
        """Reads the card's names."""
        return cls(
            inputs={tensor.name: tensor.triton_name for tensor in card.inputs},
            outputs={tensor.name: tensor.triton_name for tensor in card.outputs},
        )

    def triton_outputs(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Triton's names of those outputs that the model has."""
        known = self.wanted.get(names)
        if known is None:
            known = tuple(self.outputs[name] for name in names if name in self.outputs)
            self.wanted[names] = known
        return known


def contiguous(array: Array) -> Array:
    """The array as orjson takes it."""
    return np.ascontiguousarray(array)


def non_finite_warnings(predictions: Mapping[str, Array]) -> tuple[str, ...]:
    """Warnings about predictions that JSON can't hold."""
    return tuple(
        f"{name} holds NaN or infinities, shown as null: the input may be far from what the model was trained on."
        for name, array in predictions.items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    )


def null_where_unknown(choices: Array, probs: Array) -> Array | list[int | None]:
    """Choices, int64 [B], that were made by `probs`, [B, K]; where a row of those isn't finite, a list with None in its
    place: no choice follows from it, and an array of integers can't say so.
    """
    is_known = np.isfinite(probs).all(axis=1)
    if is_known.all():
        return choices
    return [
        choice if known else None for choice, known in zip(choices.tolist(), is_known.tolist(), strict=True)
    ]


def unused_options(request: AnyPredictRequest, names: tuple[str, ...]) -> tuple[str, ...]:
    """Warnings about options that were given and mean nothing for the model."""
    defaults = {"return_attention": False, "weights": None, "action_selection": "greedy", "seed": None}
    return tuple(
        f"{name} has no effect on {request.model_type}."
        for name in names
        if getattr(request, name) != defaults[name]
    )
