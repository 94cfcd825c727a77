"""Realised rewards: found their decisions, shared among the agents, and counted once.

Nothing is acknowledged that isn't in Redis; without Redis it raises, and the caller tries again, which counts nothing
twice.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from control_plane.ensembles.learning import NOTHING_LEARNED, decay_of, settings_of
from control_plane.ensembles.policies import PolicySettings, check_reward
from control_plane.ensembles.recorder import DecisionRecorder
from control_plane.ensembles.records import (
    DecisionRecord,
    ensemble_of,
    log_entry_of,
    record_from,
    row_of,
    sums_of,
    to_text,
)
from control_plane.ensembles.weights import LearnedWeights
from control_plane.errors import EnsembleChanged
from control_plane.inference.identifiers import time_of
from control_plane.models.card import ModelCard
from control_plane.models.registry import ModelRegistry
from control_plane.settings import FeedbackSettings
from control_plane.store.ensembles import Credit, CreditOutcome, EnsembleState, EnsembleStore
from control_plane.telemetry import metrics

BOOKKEEPING_S = 5.0
"""Feedback to a request younger than this waits for what its worker has yet to write."""
_UNDATED_WAIT_S = 1.0
_LOOK_AGAIN_S = 0.1
_ANNOUNCE_S = 0.05
_ATTEMPTS = 20


class FeedbackStatus(StrEnum):
    """What became of a feedback."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    INVALID = "invalid"


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one decision; `api/schemas/feedback.py` explains the fields."""

    request_id: str
    reward: float | None = None
    outcome: dict[str, float] | None = None
    action: int | str | None = None
    row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackResult:
    """What became of it; `reason` says why where it wasn't taken."""

    request_id: str
    status: FeedbackStatus
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """A feedback that fits its decision."""

    feedback: Feedback
    record: DecisionRecord
    action: int | None


class FeedbackDesk:
    """Takes feedback.

    Args:
        store: Decisions, and what was learned.
        registry: Which ensembles there are.
        recorder: This worker's decisions that aren't written yet.
        weights: To be woken when something was learned.
        settings: How long feedback is taken.
        wall: Wall time in seconds.
    """

    def __init__(
        self,
        *,
        store: EnsembleStore,
        registry: ModelRegistry,
        recorder: DecisionRecorder,
        weights: LearnedWeights,
        settings: FeedbackSettings,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._registry = registry
        self._recorder = recorder
        self._weights = weights
        self._settings = settings
        self._wall = wall
        self._announced: dict[str, float] = {}

    async def take(self, feedback: Sequence[Feedback]) -> list[FeedbackResult]:
        """Counts feedback; the results are in its order.

        Raises:
            RedisUnavailable: some may have been counted; to give all again is safe.
            EnsembleChanged: an ensemble is changed faster than feedback can be counted.
        """
        records = await self._find([one.request_id for one in feedback])
        states = await self._states(records)
        results: list[FeedbackResult | None] = []
        given: list[tuple[int, _Given]] = []
        for position, one in enumerate(feedback):
            record = records.get(one.request_id)
            if record is None:
                results.append(self._missing(one.request_id))
                continue
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
        done = [result for result in results if result is not None]
        for result in done:
            metrics.FEEDBACK.labels(result.status.value).inc()
        return done

    async def _find(self, request_ids: Sequence[str]) -> dict[str, DecisionRecord]:
        """The decisions, after a wait where a request is so young that its worker may yet have to write them."""
        wanted = list(dict.fromkeys(request_ids))
        found = await self._store.decisions(wanted)
        missing = [one for one in wanted if one not in found]
        if missing and self._recorder.waiting:
            await self._recorder.flush()
        started = self._wall()
        while missing:
            found |= await self._store.decisions(missing)
            missing = [one for one in missing if one not in found and self._may_come(one, started)]
            if missing:
                await asyncio.sleep(_LOOK_AGAIN_S)
        return {one: record_from(text) for one, text in found.items()}

    def _may_come(self, request_id: str, started: float) -> bool:
        made = time_of(request_id)
        if made is None:
            return self._wall() - started < _UNDATED_WAIT_S
        return abs(self._wall() - made) < BOOKKEEPING_S

    def _missing(self, request_id: str) -> FeedbackResult:
        made = time_of(request_id)
        if made is not None and self._wall() - made > self._settings.retention_s:
            return FeedbackResult(
                request_id=request_id,
                status=FeedbackStatus.EXPIRED,
                reason=f"feedback is taken for {self._settings.retention_s:g} s after the request",
            )
        return FeedbackResult(
            request_id=request_id,
            status=FeedbackStatus.UNKNOWN,
            reason="no decision is kept under this id: only those of rl_ensemble are, when POST /predict answered",
        )

    async def _states(self, records: dict[str, DecisionRecord]) -> dict[str, EnsembleState]:
        ensembles = sorted({record.ensemble for record in records.values()})
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
        card = self._card(record)
        if card is not None:
            return settings_of(card, state)[0]
        # The version is gone or holds something else by now: what was set for it still stands in its state.
        return (
            PolicySettings()
            if state.policy is None
            else msgspec.json.decode(state.policy, type=PolicySettings)
        )

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
