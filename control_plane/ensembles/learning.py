"""What an ensemble's state says: its policy, its sums as of now, its weights and posteriors. Pure."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from control_plane.ensembles.credit import STATISTICS, Decay, Floats, combine
from control_plane.ensembles.policies import PolicySettings, check, learned_weights
from control_plane.inference.decisions import agent_names
from control_plane.models.card import ModelCard
from control_plane.store.ensembles import EnsembleState

if TYPE_CHECKING:
    from control_plane.ensembles.posteriors import Posterior

CARD_POLICY = "weights_policy"
"""Key of the card's configuration that holds the policy given at load."""
_HOUR_S = 3600.0
NOTHING_LEARNED = EnsembleState(
    policy=None, sums={}, generation=0, revision=0, noted=0, rewards=0, updated_at=None
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """An ensemble as of one moment. `weights` float64 [agents]; the agents in the model's order."""

    agents: tuple[str, ...]
    settings: PolicySettings
    weights: Floats
    posteriors: "tuple[Posterior, ...]"
    state: EnsembleState
    warnings: tuple[str, ...]


def decay_of(settings: PolicySettings) -> Decay:
    """How rewards are forgotten."""
    hours = settings.half_life_hours
    return Decay(half_life_s=None if hours is None else hours * _HOUR_S)


def settings_of(card: ModelCard | None, state: EnsembleState) -> tuple[PolicySettings, tuple[str, ...]]:
    """The policy in the state, else the card's, else the default; and what is amiss with it.

    Args:
        card: None where the version is gone, or this replica hasn't seen it yet: `to_adopt` had its policy written
            into the state.
        state: What Redis has.
    """
    given = state.policy
    if given is None and card is not None:
        given = card.config.get(CARD_POLICY)
    if given is None:
        return PolicySettings(), ()
    try:
        settings = (
            msgspec.json.decode(given, type=PolicySettings)
            if isinstance(given, str)
            else msgspec.convert(given, PolicySettings)
        )
        check(settings, tuple(settings.weights or ("any",)) if card is None else agent_names(card))
    except (msgspec.MsgspecError, ValueError) as error:
        return PolicySettings(), (f"The ensemble's policy isn't valid, so the default one holds: {error}.",)
    return settings, ()


def to_adopt(card: ModelCard, state: EnsembleState) -> str | None:
    """The card's policy as the state takes it, where the state has none yet and it is valid."""
    if state.policy is not None or card.config.get(CARD_POLICY) is None:
        return None
    settings, faults = settings_of(card, state)
    return None if faults else msgspec.json.encode(settings).decode()


def without_spent(
    state: EnsembleState, settings: PolicySettings, now_s: float
) -> dict[int, tuple[float, ...]] | None:
    """The sums without the periods that count for nothing by now; None where there are none such.

    A clock that is ahead of Redis' doesn't make anything spent.
    """
    decay, at_s = decay_of(settings), min(now_s, state.updated_at or now_s)
    kept = {period: numbers for period, numbers in state.sums.items() if not decay.is_spent(period, at_s)}
    return kept if len(kept) < len(state.sums) else None


def sums_by_period(sums: Mapping[int, tuple[float, ...]], agents: int) -> dict[int, Floats]:
    """The flat numbers of each period as float64 [agents, 4]; periods of another size are passed over."""
    size = agents * len(STATISTICS)
    return {
        period: np.array(numbers, dtype=np.float64).reshape(agents, len(STATISTICS))
        for period, numbers in sums.items()
        if len(numbers) == size
    }


def statistics_of(
    state: EnsembleState, settings: PolicySettings, agents: int, *, now_s: float | None = None
) -> Floats:
    """The sums as of now (wall time in seconds), float64 [agents, 4]."""
    periods = sums_by_period(state.sums, agents)
    if not periods:
        return np.zeros((agents, len(STATISTICS)))
    return combine(periods, decay_of(settings), time.time() if now_s is None else now_s)


def learn(card: ModelCard, state: EnsembleState, *, now_s: float | None = None) -> Learned:
    """Weights and posteriors that follow from a state."""
    settings, warnings = settings_of(card, state)
    agents = agent_names(card)
    statistics = statistics_of(state, settings, len(agents), now_s=now_s)
    weights, posteriors = learned_weights(settings, agents, statistics)
    return Learned(
        agents=agents,
        settings=settings,
        weights=weights,
        posteriors=posteriors,
        state=state,
        warnings=warnings,
    )
