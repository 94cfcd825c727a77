"""The active experiments in one worker's memory: which version answers a request, and what is counted of it.

Decided from memory alone; `service.py` keeps the memory up to date. The same unit gets the same variant in every
worker, since nothing but names and the epoch's shares decide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import structlog
from prometheus_client import Counter

from control_plane.errors import NotFound, ServingError, problem_of
from control_plane.experiments.assignment import block_of, position, switchback_variant, variant_of
from control_plane.experiments.counters import SHED, Counters
from control_plane.experiments.creation import DISAGREEMENT
from control_plane.experiments.definition import AssignmentKind, Definition, Mode
from control_plane.experiments.moments import bucket_of
from control_plane.inference.disagreement import Disagreement
from control_plane.inference.routing import NO_EXPERIMENT, Assignment, unknown_experiment
from control_plane.models.versions import LATEST
from control_plane.telemetry import metrics
from control_plane.telemetry.logs import AB_TEST_ASSIGNMENT

log = structlog.get_logger()

_MOST_LOGGED = 100_000
_MOST_ENDED = 100
_MOST_PARTICIPANTS = 50_000
_SERVER_FAULT = 500


class Participant(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What feedback to one request of an experiment needs."""

    experiment_id: str
    epoch: int
    variant: int
    bucket: int
    covariate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An active experiment as of its present share epoch.

    `shares` are in declared order; `ends_at` is wall time, None where it lasts until it is stopped.
    """

    definition: Definition
    epoch: int
    shares: tuple[float, ...]
    ends_at: float | None

    def is_over(self, now_s: float) -> bool:
        """Whether its time has come."""
        return self.ends_at is not None and now_s >= self.ends_at


class ActiveExperiments:
    """All of them. See `Router` for the methods that inference calls."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.participants: dict[str, Participant] = {}
        """By request id, until they are written."""
        self._by_id: Mapping[str, Running] = {}
        self._by_type: Mapping[str, Sequence[Running]] = {}
        self._ended: dict[str, Running] = {}
        self._logged: set[tuple[str, int, str]] = set()
        self._counters: dict[tuple[str, int, str], Counter] = {}

    def replace(self, running: Sequence[Running]) -> None:
        """Takes the experiments that are active now, oldest first."""
        by_type: dict[str, list[Running]] = {}
        for one in running:
            by_type.setdefault(one.definition.model_type, []).append(one)
        by_id = {one.definition.experiment_id: one for one in running}
        # Answers that were on their way when it ended carry its name, so they are counted.
        self._ended |= {name: one for name, one in self._by_id.items() if name not in by_id}
        while len(self._ended) > _MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        self._by_type, self._by_id = by_type, by_id

    def running(self) -> Sequence[Running]:
        """The experiments that are active."""
        return tuple(self._by_id.values())

    def assign(
        self,
        *,
        model_type: str,
        version: str,
        experiment_id: str | None,
        routing_key: str | None,
        request_id: str,
        now_s: float,
    ) -> Assignment | None:
        """See `Router`."""
        if experiment_id is None:
            one = self._oldest(model_type, now_s) if version == LATEST else None
            if one is None:
                return None
        elif experiment_id == NO_EXPERIMENT:
            return None
        else:
            one = self._named(experiment_id, model_type, now_s)
        definition = one.definition
        unit = routing_key or request_id
        if definition.assignment is AssignmentKind.SWITCHBACK:
            block = block_of(now_s, definition.block_minutes)
            place = switchback_variant(definition.key, block, one.shares)
            unit, is_keyed = str(block), True
        else:
            place = variant_of(position(definition.key, unit), one.shares)
            is_keyed = routing_key is not None
        variant = definition.variants[place]
        return Assignment(
            experiment_id=definition.experiment_id,
            variant=place,
            version=variant.version,
            epoch=one.epoch,
            unit=unit,
            is_keyed=is_keyed,
            group=f"{definition.experiment_id}:{variant.name}",
        )

    def answered(
        self, assignment: Assignment, *, request_id: str, latency_ms: float, covariate: float | None
    ) -> None:
        """See `Router`."""
        one = self._known(assignment)
        if one is None:
            return
        definition = one.definition
        self.counters.answered(definition, assignment, latency_ms=latency_ms, covariate=covariate)
        self._count(definition, assignment, "ok")
        if definition.outcome_metrics() and len(self.participants) < _MOST_PARTICIPANTS:
            self.participants[request_id] = Participant(
                experiment_id=definition.experiment_id,
                epoch=assignment.epoch,
                variant=assignment.variant,
                bucket=bucket_of(definition.experiment_id, assignment.unit),
                covariate=covariate,
            )

    def failed(self, assignment: Assignment, error: BaseException, *, covariate: float | None) -> None:
        """See `Router`. What the caller did wrong says nothing of a variant; that its version is gone does."""
        one = self._known(assignment)
        is_callers = isinstance(error, ServingError) and problem_of(error).status < _SERVER_FAULT
        if one is None or (is_callers and not isinstance(error, NotFound)):
            return
        self.counters.failed(one.definition, assignment, covariate=covariate)
        self._count(one.definition, assignment, "failed")

    def shadow_of(self, assignment: Assignment) -> Assignment | None:
        """See `Router`."""
        one = self._by_id.get(assignment.experiment_id)
        if one is None or one.definition.mode is not Mode.SHADOW:
            return None
        place = 1 - assignment.variant
        variant = one.definition.variants[place]
        return Assignment(
            experiment_id=assignment.experiment_id,
            variant=place,
            version=variant.version,
            epoch=assignment.epoch,
            unit=assignment.unit,
            is_keyed=assignment.is_keyed,
            group=f"{assignment.experiment_id}:{variant.name}",
        )

    def compared(
        self, shadow: Assignment, found: Disagreement, *, latency_ms: float, covariate: float | None
    ) -> None:
        """See `Router`."""
        one = self._known(shadow)
        if one is None:
            return
        self.counters.answered(one.definition, shadow, latency_ms=latency_ms, covariate=covariate)
        self._count(one.definition, shadow, "ok")
        bucket = bucket_of(shadow.experiment_id, shadow.unit)
        values = (found.class_flips, found.total_variation, found.regression_difference)
        for metric, value in zip(DISAGREEMENT, values, strict=True):
            if value is not None:
                self.counters.observed(
                    shadow.experiment_id,
                    epoch=shadow.epoch,
                    variant=shadow.variant,
                    bucket=bucket,
                    metric=metric.name,
                    value=value,
                )

    def shed(self, shadow: Assignment) -> None:
        """See `Router`."""
        one = self._known(shadow)
        if one is not None:
            self.counters.counted(shadow.experiment_id, epoch=shadow.epoch, variant=shadow.variant, name=SHED)
            self._counter(one.definition, shadow.variant, "shed").inc()

    def _known(self, assignment: Assignment) -> Running | None:
        name = assignment.experiment_id
        return self._by_id.get(name) or self._ended.get(name)

    def _oldest(self, model_type: str, now_s: float) -> Running | None:
        for one in self._by_type.get(model_type, ()):
            if not one.is_over(now_s):
                return one
        return None

    def _named(self, experiment_id: str, model_type: str, now_s: float) -> Running:
        one = self._by_id.get(experiment_id)
        if one is None or one.is_over(now_s):
            raise unknown_experiment(experiment_id)
        if one.definition.model_type != model_type:
            raise unknown_experiment(experiment_id, f"{model_type} has no active experiment")
        return one

    def _counter(self, definition: Definition, variant: int, outcome: str) -> Counter:
        key = (definition.experiment_id, variant, outcome)
        counter = self._counters.get(key)
        if counter is None:
            name = definition.variants[variant].name
            counter = metrics.AB_TEST_REQUESTS.labels(definition.experiment_id, name, outcome)
            self._counters[key] = counter
        return counter

    def _count(self, definition: Definition, assignment: Assignment, outcome: str) -> None:
        self._counter(definition, assignment.variant, outcome).inc()
        if not assignment.is_keyed:
            return
        seen = (assignment.experiment_id, assignment.variant, assignment.unit)
        if seen in self._logged:
            return
        # Once for each unit: a line for each request would cost more than the routing.
        if len(self._logged) >= _MOST_LOGGED:
            self._logged.clear()
        self._logged.add(seen)
        log.info(
            AB_TEST_ASSIGNMENT,
            experiment_id=assignment.experiment_id,
            variant=definition.variants[assignment.variant].name,
            unit=bucket_of(assignment.experiment_id, assignment.unit),
        )
