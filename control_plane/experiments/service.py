"""Keeps one worker's experiments going: what is active comes in, what was counted goes out, what is due is done.

Every worker runs it. A move is made by whichever gets there first; counts are looked at by one worker at a time.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

import msgspec
import structlog

from control_plane.errors import RedisUnavailable
from control_plane.experiments.active import ActiveExperiments
from control_plane.experiments.counters import Counters
from control_plane.experiments.definition import Definition
from control_plane.experiments.lifecycle import Move, end, look, needs_a_look
from control_plane.experiments.results import ExperimentResults, Observations, evaluate
from control_plane.experiments.state import (
    Experiment,
    are_units_requests,
    experiment_of,
    information_fields,
    observations_of,
)
from control_plane.models.cache import ModelCache
from control_plane.models.registry import ModelRegistry
from control_plane.settings import ExperimentsSettings
from control_plane.store.experiments import ExperimentStore, StoredCounts
from control_plane.telemetry import metrics

log = structlog.get_logger()

PIN_OWNER = "experiment:"
"""Begins the name of a pin's owner; the experiment's id follows."""
_BATCH = 500
_RETRY_S = 0.5
_LOOK_S = 1.0
_TIMELINE_POINTS = 300
_LEAST_TIMELINE_S = 10.0
_PINS_S = 5.0


class TimelinePoint(msgspec.Struct, frozen=True, kw_only=True):
    """What the comparisons said at one time (wall time in seconds)."""

    time_s: float
    requests: int
    comparisons: list[dict[str, float | str | None]]


class ExperimentService:
    """One worker's side of it.

    Args:
        store: Experiments and counts.
        active: The router's memory.
        cache: For the pins of what is being tried.
        registry: The versions that variants name.
        settings: Intervals.
        wall: Wall time in seconds.
    """

    def __init__(
        self,
        *,
        store: ExperimentStore,
        active: ActiveExperiments,
        cache: ModelCache,
        registry: ModelRegistry,
        settings: ExperimentsSettings,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._active = active
        self._cache = cache
        self._registry = registry
        self._settings = settings
        self._wall = wall
        self._worker = uuid.uuid4().hex
        self._changed = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._experiments: list[Experiment] = []
        store.on_change(lambda _: self._changed.set())

    @property
    def counters(self) -> Counters:
        """What isn't written yet."""
        return self._active.counters

    async def run_refresh(self) -> None:
        """Takes over what changed at once, and looks every `poll_interval_s`, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._settings.poll_interval_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            try:
                await self.refresh()
            except RedisUnavailable:
                await asyncio.sleep(_RETRY_S)

    async def refresh(self) -> None:
        """Reads which experiments are active.

        Raises:
            RedisUnavailable: those that were known go on.
        """
        self._experiments = [experiment_of(stored) for stored in await self._store.active()]
        self._active.replace([experiment.running for experiment in self._experiments])

    async def run_flush(self) -> None:
        """Writes what was counted, every `flush_interval_s`, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.flush_interval_s)
            try:
                await self.flush()
            except RedisUnavailable:
                await asyncio.sleep(_RETRY_S)

    async def flush(self) -> None:
        """Writes all that was counted.

        Raises:
            RedisUnavailable: what isn't confirmed stays.
        """
        async with self._flushing:
            metrics.EXPERIMENT_COUNTS_WAITING.set(self.counters.events)
            participants = self._active.participants
            while participants:
                batch = {one: participants[one] for one in list(participants)[:_BATCH]}
                await self._store.put_participants(
                    {one: msgspec.json.encode(record).decode() for one, record in batch.items()}
                )
                for one, record in batch.items():
                    if participants.get(one) is record:
                        del participants[one]
            for experiment_id in self.counters.pending():
                if (taken := self.counters.take(experiment_id)) is not None:
                    await self._store.add(experiment_id, self._worker, *taken)
                    self.counters.confirm(experiment_id)
            metrics.EXPERIMENT_COUNTS_WAITING.set(0)

    async def aclose(self) -> None:
        """Writes the rest, where Redis takes it."""
        try:
            await self.flush()
            while self.counters.pending():
                await self.flush()
        except RedisUnavailable:
            log.warning("experiment_counts_lost", requests=self.counters.events)

    async def run_lifecycle(self) -> None:
        """Makes the moves that are due, until cancelled."""
        pins_at = 0.0
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                for experiment in list(self._experiments):
                    try:
                        await self._attend(experiment)
                    except RedisUnavailable:
                        raise
                    except Exception:
                        # The others' ends and rollbacks must not wait for it.
                        log.exception(
                            "experiment_not_attended", experiment_id=experiment.definition.experiment_id
                        )
                if time.monotonic() >= pins_at:
                    await self.keep_pins()
                    pins_at = time.monotonic() + _PINS_S
            except RedisUnavailable:
                await asyncio.sleep(_RETRY_S)

    async def apply(self, experiment: Experiment, move: Move) -> bool:
        """Makes a move, and tells of it; false where another replica moved first."""
        definition = experiment.definition
        if not await self._store.move(
            definition.experiment_id, revision=experiment.revision, changes=move.changes, ends=move.ends
        ):
            return False
        metrics.EXPERIMENT_TRANSITIONS.labels(definition.mode.value, move.to).inc()
        log.info("experiment_moved", experiment_id=definition.experiment_id, to=move.to, reason=move.reason)
        await self.refresh()
        return True

    async def results(self, experiment: Experiment) -> tuple[StoredCounts, "ExperimentResults"]:
        """What the counts say now. The statistics run in a thread."""
        stored = await self._store.counts(experiment.definition.experiment_id)
        _, results = await asyncio.to_thread(_evaluated, experiment, stored)
        await self._fix(experiment, results)
        return stored, results

    async def keep_pins(self) -> None:
        """Pins the versions of active experiments, and lets go of those that ended.

        Raises:
            RedisUnavailable: see there.
        """
        wanted: dict[str, set[str]] = {}
        for experiment in self._experiments:
            for key in self.versions_of(experiment.definition):
                wanted.setdefault(key, set()).add(PIN_OWNER + experiment.definition.experiment_id)
        snapshot = await self._cache.residency.snapshot()
        active = {PIN_OWNER + stored.experiment_id for stored in await self._store.active()}
        for key in snapshot.pinned | wanted.keys():
            owners = {
                owner for owner in await self._cache.residency.pin_owners(key) if owner.startswith(PIN_OWNER)
            }
            for owner in wanted.get(key, set()) - owners:
                await self._cache.pin(key, owner)
            # What another worker has just begun isn't in this one's list yet.
            for owner in owners - wanted.get(key, set()) - active:
                await self._cache.unpin(key, owner)

    def versions_of(self, definition: Definition) -> list[str]:
        """Triton's names of the variants' versions that are registered."""
        found = [self._registry.find(definition.model_type, one.version) for one in definition.variants]
        return [model.key for model in found if model is not None]

    async def _attend(self, experiment: Experiment) -> None:
        now_s = self._wall()
        if (move := end(experiment, now_s=now_s)) is not None:
            if await self.apply(experiment, move):
                await self.keep_point(experiment)
            return
        definition = experiment.definition
        if needs_a_look(experiment, now_s=now_s) and await self._store.take_turn(
            "look", definition.experiment_id, interval_s=_LOOK_S / 2
        ):
            stored = await self._store.counts(definition.experiment_id)
            results, due = await asyncio.to_thread(_looked, experiment, stored, now_s)
            if due is not None:
                # In one move: the first of two would make the second stale.
                changes = _fixed_by(experiment, results) | due.changes
                await self.apply(experiment, replace(due, changes=changes))
                return
            await self._fix(experiment, results)
        interval_s = max(_LEAST_TIMELINE_S, definition.duration_hours * 3600 / _TIMELINE_POINTS)
        if await self._store.take_turn("timeline", definition.experiment_id, interval_s=interval_s):
            await self.keep_point(experiment)

    async def keep_point(self, experiment: Experiment) -> None:
        """Keeps a point of the timeline.

        Raises:
            RedisUnavailable: see there.
        """
        definition = experiment.definition
        _, results = await self.results(experiment)
        point = TimelinePoint(
            time_s=self._wall(),
            requests=sum(variant.requests for variant in results.variants),
            comparisons=[
                {
                    "variant": one.variant,
                    "metric": one.metric,
                    "difference": one.difference,
                    "lower": one.interval.lower,
                    "upper": one.interval.upper,
                }
                for one in results.comparisons
            ],
        )
        if point.requests:
            await self._store.note_timeline(definition.experiment_id, msgspec.json.encode(point).decode())

    async def _fix(self, experiment: Experiment, results: ExperimentResults) -> None:
        """Keeps what a first look fixes, and what no later one may take back."""
        if changes := _fixed_by(experiment, results):
            await self._store.move(
                experiment.definition.experiment_id, revision=experiment.revision, changes=changes
            )


def _fixed_by(experiment: Experiment, results: ExperimentResults) -> dict[str, str]:
    """The changes by which a look's lasting findings are kept; none where they are."""
    changes = information_fields(
        {
            pair: value
            for pair, value in results.planned_information.items()
            if pair not in experiment.planned_information
        }
    )
    if results.mismatched and not experiment.mismatched:
        changes["mismatched"] = "1"
        log.warning("experiment_ratio_mismatch", experiment_id=experiment.definition.experiment_id)
    return changes


def _evaluated(experiment: Experiment, stored: StoredCounts) -> tuple[Observations, ExperimentResults]:
    design = experiment.definition.design(units_are_requests=are_units_requests(stored))
    seen = observations_of(experiment, stored, ended=experiment.ended_at is not None)
    return seen, evaluate(design, seen)


def _looked(
    experiment: Experiment, stored: StoredCounts, now_s: float
) -> tuple[ExperimentResults, Move | None]:
    seen, results = _evaluated(experiment, stored)
    return results, look(experiment, stored, seen, results, now_s=now_s)
