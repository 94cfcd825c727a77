"""What callers do with experiments: create, list, read, stop, promote. `service.py` keeps them going."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from control_plane.errors import ExperimentConflict, UnknownExperiment
from control_plane.experiments.certifying import Certifier
from control_plane.experiments.creation import Proposal, define
from control_plane.experiments.definition import Mode, Status
from control_plane.experiments.lifecycle import Move, promotion
from control_plane.experiments.results import ExperimentResults
from control_plane.experiments.service import ExperimentService, TimelinePoint
from control_plane.experiments.state import Experiment, experiment_of, first_state
from control_plane.models.registry import ModelRegistry
from control_plane.store.experiments import ExperimentStore, StoredCounts

_ATTEMPTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """An experiment with all that its counts say."""

    experiment: Experiment
    counts: StoredCounts
    results: ExperimentResults


class ExperimentOperations:
    """All of it.

    Args:
        store: Experiments.
        service: This worker's side of them.
        registry: The versions that variants name.
        certifier: Simulates new experiments.
        wall: Wall time in seconds.
    """

    def __init__(
        self,
        *,
        store: ExperimentStore,
        service: ExperimentService,
        registry: ModelRegistry,
        certifier: Certifier,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._service = service
        self._registry = registry
        self._certifier = certifier
        self._wall = wall

    async def create(self, proposal: Proposal) -> Experiment:
        """Creates an experiment; requests take part at once.

        Raises:
            InvalidInput: it can't be; nothing is stored.
            ExperimentConflict: the id is taken.
            RedisUnavailable: see there.
        """
        await self._registry.refresh()
        definition = define(proposal, self._registry, now_s=self._wall())
        created = await self._store.create(
            definition.experiment_id,
            msgspec.json.encode(definition).decode(),
            first_state(definition),
            created_at=definition.created_at,
        )
        if not created:
            raise ExperimentConflict(
                f"There is an experiment {definition.experiment_id!r} already.",
                expected="an id that was never used",
                got=definition.experiment_id,
                remedy="Choose another id: the same one would give units the same variants as before.",
            )
        await self._service.refresh()
        await self._service.keep_pins()
        self._certifier.begin(definition)
        return await self.get(definition.experiment_id)

    async def get(self, experiment_id: str) -> Experiment:
        """One experiment.

        Raises:
            UnknownExperiment: there is none.
        """
        stored = await self._store.get(experiment_id)
        if stored is None:
            raise UnknownExperiment(
                f"There is no experiment {experiment_id!r}.",
                remedy="GET /api/v1/experiments lists them.",
            )
        return experiment_of(stored)

    async def overview(self) -> list[tuple[Experiment, int]]:
        """All experiments, oldest first, each with its number of requests."""
        experiments = [experiment_of(stored) for stored in await self._store.all()]
        requests = await self._store.requests_of([one.definition.experiment_id for one in experiments])
        return [(one, requests[one.definition.experiment_id]) for one in experiments]

    async def look(self, experiment_id: str) -> Looked:
        """An experiment with its results as of now.

        Raises:
            UnknownExperiment: there is none.
        """
        experiment = await self.get(experiment_id)
        counts, results = await self._service.results(experiment)
        return Looked(experiment=experiment, counts=counts, results=results)

    async def stop(self, experiment_id: str) -> Experiment:
        """Ends an experiment; one that has ended stays as it is.

        Raises:
            UnknownExperiment: there is none.
            ExperimentConflict: it changed again and again meanwhile.
        """
        for _ in range(_ATTEMPTS):
            experiment = await self.get(experiment_id)
            if experiment.status is not Status.ACTIVE:
                return experiment
            stopped = Move(
                to=Status.STOPPED.value,
                changes={"status": Status.STOPPED.value, "ended_at": repr(self._wall())},
                ends=True,
            )
            if await self._service.apply(experiment, stopped):
                await self._service.keep_point(experiment)
                await self._service.keep_pins()
                return await self.get(experiment_id)
        raise _changing(experiment_id)

    async def promote(self, experiment_id: str) -> Experiment:
        """Gives a canary's treatment all requests, until it is stopped.

        Raises:
            UnknownExperiment: there is none.
            ExperimentConflict: it is no canary, has ended or was rolled back; or it changed again and again meanwhile.
        """
        for _ in range(_ATTEMPTS):
            experiment = await self.get(experiment_id)
            if experiment.promoted:
                return experiment
            fault = _cannot_be_promoted(experiment)
            if fault is not None:
                raise ExperimentConflict(
                    f"{experiment_id} can't be promoted: {fault}.", expected="an active canary"
                )
            if await self._service.apply(
                experiment, promotion(experiment, now_s=self._wall(), reason="promoted by a call")
            ):
                return await self.get(experiment_id)
        raise _changing(experiment_id)

    async def timeline(self, experiment_id: str) -> list[TimelinePoint]:
        """What the comparisons said over time, oldest first.

        Raises:
            UnknownExperiment: there is none.
        """
        await self.get(experiment_id)
        points = await self._store.timeline(experiment_id)
        return [msgspec.json.decode(point, type=TimelinePoint) for point in points]


def _cannot_be_promoted(experiment: Experiment) -> str | None:
    if experiment.definition.mode is not Mode.CANARY:
        return f"its mode is {experiment.definition.mode}"
    if experiment.status is not Status.ACTIVE:
        return f"it is {experiment.status}"
    return "it was rolled back" if experiment.rolled_back else None


def _changing(experiment_id: str) -> ExperimentConflict:
    return ExperimentConflict(f"{experiment_id} changed again and again meanwhile.", remedy="Try again.")
