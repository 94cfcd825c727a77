"""The weights in force, in one worker's memory: read for each request, refreshed when an ensemble learned.

All workers compute the same weights from the same state. With Redis away the last ones hold, and answers say so.
"""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import structlog

from control_plane.ensembles.learning import NOTHING_LEARNED, Learned, learn, to_adopt, without_spent
from control_plane.ensembles.records import ensemble_of
from control_plane.errors import RedisUnavailable
from control_plane.inference.decisions import CurrentWeights
from control_plane.inference.requests import RL_ENSEMBLE
from control_plane.models.card import ModelCard
from control_plane.models.registry import ModelRegistry
from control_plane.settings import EnsemblesSettings
from control_plane.store.ensembles import EnsembleState, EnsembleStore
from control_plane.telemetry import metrics

log = structlog.get_logger()

_LEAST_PAUSE_S = 0.1
_REDECAY_S = 10.0
_RETRY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPoint:
    """The weights at one time (wall time in seconds), in the order of the agents, and the rewards until then."""

    time_s: float
    weights: tuple[float, ...]
    rewards: int


@dataclass(slots=True, kw_only=True)
class _Known:
    card: ModelCard
    learned: Learned
    current: CurrentWeights
    away: CurrentWeights
    computed_at: float


class LearnedWeights:
    """The weights of all registered ensembles.

    Args:
        store: What was learned.
        registry: Which ensembles there are.
        settings: Intervals.
        wall: Wall time in seconds.
    """

    def __init__(
        self,
        store: EnsembleStore,
        registry: ModelRegistry,
        settings: EnsemblesSettings,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._registry = registry
        self._settings = settings
        self._wall = wall
        self._known: dict[str, _Known] = {}
        self._learned = asyncio.Event()
        self._refreshing = asyncio.Lock()
        store.on_learned(lambda _: self.wake())

    def current(self, card: ModelCard) -> CurrentWeights:
        """See `WeightsSource`."""
        known = self._known.get(card.triton_model)
        if known is None or (known.card is not card and ensemble_of(known.card) != ensemble_of(card)):
            known = self._keep(card, learn(card, NOTHING_LEARNED, now_s=self._wall()))
            self.wake()
        return known.current if self._store.is_up else known.away

    def wake(self) -> None:
        """Has `run` look at once."""
        self._learned.set()

    async def run(self) -> None:
        """Refreshes whenever something was learned, and every `poll_interval_s`, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._settings.poll_interval_s):
                    await self._learned.wait()
            except TimeoutError:
                pass
            self._learned.clear()
            try:
                await self.refresh()
            except RedisUnavailable:
                await asyncio.sleep(_RETRY_S)
            else:
                await asyncio.sleep(_LEAST_PAUSE_S)

    async def refresh(self) -> None:
        """Reads what was learned, and computes the weights that it changes.

        Raises:
            RedisUnavailable: the weights stay as they are.
        """
        async with self._refreshing:
            cards = [model.card for model in self._registry.versions(RL_ENSEMBLE)]
            for gone in self._known.keys() - {card.triton_model for card in cards}:
                _show(self._known.pop(gone).learned, gone, None)
            if not cards:
                return
            states = await self._store.states([ensemble_of(card) for card in cards])
            for card in cards:
                ensemble = ensemble_of(card)
                if (policy := to_adopt(card, states[ensemble])) is not None:
                    # From now on the state stands for itself, also where the card is gone or not seen yet.
                    await self._store.change(ensemble, revision=states[ensemble].revision, policy=policy)
                    states |= await self._store.states([ensemble])
                await self._update(card, states[ensemble])

    async def _update(self, card: ModelCard, state: EnsembleState) -> None:
        known = self._known.get(card.triton_model)
        if known is None or not self._is_fresh(known, card, state):
            # 4,096 draws take a millisecond or two, in which requests are to go on.
            known = self._keep(card, await asyncio.to_thread(learn, card, state, now_s=self._wall()))
        if state.rewards and state.noted != state.revision:
            await self._note_history(known)
        kept = without_spent(state, known.learned.settings, self._wall())
        if kept is not None:
            await self._store.change(
                ensemble_of(card), revision=state.revision, sums=kept, rewards=state.rewards
            )

    def _is_fresh(self, known: _Known, card: ModelCard, state: EnsembleState) -> bool:
        learned = known.learned
        return (
            known.card is card
            and (learned.state.revision, learned.state.generation) == (state.revision, state.generation)
            and (learned.settings.half_life_hours is None or self._wall() - known.computed_at < _REDECAY_S)
        )

    async def _note_history(self, known: _Known) -> None:
        """Adds what is known to the history, unless it is too early for that: then it is tried at the next look."""
        state = known.learned.state
        point = HistoryPoint(
            time_s=self._wall(), weights=tuple(known.learned.weights.tolist()), rewards=state.rewards
        )
        await self._store.note_history(
            ensemble_of(known.card),
            msgspec.json.encode(point).decode(),
            revision=state.revision,
            interval_s=self._settings.history_interval_s,
        )

    def _keep(self, card: ModelCard, learned: Learned) -> _Known:
        weights = np.asarray(learned.weights / learned.weights.sum(), dtype=np.float32)
        weights.flags.writeable = False
        known = self._known[card.triton_model] = _Known(
            card=card,
            learned=learned,
            current=CurrentWeights(weights=weights, warnings=learned.warnings),
            away=CurrentWeights(
                weights=weights,
                warnings=(
                    *learned.warnings,
                    "Redis doesn't answer: the weights are the last that this worker knew, and feedback has to wait.",
                ),
            ),
            computed_at=self._wall(),
        )
        _show(learned, card.triton_model, learned.weights.tolist())
        return known


def _show(learned: Learned, model: str, weights: list[float] | None) -> None:
    """Sets the weights' gauges; None: not a number, which leaves them out of what is scraped.

    Taken away they can't be: the files that workers share their metrics by know no removal.
    """
    shown = [math.nan] * len(learned.agents) if weights is None else weights
    for agent, weight in zip(learned.agents, shown, strict=True):
        metrics.ENSEMBLE_WEIGHT.labels(model, agent).set(weight)
