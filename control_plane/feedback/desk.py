"""Takes feedback: finds what its requests were, and has ensembles and experiments count it."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from control_plane.ensembles.feedback import RewardDesk
from control_plane.ensembles.recorder import DecisionRecorder
from control_plane.ensembles.records import DecisionRecord, record_from
from control_plane.experiments.active import Participant
from control_plane.experiments.outcomes import OutcomeDesk
from control_plane.inference.feedback import Feedback, FeedbackResult, FeedbackStatus
from control_plane.inference.identifiers import time_of
from control_plane.settings import FeedbackSettings
from control_plane.store.ensembles import EnsembleStore
from control_plane.telemetry import metrics

BOOKKEEPING_S = 5.0
"""Feedback to a request younger than this waits for what its worker has yet to write."""
_CLOCKS_S = 1.0
"""By which workers' clocks may differ: requests from further ahead aren't waited for."""
_PARTICIPANT_S = 1.0
_UNDATED_WAIT_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.8
_MOST_WAITING = 64
"""Calls that wait for a decision at once in a worker; more are answered as if they had waited."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What requests were, by id."""

    decisions: Mapping[str, DecisionRecord]
    participants: Mapping[str, Participant]

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.decisions or request_id in self.participants


class FeedbackDesk:
    """Takes feedback.

    Args:
        store: The decisions.
        recorder: This worker's decisions that aren't written yet.
        rewards: Counts rewards of decisions.
        outcomes: Counts outcomes of experiments' requests.
        settings: How long feedback is taken.
        wall: Wall time in seconds.
    """

    def __init__(
        self,
        *,
        store: EnsembleStore,
        recorder: DecisionRecorder,
        rewards: RewardDesk,
        outcomes: OutcomeDesk,
        settings: FeedbackSettings,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._rewards = rewards
        self._outcomes = outcomes
        self._settings = settings
        self._wall = wall
        self._waiting = 0

    async def take(self, feedback: Sequence[Feedback]) -> list[FeedbackResult]:
        """Counts feedback; the results are in its order.

        Raises:
            RedisUnavailable: some may have been counted; to give all again is safe.
            EnsembleChanged: an ensemble is changed faster than feedback can be counted.
        """
        found = await self._find([one.request_id for one in feedback])
        results: dict[int, FeedbackResult] = {}
        decided: list[int] = []
        for position, one in enumerate(feedback):
            participant = found.participants.get(one.request_id)
            if one.request_id not in found:
                results[position] = self._missing(one.request_id)
            elif participant is not None and (fault := self._outcomes.fault(participant, one)) is not None:
                results[position] = FeedbackResult(
                    request_id=one.request_id, status=FeedbackStatus.INVALID, reason=fault
                )
            elif one.request_id in found.decisions:
                decided.append(position)
        rewarded = await self._rewards.take(
            [(feedback[position], found.decisions[feedback[position].request_id]) for position in decided]
        )
        results |= dict(zip(decided, rewarded, strict=True))
        for position, one in enumerate(feedback):
            participant = found.participants.get(one.request_id)
            known = results.get(position)
            if participant is None or (known is not None and known.status is FeedbackStatus.INVALID):
                continue
            if not self._outcomes.measures(participant, one):
                if known is None:
                    results[position] = FeedbackResult(
                        request_id=one.request_id,
                        status=FeedbackStatus.INVALID,
                        reason=f"{participant.experiment_id} measures nothing of it",
                    )
                continue
            counted = await self._outcomes.take(participant, one)
            results[position] = counted if known is None else _both(known, counted)
        ordered = [results[position] for position in range(len(feedback))]
        for result in ordered:
            metrics.FEEDBACK.labels(result.status.value).inc()
        return ordered

    async def _find(self, request_ids: Sequence[str]) -> _Found:
        """What the requests were, after a wait where one is so young that its worker may yet have to write it."""
        wanted = list(dict.fromkeys(request_ids))
        decisions: dict[str, str] = {}
        participants: dict[str, Participant] = {}
        started = self._wall()
        is_first, pause_s = True, _FIRST_PAUSE_S
        while True:
            missing = [one for one in wanted if one not in decisions and one not in participants]
            decisions |= await self._store.decisions(missing)
            participants |= await self._outcomes.participants(wanted if is_first else missing)
            missing = [
                one
                for one in missing
                if one not in decisions and one not in participants and self._may_come(one, started)
            ]
            if not missing:
                break
            if is_first:
                await self._recorder.flush()
                await self._outcomes.flush()
            elif self._waiting >= _MOST_WAITING:
                break
            else:
                self._waiting += 1
                try:
                    await asyncio.sleep(pause_s)
                finally:
                    self._waiting -= 1
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            is_first = False
        records = _read(decisions)
        await self._wait_for_participants(records, participants)
        return _Found(decisions=records, participants=participants)

    async def _wait_for_participants(
        self, records: Mapping[str, DecisionRecord], participants: dict[str, Participant]
    ) -> None:
        """A decision's part in an experiment is written by another hand, so it may come a little after the decision."""
        late = [
            request_id
            for request_id, record in records.items()
            if request_id not in participants
            and 0 <= self._wall() - record.time_s < _PARTICIPANT_S
            and self._outcomes.may_be_late(record.model_type)
        ]
        if late:
            await asyncio.sleep(_PARTICIPANT_S)
            participants |= await self._outcomes.participants(late)

    def _may_come(self, request_id: str, started: float) -> bool:
        if not self._settings.retention_s:
            return False
        made = time_of(request_id)
        if made is None:
            return self._wall() - started < _UNDATED_WAIT_S
        return -_CLOCKS_S <= self._wall() - made < BOOKKEEPING_S

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
            reason="nothing is kept under this id: only decisions of rl_ensemble are, and requests of experiments "
            "that measure outcomes",
        )


def _read(texts: Mapping[str, str]) -> dict[str, DecisionRecord]:
    """Decisions by request id, without those that can't be read."""
    records = {}
    for request_id, text in texts.items():
        try:
            records[request_id] = record_from(text)
        except ValueError as error:
            log.warning("decision_unreadable", request_id=request_id, reason=str(error))
    return records


def _both(rewarded: FeedbackResult, counted: FeedbackResult) -> FeedbackResult:
    """What became of a feedback that two counted; one of them may have had it before a failure of the other."""
    statuses = {rewarded.status, counted.status}
    for status in (FeedbackStatus.CONFLICT, FeedbackStatus.ACCEPTED):
        if status in statuses:
            return FeedbackResult(request_id=rewarded.request_id, status=status)
    return rewarded
