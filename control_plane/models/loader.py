"""Brings model versions into Triton and out of it, one operation for each model across all replicas.

Order of a load: the model's lock; is it there already; a slot in Redis, for which the least recently used version may
have to leave (all workers stop using it, Triton unloads it, the index shows that it is gone); Triton's load; the slot
becomes `ready`. At no time does Triton hold more than `max_models`. A crash at any step leaves a slot whose lock
expires; the reconciler mends that.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

import structlog

from control_plane.errors import (
    CacheFull,
    DeadlineExceeded,
    ModelInUse,
    ModelNotReady,
    RedisUnavailable,
    ServingError,
    TritonUnavailable,
)
from control_plane.models.beliefs import Beliefs
from control_plane.models.link import LEASE_S, WorkerLink
from control_plane.settings import Settings
from control_plane.store.lock import HeldLock, Locks
from control_plane.store.residency import ReserveOutcome, ResidencyStore, SlotState, UnloadMode, UnloadOutcome
from control_plane.telemetry.logs import MODEL_LOADED
from control_plane.telemetry.metrics import (
    MODEL_CACHE_EVICTIONS,
    MODEL_CACHE_EXPIRATIONS,
    MODEL_LOAD_SECONDS,
    MODEL_LOADS,
)
from control_plane.triton.client import TritonClient

log = structlog.get_logger()

_INDEX_POLL_S = 0.02
_SLOT_POLL_S = 0.05
_DRAIN_POLL_S = 0.02
_EVICTION_DRAIN_S = 5.0
_EVICTION_SETTLE_S = 0.2
_SETTLE_S = 10.0
_GONE = frozenset({"", "UNAVAILABLE"})
_ATTEMPTS = 3


class LoadStage(StrEnum):
    """Where a load is."""

    LOCK = "lock"
    SLOT = "slot"
    LOADING = "loading"


@dataclass(slots=True, kw_only=True)
class Demand:
    """Who wants the load: it waits for a slot until the last waiter's deadline (monotonic seconds)."""

    deadline: float
    wanted: bool = False
    """Whether a prediction waits."""
    stage: LoadStage = LoadStage.LOCK
    held: bool = False
    """The loader counts the model as in use; who made the demand ends that (`Beliefs.done`) after its waiters' turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What a load did: seconds in Triton's load call (0 when it was there already), and who had to leave."""

    load_time_s: float = 0.0
    evicted: tuple[str, ...] = ()


