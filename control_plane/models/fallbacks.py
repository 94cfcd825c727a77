"""Keeps the fallbacks of loaded versions loaded, so that they can answer under overload.

Each worker looks every `model_cache.reconcile_interval_s`; what one has done, the others find done. Pins in Redis keep
a fallback from the cache's limit and time to live; those that nobody needs any more are taken off, also by a worker
that didn't put them there.
"""

import asyncio

import structlog

from control_plane.errors import ServingError
from control_plane.models.cache import ModelCache
from control_plane.models.registry import ModelRegistry
from control_plane.settings import Settings
from control_plane.store.residency import SlotState, Snapshot

log = structlog.get_logger()

_OWNER = "fallback-of:"


class FallbackKeeper:
    """One in each worker; `run` is its background task."""

    def __init__(self, *, settings: Settings, registry: ModelRegistry, cache: ModelCache) -> None:
        self._settings = settings.model_cache
        self._registry = registry
        self._cache = cache

    async def run(self) -> None:
        """Looks again and again, until cancelled; while Redis or Triton is down, nothing changes."""
        while True:
            try:
                await self.look()
            except ServingError as error:
                log.debug("fallbacks_postponed", reason=str(error))
            await asyncio.sleep(self._settings.reconcile_interval_s)

    async def look(self) -> None:
        """Pins and loads what is needed, and unpins what isn't.

        Raises:
            RedisUnavailable: see there.
        """
        snapshot = await self._cache.residency.snapshot()
        wanted = self._wanted(snapshot)
        for fallback in snapshot.pinned | wanted.keys():
            owners = await self._cache.residency.pin_owners(fallback)
            ours = {owner for owner in owners if owner.startswith(_OWNER)}
            for owner in wanted.get(fallback, set()) - ours:
                await self._cache.pin(fallback, owner)
                log.info("fallback_kept", model=fallback, owner=owner)
            for owner in ours - wanted.get(fallback, set()):
                await self._cache.unpin(fallback, owner)
                log.info("fallback_released", model=fallback, owner=owner)
        # Where there is no room for both, loading the one would unload the other.
        if self._settings.max_models > 1:
            for fallback in wanted.keys() - snapshot.slots.keys():
                self._cache.start_load(fallback)

    def _wanted(self, snapshot: Snapshot) -> dict[str, set[str]]:
        """The fallbacks of the loaded versions by Triton name, with the owners of their pins."""
        wanted: dict[str, set[str]] = {}
        for key, slot in snapshot.slots.items():
            model = self._registry.get(key)
            name = None if model is None else model.card.serving.fallback
            if model is None or name is None or slot.state is not SlotState.READY:
                continue
            fallback = self._registry.find(model.model_type, name)
            if fallback is not None and fallback is not model:
                wanted.setdefault(fallback.key, set()).add(_OWNER + key)
        return wanted
