"""Which versions are loaded: the part of the model cache that the rest of the control plane talks to.

On a prediction's path `try_use` and `done` are a few microseconds in memory, without Redis. `ensure_loaded` makes all
callers in this worker share one load; the loader makes all workers share one.
"""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from control_plane.errors import CacheFull, DeadlineExceeded, ModelLoadFailed, ServingError, ShuttingDown
from control_plane.models.beliefs import Beliefs
from control_plane.models.link import WorkerLink
from control_plane.models.loader import Demand, Loader, LoadReport, LoadStage
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.settings import Settings
from control_plane.store.lock import Locks
from control_plane.store.redis import RedisStore
from control_plane.store.residency import ResidencyStore, SlotState, Snapshot, UnloadMode, UnloadOutcome
from control_plane.telemetry.logs import CACHE_MISS
from control_plane.triton.client import TritonClient

log = structlog.get_logger()

_FAILURE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """A loaded version, for the statistics. Times are wall seconds; `ttl_remaining_s` is None without a TTL."""

    key: str
    model_type: str
    version: str
    loaded_at: float
    last_used: float
    usage_count: int
    ttl_remaining_s: float | None
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """The cache over all workers."""

    max_capacity: int
    total_usage: int
    models: tuple[CachedModel, ...]
    hits: int
    misses: int
    evictions: int
    expirations: int

    @property
    def hit_rate(self) -> float:
        """Hits over hits and misses; 0 before the first."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """One version's state and use over all workers."""

    state: str
    usage_count: int
    loaded_at: float | None
    last_used: float | None


class _Flight:
    """A load that any number of callers wait for."""

    __slots__ = ("demand", "task", "waiters")

    def __init__(self, demand: Demand, task: "asyncio.Task[LoadReport]") -> None:
        self.demand = demand
        self.task = task
        self.waiters = 0