class Loader:
    """Loads and unloads for one worker.

    Args:
        settings: All settings.
        triton: The client.
        residency: The slots.
        locks: Locks across replicas.
        beliefs: What this worker believes loaded.
        link: Keeps those beliefs in line with Redis.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        triton: TritonClient,
        residency: ResidencyStore,
        locks: Locks,
        beliefs: Beliefs,
        link: WorkerLink,
    ) -> None:
        self._max_models = settings.model_cache.max_models
        self._load_timeout_s = settings.triton.load_timeout_s
        self._drain_timeout_s = settings.triton.timeout_s + _EVICTION_DRAIN_S
        self._triton = triton
        self._residency = residency
        self._locks = locks
        self._beliefs = beliefs
        self._link = link

    async def load(self, key: str, demand: Demand) -> LoadReport:
        """Makes the model ready in Triton and in Redis.

        Raises:
            CacheFull: every slot was in use until the deadline.
            ModelLoadFailed: Triton refused it; its slot is free again.
            RedisUnavailable, TritonUnavailable, DeadlineExceeded: see there.
        """
        for _ in range(_ATTEMPTS):
            try:
                async with self._locks.hold(key, deadline=time.monotonic() + self._load_timeout_s) as held:
                    report = await self._load_locked(key, held, demand)
            except RedisUnavailable:
                if not await self._is_in_triton(key):
                    raise
                # Predictions go on without Redis; the reconciler gives it a slot later.
                self._beliefs.believe(key, _type_of(key), 0)
                return LoadReport()
            if report is not None:
                return report
        raise ModelNotReady(
            f"Other operations on {key} kept taking over.", remedy="Try again after Retry-After."
        )

    async def _load_locked(self, key: str, held: HeldLock, demand: Demand) -> LoadReport | None:
        snapshot = await self._residency.snapshot()
        slot = snapshot.slots.get(key)
        in_triton = await self._is_in_triton(key)
        restart = False
        if (
            slot is not None
            and slot.state is SlotState.READY
            and in_triton
            and snapshot.epoch == self._beliefs.epoch
        ):
            restart = self._beliefs.is_lost(key, slot.fence)
            if not restart:
                self._beliefs.believe(key, _type_of(key), slot.fence)
                return LoadReport()
        demand.stage = LoadStage.SLOT
        evicted = await self._reserve(key, held, demand)
        demand.stage = LoadStage.LOADING
        started = time.monotonic()
        try:
            if restart:
                # Triton calls it ready and yet doesn't answer for it: its Python backend never revives a model
                # process that died while idle (seen in 2.51).
                # That unload may never end, so nobody waits for it.
                log.warning("model_restarted", model=key)
                await self._triton.unload(key)
            else:
                await self._settle(key, gone=False)
            await self._triton.load(key, timeout_s=self._load_timeout_s)
        except ServingError as error:
            MODEL_LOADS.labels(_type_of(key), "failed").inc()
            log.warning("model_load_failed", model=key, reason=str(error))
            await self._give_up(key, held, error)
            raise
        took_s = time.monotonic() - started
        MODEL_LOADS.labels(_type_of(key), "ok").inc()
        MODEL_LOAD_SECONDS.labels(_type_of(key)).observe(took_s)
        log.info(MODEL_LOADED, model=key, load_time_ms=round(took_s * 1000, 1), evicted=list(evicted))
        if not await self._note_ready(key, held, demand):
            return None
        return LoadReport(load_time_s=took_s, evicted=evicted)

    async def _note_ready(self, key: str, held: HeldLock, demand: Demand) -> bool:
        if demand.wanted and not demand.held:
            self._beliefs.hold(key, _type_of(key))
            demand.held = True
        now = time.time()
        lease_s = LEASE_S if demand.wanted else 0.0
        with suppress(RedisUnavailable):
            # Without Redis it serves all the same, since Triton has it; the reconciler settles the slot.
            if not await self._residency.mark_ready(
                key, held.fence, used=now, loaded_at=now, worker=self._link.worker, lease_s=lease_s
            ):
                return False
            if demand.wanted:
                self._beliefs.note_lease(key)
        self._beliefs.believe(key, _type_of(key), held.fence)
        with suppress(RedisUnavailable):
            await self._link.sync()
        return True

    async def _give_up(self, key: str, held: HeldLock, error: ServingError) -> None:
        if isinstance(error, DeadlineExceeded):
            # It may still be loading there, and nobody would know of it.
            with suppress(ServingError):
                await self._triton.unload(key)
        with suppress(RedisUnavailable):
            await self._residency.free(key, held.fence)

    async def _reserve(self, key: str, held: HeldLock, demand: Demand) -> tuple[str, ...]:
        await self._link.flush()
        while True:
            outcome, victim = await self._residency.reserve(
                key, held.fence, most=self._max_models, epoch=self._beliefs.epoch
            )
            if outcome is ReserveOutcome.RESERVED:
                return ()
            if outcome is ReserveOutcome.EVICT:
                if await self._evict(victim, held, successor=key):
                    return (victim,)
                continue
            if outcome is ReserveOutcome.STALE:
                self._link.lost_epoch()
            if time.monotonic() >= demand.deadline:
                raise CacheFull(
                    f"All {self._max_models} slots are in use, so {key} cannot be loaded.",
                    expected="a version that is neither in use, pinned nor loading",
                    remedy="Try again after Retry-After, or raise model_cache.max_models.",
                )
            await self._link.changed(_SLOT_POLL_S)

    async def _evict(self, victim: str, held: HeldLock, *, successor: str) -> bool:
        try:
            await self._drain(victim, held.fence, time.monotonic() + _EVICTION_DRAIN_S)
            await self._triton.unload(victim)
            # No worker uses it, and Triton serves it no more. A native backend frees its memory within this time; the
            # process of Triton's Python backend lingers a second whatever happens, and isn't waited for.
            with suppress(TimeoutError):
                async with asyncio.timeout(_EVICTION_SETTLE_S):
                    await self._settle(victim, gone=True)
        except DeadlineExceeded:
            await self._residency.abort_unload(victim, held.fence)
            return False
        except ServingError:
            with suppress(RedisUnavailable):
                await self._residency.abort_unload(victim, held.fence)
            raise
        if not await self._residency.end_unload(victim, held.fence, counter="evictions", successor=successor):
            return False
        self._beliefs.count_told("evictions")
        MODEL_CACHE_EVICTIONS.labels(_type_of(victim)).inc()
        log.info("model_evicted", model=victim, successor=successor)
        return True

    async def unload(
        self, key: str, mode: UnloadMode, *, deadline: float, idle_since: float = 0.0
    ) -> UnloadOutcome:
        """Takes the model out of Triton, once no request uses it.

        Args:
            mode: `idle` and `surplus` leave it when it is in use.
            deadline: Monotonic seconds for the lock and for the requests in flight.
            idle_since: For `idle`: leave it when it was used after this (wall seconds).

        Returns:
            `unloading` when it was loaded and now is not; `gone` when it wasn't loaded; else why it stays.

        Raises:
            ModelInUse: it is pinned (mode `explicit`).
            DeadlineExceeded: its requests in flight did not end in time; it serves on.
            RedisUnavailable, TritonUnavailable: see there.
        """
        async with self._locks.hold(key, deadline=deadline) as held:
            outcome = await self._residency.begin_unload(key, held.fence, mode, idle_since=idle_since)
            while outcome is UnloadOutcome.BUSY:
                if time.monotonic() >= deadline:
                    raise DeadlineExceeded(f"{key} was being evicted until the deadline.")
                await self._link.changed(_SLOT_POLL_S)
                outcome = await self._residency.begin_unload(key, held.fence, mode, idle_since=idle_since)
            if outcome is UnloadOutcome.PINNED and mode is UnloadMode.EXPLICIT:
                raise ModelInUse(
                    f"{key} is pinned: an active experiment, or a loaded version whose fallback it is, needs it.",
                    remedy="Stop the experiment, or unload that version or change its fallback, first.",
                )
            if outcome is UnloadOutcome.GONE:
                await self._take_out(key)
            if outcome is not UnloadOutcome.UNLOADING:
                return outcome
            try:
                await self._drain(key, held.fence, min(deadline, time.monotonic() + self._drain_timeout_s))
                await self._take_out(key)
            except ServingError:
                with suppress(RedisUnavailable):
                    await self._residency.abort_unload(key, held.fence)
                raise
            counter = (
                "expirations"
                if mode is UnloadMode.IDLE
                else "evictions"
                if mode is UnloadMode.SURPLUS
                else ""
            )
            await self._residency.end_unload(key, held.fence, counter=counter)
            if counter:
                self._beliefs.count_told(counter)
            if mode is UnloadMode.IDLE:
                MODEL_CACHE_EXPIRATIONS.labels(_type_of(key)).inc()
            elif mode is UnloadMode.SURPLUS:
                MODEL_CACHE_EVICTIONS.labels(_type_of(key)).inc()
            log.info("model_unloaded", model=key, reason=mode.value)
            await self._link.sync()
            return outcome

    async def reload(self, key: str) -> float | None:
        """Has Triton read a loaded model's changed files; it serves on meanwhile.

        Returns:
            Seconds in Triton's load call; None when the model isn't loaded.

        Raises:
            ModelLoadFailed: Triton refused them, and goes on with the old ones.
        """
        async with self._locks.hold(key, deadline=time.monotonic() + self._load_timeout_s):
            if not await self._is_in_triton(key):
                return None
            started = time.monotonic()
            await self._triton.load(key, timeout_s=self._load_timeout_s)
            took_s = time.monotonic() - started
        log.info(MODEL_LOADED, model=key, load_time_ms=round(took_s * 1000, 1), evicted=[])
        return took_s

    async def _drain(self, key: str, fence: int, deadline: float) -> None:
        await self._link.sync()
        await self._link.flush()
        while await self._residency.undrained(key, fence):
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(f"The requests in flight on {key} did not end in time.")
            await self._link.drained(_DRAIN_POLL_S)

    async def _take_out(self, key: str) -> None:
        if (await self._states()).get(key, "") in _GONE:
            return
        await self._triton.unload(key)
        await self._settle(key, gone=True)

    async def _settle(self, key: str, *, gone: bool) -> None:
        """Waits until Triton has unloaded the model (`gone`), or at least is not in the midst of a change."""
        deadline = time.monotonic() + _SETTLE_S
        while True:
            state = (await self._states()).get(key, "")
            if state in _GONE or (not gone and state == "READY"):
                return
            if time.monotonic() >= deadline:
                if state == "READY":
                    raise TritonUnavailable(f"Triton does not unload {key}.", remedy="Restart Triton.")
                # No worker uses it, so nothing is in flight there: Triton waits for a model process that is dead
                # (seen in 2.51). It serves nothing any more, and can be loaded anew.
                log.warning("triton_state_hangs", model=key, state=state)
                return
            await asyncio.sleep(_INDEX_POLL_S)

    async def _states(self) -> dict[str, str]:
        return {entry.name: entry.state for entry in await self._triton.repository_index()}

    async def _is_in_triton(self, key: str) -> bool:
        return await self._triton.is_model_ready(key)


def _type_of(key: str) -> str:
    return key.partition("-")[0]
