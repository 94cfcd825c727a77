"""Realised rewards of an ensemble's decisions: shared among the agents, and counted once.

Nothing is acknowledged that isn't in Redis; without Redis it raises, and the caller tries again, which counts nothing
twice. `control_plane.feedback` finds the decisions.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from control_plane.ensembles.learning import NOTHING_LEARNED, decay_of, settings_of
from control_plane.ensembles.policies import PolicySettings, check_reward
from control_plane.ensembles.records import (
    DecisionRecord,
    ensemble_of,
    log_entry_of,
    row_of,
    sums_of,
    to_text,
)
from control_plane.ensembles.weights import LearnedWeights
from control_plane.errors import EnsembleChanged
from control_plane.inference.feedback import Feedback, FeedbackResult, FeedbackStatus
from control_plane.models.card import ModelCard
from control_plane.models.registry import ModelRegistry
from control_plane.store.ensembles import Credit, CreditOutcome, EnsembleState, EnsembleStore

_ANNOUNCE_S = 0.05
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """A feedback that fits its decision."""

    feedback: Feedback
    record: DecisionRecord
    action: int | None


class RewardDesk:
    """Counts rewards.

    Args:
        store: What was learned.
        registry: Which ensembles there are.
        weights: To be woken when something was learned.
        wall: Wall time in seconds.
    """

    def __init__(
        self,
        *,
        store: EnsembleStore,
        registry: ModelRegistry,
        weights: LearnedWeights,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._registry = registry
        self._weights = weights
        self._wall = wall
        self._announced: dict[str, float] = {}

    async def take(self, feedback: Sequence[tuple[Feedback, DecisionRecord]]) -> list[FeedbackResult]:
        """Counts feedback to decisions; the results are in its order.

        Raises:
            RedisUnavailable: some may have been counted; to give all again is safe.
            EnsembleChanged: an ensemble is changed faster than feedback can be counted.
        """
        states = await self._states(record for _, record in feedback)
        results: list[FeedbackResult | None] = []
        given: list[tuple[int, _Given]] = []
        for position, (one, record) in enumerate(feedback):
            try:
                fitting = _Given(feedback=one, record=record, action=self._action(one, record))
                _check_row(one, record)
                if one.reward is not None:
                    check_reward(self._policy(record, states[record.ensemble]), one.reward)
            except ValueError as error:
                results.append(
                    FeedbackResult(
                        request_id=one.request_id, status=FeedbackStatus.INVALID, reason=str(error)
                    )
                )
                continue
            results.append(None)
            given.append((position, fitting))
        for (position, counted), outcome in zip(given, await self._count(given, states), strict=True):
            results[position] = FeedbackResult(
                request_id=counted.feedback.request_id, status=FeedbackStatus(outcome.value)
            )
        return [result for result in results if result is not None]

    async def _states(self, records: Iterable[DecisionRecord]) -> dict[str, EnsembleState]:
        ensembles = sorted({record.ensemble for record in records})
        return await self._store.states(ensembles) if ensembles else {}

    async def _count(
        self, given: Sequence[tuple[int, _Given]], states: dict[str, EnsembleState]
    ) -> list[CreditOutcome]:
        """Counts what fits; computes anew what was computed for a policy that changed meanwhile."""
        outcomes = [CreditOutcome.STALE] * len(given)
        left = list(range(len(given)))
        for _ in range(_ATTEMPTS):
            if not left:
                break
            ready = [self._credit(given[place][1], states) for place in left]
            for place, outcome in zip(left, await self._store.credit(ready), strict=True):
                outcomes[place] = outcome
            await self._announce(
                {
                    credit.ensemble
                    for credit, place in zip(ready, left, strict=True)
                    if credit.sums and outcomes[place] is CreditOutcome.ACCEPTED
                }
            )
            left = [place for place in left if outcomes[place] is CreditOutcome.STALE]
            if left:
                states |= await self._store.states(sorted(states))
        if left:
            raise EnsembleChanged(
                "The ensemble's policy was changed again and again while this feedback was to be counted.",
                remedy="Try again.",
            )
        return outcomes

    def _credit(self, given: _Given, states: dict[str, EnsembleState]) -> Credit:
        feedback, record = given.feedback, given.record
        state = states.get(record.ensemble, NOTHING_LEARNED)
        decay = decay_of(self._policy(record, state))
        sums: list[float] = []
        entry = ""
        if feedback.reward is not None:
            row = row_of(record, feedback.row)
            action = row.chosen if given.action is None else given.action
            sums = sums_of(row, action=action, reward=feedback.reward, factor=decay.factor(record.time_s))
            entry = to_text(log_entry_of(record, row, action=action, reward=feedback.reward))
        return Credit(
            request_id=feedback.request_id,
            row=feedback.row,
            ensemble=record.ensemble,
            text=_canonical(feedback, given.action),
            generation=state.generation,
            period=decay.period(record.time_s),
            sums=sums,
            log_entry=entry,
        )

    def _policy(self, record: DecisionRecord, state: EnsembleState) -> PolicySettings:
        """What was set for it stands in its state, also where the version is gone, or isn't seen here yet."""
        return settings_of(self._card(record), state)[0]

    def _card(self, record: DecisionRecord) -> ModelCard | None:
        model = self._registry.get(f"{record.model_type}-{record.version}")
        return model.card if model is not None and ensemble_of(model.card) == record.ensemble else None

    def _action(self, feedback: Feedback, record: DecisionRecord) -> int | None:
        """The action really taken as an index; None where the feedback names none.

        Raises:
            ValueError: there is no such action.
        """
        action, count = feedback.action, record.shape[2]
        if action is None:
            return None
        card = self._card(record)
        names = (card.class_names if card is not None else None) or ()
        if isinstance(action, str):
            if action in names:
                return names.index(action)
        elif 0 <= action < count:
            return action
        listed = f", or one of {', '.join(names)}" if names else ""
        raise ValueError(f"action: expected an index from 0 to {count - 1}{listed}, got {action!r:.80}")

    async def _announce(self, ensembles: set[str]) -> None:
        """Tells all workers, not more often than they would look; who misses it looks at its next poll."""
        for ensemble in ensembles:
            self._weights.wake()
            now = self._wall()
            if now - self._announced.get(ensemble, 0.0) >= _ANNOUNCE_S:
                self._announced[ensemble] = now
                await self._store.announce(ensemble)


def _check_row(feedback: Feedback, record: DecisionRecord) -> None:
    if not 0 <= feedback.row < record.rows:
        raise ValueError(f"row: expected from 0 to {record.rows - 1}, got {feedback.row}")


def _canonical(feedback: Feedback, action: int | None) -> str:
    """The same text for the same values."""
    outcome = dict(sorted(feedback.outcome.items())) if feedback.outcome is not None else None
    return msgspec.json.encode([feedback.reward, outcome, action]).decode()
