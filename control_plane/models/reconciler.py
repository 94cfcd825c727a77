"""Holds Redis to what Triton's repository index says, and mends the difference: each worker looks, one mends.

It heals what was cut short: a worker that died in a load, a Triton that restarted empty (what was loaded comes back), a
Redis that restarted empty (its slots are rebuilt from Triton and from the workers' memory). It also lets go of versions
whose time to live has passed.
"""

import asyncio
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress

import structlog

from control_plane.errors import DeadlineExceeded, RedisUnavailable, ServingError, TritonUnavailable
from control_plane.models.aliases import Aliases
from control_plane.models.cache import ModelCache
from control_plane.models.registry import ModelRegistry
from control_plane.models.residency import IN_TRANSIT, READY, Action, Mend, idle_models, plan_mending
from control_plane.settings import Settings
from control_plane.store.residency import ClaimOutcome, SlotState, Snapshot, UnloadMode
from control_plane.telemetry.metrics import MODELS_LOADED, RECONCILIATIONS, TRITON_UP
from control_plane.triton.client import TritonClient

log = structlog.get_logger()

_LOCK = "reconciler"
_WHILE_DOWN_S = 0.25
_UNLOAD_DEADLINE_S = 10.0


class Reconciler:
    """One in each worker; `run` is its background task."""

    def __init__(
        self,
        *,
        settings: Settings,
        triton: TritonClient,
        registry: ModelRegistry,
        aliases: Aliases,
        cache: ModelCache,
    ) -> None:
        self._settings = settings.model_cache
        self._triton = triton
        self._registry = registry
        self._aliases = aliases
        self._cache = cache
        self.triton_up = False

    async def run(self) -> None:
        """Reconciles every `model_cache.reconcile_interval_s`, more often while something is down."""
        while True:
            healthy = False
            try:
                await self.reconcile()
                healthy = True
            except (RedisUnavailable, TritonUnavailable, DeadlineExceeded) as error:
                log.debug("reconcile_postponed", reason=str(error))
            except ServingError as error:
                log.warning("reconcile_failed", reason=str(error))
            wait_s = self._settings.reconcile_interval_s
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s if healthy else min(wait_s, _WHILE_DOWN_S)):
                    await self._cache.link.epoch_lost.wait()
            if self._cache.link.epoch_lost.is_set() and not healthy:
                await asyncio.sleep(_WHILE_DOWN_S)

    async def reconcile(self) -> None:
        """Looks once, and mends.

        Raises:
            TritonUnavailable, DeadlineExceeded: Triton's index can't be read; beliefs stay as they are.
            RedisUnavailable: beliefs follow Triton's index alone.
        """
        await self._registry.refresh()
        index = await self._read_index()
        try:
            snapshot = await self._cache.residency.snapshot()
        except RedisUnavailable:
            self._follow_triton(index)
            raise
        link, beliefs = self._cache.link, self._cache.beliefs
        if not snapshot.epoch or (beliefs.epoch and snapshot.epoch != beliefs.epoch):
            await self._rebuild()
            return
        if not beliefs.epoch:
            await link.accept_epoch(snapshot.epoch)
        beliefs.apply(snapshot)
        for key, slot in snapshot.slots.items():
            if slot.state is SlotState.READY and index.get(key) != READY and index.get(key) not in IN_TRANSIT:
                beliefs.lose(key)
        actions = self._plan(index, snapshot, {})
        if actions:
            async with self._cache.locks.try_hold(_LOCK) as held:
                if held is not None:
                    await self._mend(actions, {})
        await self._expire(snapshot)

    async def _read_index(self) -> dict[str, str]:
        try:
            entries = await self._triton.repository_index()
        except ServingError:
            self._note_triton(up=False)
            raise
        self._note_triton(up=True)
        index = {entry.name: entry.state for entry in entries}
        MODELS_LOADED.set(sum(state == READY for state in index.values()))
        return index

    def _note_triton(self, *, up: bool) -> None:
        if up is not self.triton_up:
            log.info("triton_up") if up else log.warning("triton_down")
        self.triton_up = up
        TRITON_UP.set(1 if up else 0)

    def _follow_triton(self, index: Mapping[str, str]) -> None:
        beliefs = self._cache.beliefs
        for key in beliefs.ready_models():
            if index.get(key) != READY and index.get(key) not in IN_TRANSIT:
                beliefs.lose(key)
        for key, state in index.items():
            version = self._registry.get(key)
            if state == READY and version is not None and not beliefs.is_ready(key):
                beliefs.believe(key, version.model_type, 0)

    async def _rebuild(self) -> None:
        """Redis is empty, or was and another worker has filled it: slots first, then the epoch, then our counts."""
        async with self._cache.locks.hold(_LOCK, deadline=time.monotonic() + _UNLOAD_DEADLINE_S):
            index = await self._read_index()
            snapshot = await self._cache.residency.snapshot()
            epoch = snapshot.epoch
            remembered = self._cache.beliefs.ready_models()
            actions = self._plan(index, snapshot, remembered)
            log.warning("redis_memory_rebuilt", new_epoch=not epoch, actions=len(actions))
            at_once = [action for action in actions if action.mend is not Mend.RELOAD]
            await self._mend(at_once, remembered)
            if not epoch:
                epoch = await self._cache.residency.begin_epoch(uuid.uuid4().hex)
            await self._cache.link.accept_epoch(epoch)
            await self._aliases.restore()
            await self._mend([action for action in actions if action.mend is Mend.RELOAD], remembered)

    def _plan(
        self, index: Mapping[str, str], snapshot: Snapshot, remembered: Mapping[str, float]
    ) -> list[Action]:
        return plan_mending(
            index,
            snapshot,
            registered=self._registry.keys,
            remembered=remembered,
            max_models=self._settings.max_models,
        )

    async def _mend(self, actions: list[Action], remembered: Mapping[str, float]) -> None:
        for action in actions:
            try:
                mended = await self._act(action, remembered)
            except (RedisUnavailable, TritonUnavailable):
                raise
            except ServingError as error:
                log.warning("mending_failed", action=action.mend.value, model=action.model, reason=str(error))
                continue
            if mended:
                RECONCILIATIONS.labels(action.mend.value).inc()
                log.info("mended", action=action.mend.value, model=action.model)

    async def _act(self, action: Action, remembered: Mapping[str, float]) -> bool:
        key = action.model
        residency = self._cache.residency
        if action.mend is Mend.RELOAD:
            self._cache.beliefs.lose(key)
            self._cache.start_load(key)
            return True
        if action.mend is Mend.RETIRE:
            deadline = time.monotonic() + _UNLOAD_DEADLINE_S
            await self._cache.loader.unload(key, UnloadMode.SURPLUS, deadline=deadline)
            return True
        async with self._cache.locks.try_hold(key) as held:
            if held is None:
                return False
            # Under the lock nobody else changes the model; what was seen before may be over.
            index = await self._read_index()
            snapshot = await residency.snapshot()
            if action not in self._plan(index, snapshot, remembered):
                return False
            used = remembered.get(key, snapshot.last_used.get(key, time.time()))
            if action.mend is Mend.UNLOAD:
                await self._triton.unload(key)
                return True
            claimed = await residency.claim(
                key,
                held.fence,
                SlotState.READY,
                most=self._settings.max_models,
                used=used,
                loaded_at=time.time(),
            )
            if claimed is not ClaimOutcome.CLAIMED:
                return False
            if action.mend is Mend.FREE:
                await residency.free(key, held.fence)
            return True

    async def _expire(self, snapshot: Snapshot) -> None:
        ttl_s = self._settings.ttl_seconds
        if not ttl_s:
            return
        idle_since = time.time() - ttl_s
        idle = idle_models(snapshot, idle_since=idle_since)
        if not idle:
            return
        await self._cache.link.flush()
        for key in idle:
            deadline = time.monotonic() + _UNLOAD_DEADLINE_S
            await self._cache.loader.unload(key, UnloadMode.IDLE, deadline=deadline, idle_since=idle_since)
