"""Locks across all replicas: a token, a time to live that is renewed while held, and a fencing number.

The number rises with every acquisition; what a holder writes carries it, and the scripts refuse an older one. A
holder that dies loses the lock when its time to live ends.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from control_plane.errors import DeadlineExceeded, RedisUnavailable
from control_plane.store.redis import RedisStore
from control_plane.store.scripts import read_script

log = structlog.get_logger()

DEFAULT_TTL_S = 10.0
_POLL_S = 0.05
_ACQUIRE = read_script("lock_acquire")
_RENEW = read_script("lock_renew")
_RELEASE = read_script("lock_release")


class HeldLock:
    """A lock in our hands. `lost` turns true when it could not be renewed in time."""

    def __init__(self, name: str, token: str, fence: int) -> None:
        self.name = name
        self.value = f"{token}:{fence}"
        self.fence = fence
        self.lost = False


class Locks:
    """Takes locks by name."""

    def __init__(self, store: RedisStore, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        self._store = store
        self._ttl_ms = int(ttl_s * 1000)
        self._released = asyncio.Event()
        store.on("unlocked", self._note_release)

    @asynccontextmanager
    async def hold(self, name: str, *, deadline: float) -> AsyncIterator[HeldLock]:
        """Waits for the lock and holds it.

        Args:
            name: What is locked.
            deadline: Monotonic seconds.

        Raises:
            DeadlineExceeded: someone else held it all the time.
            RedisUnavailable: see there.
        """
        token = uuid.uuid4().hex
        held = await self._acquire(name, token)
        while held is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded(f"{name} was locked by another operation until the deadline.")
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _POLL_S)):
                    await self._released.wait()
            held = await self._acquire(name, token)
        async with self._kept(held):
            yield held

    @asynccontextmanager
    async def try_hold(self, name: str) -> AsyncIterator[HeldLock | None]:
        """Holds the lock if nobody else does; yields None otherwise.

        Raises:
            RedisUnavailable: see there.
        """
        held = await self._acquire(name, uuid.uuid4().hex)
        if held is None:
            yield None
            return
        async with self._kept(held):
            yield held

    async def _acquire(self, name: str, token: str) -> HeldLock | None:
        keys = (self._store.keys.lock(name), self._store.keys.fence)
        fence = int(await self._store.run(_ACQUIRE, keys, (token, self._ttl_ms)))
        return HeldLock(name, token, fence) if fence else None

    @asynccontextmanager
    async def _kept(self, held: HeldLock) -> AsyncIterator[None]:
        keeper = asyncio.create_task(self._keep(held))
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.shield(self._release(held))

    async def _keep(self, held: HeldLock) -> None:
        renewed = time.monotonic()
        while time.monotonic() - renewed < self._ttl_ms / 1000:
            await asyncio.sleep(self._ttl_ms / 3000)
            asked = time.monotonic()
            try:
                if not await self._store.run(
                    _RENEW, (self._store.keys.lock(held.name),), (held.value, self._ttl_ms)
                ):
                    break
            except RedisUnavailable:
                continue
            renewed = asked
        held.lost = True
        log.warning("lock_lost", lock=held.name)

    async def _release(self, held: HeldLock) -> None:
        keys = self._store.keys
        try:
            await self._store.run(_RELEASE, (keys.lock(held.name),), (held.value, keys.events, held.name))
        except RedisUnavailable:
            log.warning("lock_left_to_expire", lock=held.name)

    def _note_release(self, _name: str) -> None:
        # Waiters hold the old event; a new one serves those who come later.
        self._released.set()
        self._released = asyncio.Event()