class ModelCache:
    """The model cache of one worker. `run_flusher` must run beside it; `aclose` ends its loads."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: RedisStore,
        triton: TritonClient,
        registry: ModelRegistry,
        locks: Locks,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self.residency = ResidencyStore(store)
        self.locks = locks
        self.beliefs = Beliefs(enable_metrics=settings.model_cache.enable_metrics)
        self.link = WorkerLink(store, self.residency, self.beliefs)
        self.loader = Loader(
            settings=settings,
            triton=triton,
            residency=self.residency,
            locks=locks,
            beliefs=self.beliefs,
            link=self.link,
        )
        self._flights: dict[str, _Flight] = {}
        self._failures: dict[str, tuple[float, ModelVersion, ModelLoadFailed]] = {}
        self._closing = False

    def try_use(self, model: ModelVersion) -> bool:
        """Starts a use of a version that is believed loaded, counted as a hit. `done` must follow.

        Returns:
            False when it isn't believed loaded; nothing is counted then.
        """
        return self.beliefs.try_use(model.key)

    def done(self, model: ModelVersion) -> None:
        """Ends a use."""
        self.beliefs.done(model.key)
        if self.beliefs.urgent:
            self.link.nudge()

    def report_lost(self, model: ModelVersion) -> None:
        """Triton said that it doesn't hold the version: the next use loads it again."""
        self.beliefs.lose(model.key)

    async def ensure_loaded(self, model: ModelVersion, *, deadline: float) -> None:
        """Loads a version, or waits for the load that is under way; counted as a miss. Call `try_use` right after,
        with nothing awaited in between, and come back here where that fails.

        Args:
            model: The version.
            deadline: Monotonic seconds. The load goes on when it passes, or when the caller is cancelled.

        Raises:
            CacheFull: every slot was in use until the deadline.
            DeadlineExceeded: the load takes longer.
            ModelLoadFailed, RedisUnavailable, TritonUnavailable, ShuttingDown: see there.
        """
        if self.beliefs.is_ready(model.key):
            return
        self.beliefs.miss(model.model_type)
        self._refuse_known_failure(model)
        flight = self._join(model.key, deadline, wanted=True, version=model)
        await self._wait(flight, model.key, deadline)
        self.beliefs.owe(model.key)

    async def load(self, model: ModelVersion, *, deadline: float, fresh: bool = False) -> LoadReport:
        """Loads a version without counting anything: for operators and warm-up.

        Args:
            model: The version.
            deadline: Monotonic seconds.
            fresh: Ask Triton even where the version is believed loaded, or failed to load a moment ago.

        Raises:
            As `ensure_loaded`.
        """
        if fresh:
            self._failures.pop(model.key, None)
        elif self.beliefs.is_ready(model.key):
            return LoadReport()
        flight = self._join(model.key, deadline, wanted=False, version=model)
        return await self._wait(flight, model.key, deadline)

    async def reload(self, model: ModelVersion) -> float | None:
        """Has Triton read a loaded version's changed files; returns seconds, or None when it isn't loaded.

        Raises:
            ModelLoadFailed: Triton refused them, and goes on with the old ones.
            DeadlineExceeded, RedisUnavailable, TritonUnavailable: see there.
        """
        self._failures.pop(model.key, None)
        return await self.loader.reload(model.key)

    def start_load(self, key: str) -> None:
        """Starts a load that nobody waits for: for the reconciler."""
        self._join(key, time.monotonic() + self._settings.triton.load_timeout_s, wanted=False, version=None)

    async def unload(self, key: str, *, deadline: float) -> bool:
        """Unloads a version once its requests in flight are done; true when it was loaded.

        Raises:
            ModelInUse: it is pinned.
            DeadlineExceeded, RedisUnavailable, TritonUnavailable: see there.
        """
        outcome = await self.loader.unload(key, UnloadMode.EXPLICIT, deadline=deadline)
        return outcome is UnloadOutcome.UNLOADING

    async def pin(self, key: str, owner: str) -> None:
        """Keeps a version from being unloaded, for as long as `owner` wants; it need not be loaded.

        Raises:
            RedisUnavailable: see there.
        """
        await self.residency.set_pin(key, owner, on=True)

    async def unpin(self, key: str, owner: str) -> None:
        """Ends `owner`'s pin.

        Raises:
            RedisUnavailable: see there.
        """
        await self.residency.set_pin(key, owner, on=False)

    def is_loaded(self, model: ModelVersion) -> bool:
        """Whether the version is believed loaded."""
        return self.beliefs.is_ready(model.key)

    def loaded_keys(self) -> list[str]:
        """Triton names of the versions believed loaded, sorted."""
        return sorted(self.beliefs.ready_models())

    def summary(self) -> dict[str, Any]:
        """What this worker believes, without asking anyone, as /health shows it."""
        return {
            "total_models": len(self.beliefs.ready_models()),
            "max_capacity": self._settings.model_cache.max_models,
            "loaded": self.loaded_keys(),
            "loading": sorted(key for key, flight in self._flights.items() if not flight.task.done()),
        }

    async def stats(self) -> CacheStats:
        """The statistics over all workers; this worker's counts are brought in first.

        Raises:
            RedisUnavailable: see there.
        """
        await self.link.flush()
        snapshot = await self.link.sync()
        totals = await self.residency.totals()
        ttl_s = self._settings.model_cache.ttl_seconds
        now = time.time()
        models = []
        for key, slot in sorted(snapshot.slots.items()):
            if slot.state is not SlotState.READY:
                continue
            registered = self._registry.get(key)
            model_type, _, version = key.partition("-")
            last_used = snapshot.last_used.get(key, 0.0)
            models.append(
                CachedModel(
                    key=key,
                    model_type=model_type,
                    version=version,
                    loaded_at=totals.loaded_at.get(key, last_used),
                    last_used=last_used,
                    usage_count=totals.usage.get(key, 0),
                    ttl_remaining_s=max(0.0, ttl_s - (now - last_used)) if ttl_s else None,
                    size_bytes=registered.card.size_bytes if registered else 0,
                )
            )
        return CacheStats(
            max_capacity=self._settings.model_cache.max_models,
            total_usage=sum(totals.usage.values()),
            models=tuple(models),
            hits=totals.hits,
            misses=totals.misses,
            evictions=totals.evictions,
            expirations=totals.expirations,
        )

    async def states(self, keys: Iterable[str]) -> dict[str, ModelState]:
        """State and use of versions; from this worker's memory alone while Redis is down."""
        snapshot: Snapshot | None = None
        usage: dict[str, int] = {}
        loaded_at: dict[str, float] = {}
        with suppress(ServingError):
            snapshot = await self.residency.snapshot()
            totals = await self.residency.totals()
            usage, loaded_at = dict(totals.usage), dict(totals.loaded_at)
        believed = self.beliefs.ready_models()
        states = {}
        for key in keys:
            slot = snapshot.slots.get(key) if snapshot is not None else None
            if snapshot is None:
                state = "ready" if key in believed else "unloaded"
            else:
                state = slot.state.value if slot is not None else "unloaded"
            states[key] = ModelState(
                state=state,
                usage_count=usage.get(key, 0),
                loaded_at=loaded_at.get(key),
                last_used=snapshot.last_used.get(key) if snapshot is not None else believed.get(key),
            )
        return states

    async def run_flusher(self) -> None:
        """Keeps beliefs and Redis in line, until cancelled."""
        await self.link.run()

    async def aclose(self) -> None:
        """Cancels the loads that are under way; whoever waits gets ShuttingDown."""
        self._closing = True
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _join(self, key: str, deadline: float, *, wanted: bool, version: ModelVersion | None) -> _Flight:
        if self._closing:
            raise ShuttingDown("This worker is stopping and loads nothing any more.")
        flight = self._flights.get(key)
        if flight is None or flight.task.done():
            demand = Demand(deadline=deadline, wanted=wanted)
            task = asyncio.create_task(self.loader.load(key, demand), name=f"load {key}")
            task.add_done_callback(lambda done: self._land(key, version, done))
            flight = self._flights[key] = _Flight(demand, task)
            if wanted and version is not None:
                log.info(CACHE_MISS, model_type=version.model_type, version=version.version)
        else:
            flight.demand.deadline = max(flight.demand.deadline, deadline)
            flight.demand.wanted = flight.demand.wanted or wanted
        return flight

    def _land(self, key: str, version: ModelVersion | None, task: "asyncio.Task[LoadReport]") -> None:
        flight = self._flights.get(key)
        if flight is not None and flight.task is task:
            del self._flights[key]
            self._end_hold(flight, key)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, ModelLoadFailed) and version is not None:
            self._failures[key] = (time.monotonic() + _FAILURE_S, version, error)
        if error is not None and not isinstance(error, ServingError):
            log.error("model_load_crashed", model=key, exc_info=error)

    def _end_hold(self, flight: _Flight, key: str) -> None:
        if flight.demand.held and flight.waiters == 0 and flight.task.done():
            flight.demand.held = False
            self.beliefs.done(key)
            self.link.nudge()

    def _refuse_known_failure(self, model: ModelVersion) -> None:
        # A version that Triton can't load would, asked for again and again, drive good ones out of their slots.
        until, failed, error = self._failures.get(model.key, (0.0, model, None))
        if error is not None and time.monotonic() < until and failed is model:
            raise _again(error)

    async def _wait(self, flight: _Flight, key: str, deadline: float) -> LoadReport:
        flight.waiters += 1
        try:
            await asyncio.wait({flight.task}, timeout=max(0.0, deadline - time.monotonic()))
        finally:
            flight.waiters -= 1
            # After the caller's next step, which is `try_use`.
            asyncio.get_running_loop().call_soon(self._end_hold, flight, key)
        if not flight.task.done():
            if flight.demand.stage is LoadStage.SLOT:
                raise CacheFull(
                    f"All {self._settings.model_cache.max_models} slots are in use, so {key} cannot be loaded yet.",
                    remedy="Try again after Retry-After, or raise model_cache.max_models.",
                )
            raise DeadlineExceeded(
                f"{key} is still being loaded.",
                remedy="Try again shortly, or load it ahead with POST /api/v1/models/warmup.",
            )
        if flight.task.cancelled():
            raise ShuttingDown("This worker is stopping.")
        error = flight.task.exception()
        if isinstance(error, ServingError):
            raise _again(error) from error
        return flight.task.result()


def _again(error: ServingError) -> ServingError:
    """The same error for another waiter: one exception raised in many tasks would gather all their tracebacks."""
    return type(error)(
        error.detail, expected=error.expected, got=error.got, remedy=error.remedy, facts=error.facts
    )
