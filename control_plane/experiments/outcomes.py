"""Outcomes of experiments' requests: what feedback brings is counted for the variant, once."""

from collections.abc import Sequence

import msgspec

from control_plane.experiments.active import ActiveExperiments, Participant
from control_plane.experiments.counters import observation
from control_plane.experiments.design import Metric, MetricKind
from control_plane.experiments.service import ExperimentService
from control_plane.experiments.state import experiment_of
from control_plane.inference.feedback import Feedback, FeedbackResult, FeedbackStatus
from control_plane.store.experiments import ExperimentStore

REWARD = "reward"
"""The metric that a feedback's `reward` is, where an experiment declares it."""
_MOST_KNOWN = 1_000
_participants = msgspec.json.Decoder(Participant)


class OutcomeDesk:
    """Counts outcomes.

    Args:
        store: Experiments, and what their requests were.
        active: Those that are active.
        service: Writes this worker's participants.
    """

    def __init__(self, store: ExperimentStore, active: ActiveExperiments, service: ExperimentService) -> None:
        self._store = store
        self._active = active
        self._service = service
        self._known: dict[str, tuple[Metric, ...]] = {}

    async def participants(self, request_ids: Sequence[str]) -> dict[str, Participant]:
        """The requests that took part in an experiment, by id."""
        if not request_ids:
            return {}
        found = await self._store.participants(request_ids)
        participants = {one: _participants.decode(text) for one, text in found.items()}
        for participant in participants.values():
            await self._learn(participant.experiment_id)
        return participants

    async def flush(self) -> None:
        """Writes this worker's participants."""
        if self._active.participants:
            await self._service.flush()

    def fault(self, participant: Participant, feedback: Feedback) -> str | None:
        """Why the values don't fit the experiment's metrics; None where they do."""
        known = [metric.name for metric in self._known.get(participant.experiment_id, ())]
        for name in feedback.outcome or ():
            if name not in known:
                return f"outcome.{name}: expected a metric of {participant.experiment_id}: {', '.join(known)}"
        for metric, value in self._values(participant, feedback):
            if metric.kind is MetricKind.RATE and not 0.0 <= value <= 1.0:
                return f"{metric.name}: expected from 0 to 1, as it is a rate, got {value:g}"
        return None

    def measures(self, participant: Participant, feedback: Feedback) -> bool:
        """Whether the experiment measures any of it."""
        return bool(self._values(participant, feedback))

    def may_be_late(self, model_type: str) -> bool:
        """Whether an active experiment measures outcomes of the type, so that a participant may be yet to come."""
        return any(
            one.definition.model_type == model_type and one.definition.outcome_metrics()
            for one in self._active.running()
        )

    async def take(self, participant: Participant, feedback: Feedback) -> FeedbackResult:
        """Counts what the experiment measures of it.

        Raises:
            RedisUnavailable: to give it again is safe.
        """
        moments = {
            f"{participant.epoch}|{participant.variant}|{metric.name}|{participant.bucket}": observation(
                value, participant.covariate
            )
            for metric, value in self._values(participant, feedback)
        }
        outcome = await self._store.credit(
            participant.experiment_id,
            feedback.request_id,
            text=msgspec.json.encode(
                [feedback.reward, sorted((feedback.outcome or {}).items()), feedback.row]
            ).decode(),
            moments=moments,
        )
        return FeedbackResult(request_id=feedback.request_id, status=FeedbackStatus(outcome.value))

    def _values(self, participant: Participant, feedback: Feedback) -> list[tuple[Metric, float]]:
        given = dict(feedback.outcome or {})
        if feedback.reward is not None:
            given.setdefault(REWARD, feedback.reward)
        metrics = self._known.get(participant.experiment_id, ())
        return [(metric, given[metric.name]) for metric in metrics if metric.name in given]

    async def _learn(self, experiment_id: str) -> None:
        """Its outcome metrics; a definition never changes."""
        if experiment_id in self._known:
            return
        stored = await self._store.get(experiment_id)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[experiment_id] = (
            () if stored is None else experiment_of(stored).definition.outcome_metrics()
        )
