"""Keeps the fallbacks of loaded versions loaded, so that they can answer under overload.

Each worker looks every `model_cache.reconcile_interval_s`; what one has done, the others find done. Pins in Redis keep
a fallback from the cache's limit and time to live; those that nobody needs any more are taken off, also by a worker
that didn't put them there.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from control_plane.errors import ServingError
from control_plane.models.cache import ModelCache
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.models.serving import fallback_chain
from control_plane.settings import Settings
from control_plane.store.residency import SlotState, Snapshot

log = structlog.get_logger()

OWNER = "fallback-of:"
"""Begins the name of a pin's owner; the Triton name of the version that needs it follows."""
_FIRST_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedFallbacks:
    """What the loaded versions need."""

    owners: Mapping[str, frozenset[str]]
    """By the fallback's Triton name: the owners of its pins."""
    unusable: Mapping[str, str]
    """By the Triton name of the version whose fallback can't be kept: why."""


def wanted_fallbacks(snapshot: Snapshot, registry: ModelRegistry) -> WantedFallbacks:
    """The fallbacks of what is loaded or being loaded. Versions that fall back to each other keep none: neither could
    ever go.
    """
    owners: dict[str, frozenset[str]] = {}
    unusable: dict[str, str] = {}
    for key, slot in snapshot.slots.items():
        model = registry.get(key)
        name = None if model is None else model.card.serving.fallback
        if model is None or name is None or slot.state is SlotState.UNLOADING:
            continue
        fallback = registry.find(model.model_type, name)
        if fallback is None:
            unusable[key] = f"{name} isn't registered"
        elif model.version in (chain := fallback_chain(fallback, registry)):
            unusable[key] = f"it leads back: {' → '.join((model.version, *chain))}"
        else:
            owners[fallback.key] = owners.get(fallback.key, frozenset()) | {OWNER + key}
    return WantedFallbacks(owners=owners, unusable=unusable)


async def release_fallback(cache: ModelCache, key: str) -> None:
    """Ends the pins of a version that is no fallback any more; the next look would do it a little later.

    Raises:
        RedisUnavailable: see there.
    """
    for owner in await cache.residency.pin_owners(key):
        if owner.startswith(OWNER):
            await cache.unpin(key, owner)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A load that was begun, and hasn't been seen to succeed."""

    version: ModelVersion | None
    pause_s: float
    again_at: float


class FallbackKeeper:
    """One in each worker; `run` is its background task.

    Args:
        settings: All settings.
        registry: Which versions exist, and their fallbacks.
        cache: Pins and loads.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        registry: ModelRegistry,
        cache: ModelCache,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings.model_cache
        self._registry = registry
        self._cache = cache
        self._clock = clock
        self._attempts: dict[str, _Attempt] = {}
        self._unusable: Mapping[str, str] = {}

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
        wanted = wanted_fallbacks(snapshot, self._registry)
        self._warn(wanted)
        for fallback in snapshot.pinned | wanted.owners.keys():
            owners = await self._cache.residency.pin_owners(fallback)
            ours = {owner for owner in owners if owner.startswith(OWNER)}
            needed = wanted.owners.get(fallback, frozenset())
            for owner in needed - ours:
                await self._cache.pin(fallback, owner)
                log.info("fallback_kept", model=fallback, owner=owner)
            for owner in ours - needed:
                await self._cache.unpin(fallback, owner)
                log.info("fallback_released", model=fallback, owner=owner)
        # Where there is no room for both, loading the one would unload the other.
        if self._settings.max_models > 1:
            self._load(wanted.owners.keys() - snapshot.slots.keys())
        ready = {key for key, slot in snapshot.slots.items() if slot.state is SlotState.READY}
        for key in self._attempts.keys() & (ready | (self._attempts.keys() - wanted.owners.keys())):
            del self._attempts[key]

    def _load(self, missing: set[str]) -> None:
        """Starts loads. One that Triton refuses displaces another version all the same, so it isn't tried too often."""
        now = self._clock()
        for key in missing:
            version = self._registry.get(key)
            last = self._attempts.get(key)
            if last is None or last.version is not version:
                pause_s = _FIRST_PAUSE_S
            elif now < last.again_at:
                continue
            else:
                pause_s = min(2 * last.pause_s, _LONGEST_PAUSE_S)
            self._attempts[key] = _Attempt(version, pause_s, now + pause_s)
            self._cache.start_load(key)

    def _warn(self, wanted: WantedFallbacks) -> None:
        for key, reason in wanted.unusable.items():
            if self._unusable.get(key) != reason:
                log.warning("fallback_unusable", model=key, reason=reason)
        self._unusable = wanted.unusable
