"""One worker's connection to what all workers share: it follows the slots, and tells what it did.

Changes elsewhere arrive as events and are read at once; without events (the listener is reconnecting) the answer to
each flush still says that something changed. Counts leave in batches, at most 100 ms after they were made.
"""

import asyncio
import time
import uuid
from contextlib import suppress

import structlog

from control_plane.errors import RedisUnavailable
from control_plane.models.beliefs import Beliefs
from control_plane.store.redis import RedisStore
from control_plane.store.residency import ResidencyStore, Snapshot

log = structlog.get_logger()

FLUSH_INTERVAL_S = 0.1
HEARTBEAT_S = 0.5
ALIVE_S = 3.0
LEASE_S = 5.0


class _Signal:
    """Wakes everyone who waits, each time."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def send(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()


class WorkerLink:
    """Keeps the worker's beliefs and Redis in line."""

    def __init__(self, store: RedisStore, residency: ResidencyStore, beliefs: Beliefs) -> None:
        self.worker = uuid.uuid4().hex[:16]
        self.epoch_lost = asyncio.Event()
        self._residency = residency
        self._beliefs = beliefs
        self._work = asyncio.Event()
        self._stale = True
        self._changed = _Signal()
        self._drained = _Signal()
        self._flushing = asyncio.Lock()
        store.on("slots", self._note_change)
        store.on("unlocked", lambda _: self._changed.send())
        store.on("drained", lambda _: self._drained.send())

    async def sync(self) -> Snapshot:
        """Reads the slots and follows them, unless Redis has lost its memory.

        Raises:
            RedisUnavailable: see there.
        """
        self._stale = False
        snapshot = await self._residency.snapshot()
        known = self._beliefs.epoch
        if not snapshot.epoch or (known and known != snapshot.epoch):
            # Empty slots mean nothing then: what is believed stays believed until the reconciler has rebuilt them.
            self.epoch_lost.set()
        else:
            self._beliefs.apply(snapshot)
        if self._beliefs.urgent:
            self._work.set()
        return snapshot

    async def accept_epoch(self, epoch: str) -> None:
        """Starts to follow Redis after its memory was rebuilt, and tells it all that this worker counted.

        Raises:
            RedisUnavailable: see there.
        """
        if self._beliefs.epoch and self._beliefs.epoch != epoch:
            async with self._flushing:
                self._beliefs.forget_confirmed()
        snapshot = await self._residency.snapshot()
        if snapshot.epoch == epoch:
            self._beliefs.apply(snapshot)
            self.epoch_lost.clear()
        await self.flush()

    async def flush(self) -> None:
        """Tells Redis what this worker did, and that it lives.

        Raises:
            RedisUnavailable: the batch is kept, and told once when Redis is back.
        """
        async with self._flushing:
            if self._beliefs.has_pending:
                await self._flush_once()  # counts of before wait in it
            await self._flush_once()

    async def _flush_once(self) -> None:
        beliefs = self._beliefs
        batch = beliefs.take_batch()
        told = beliefs.epoch  # another task may learn of a new one meanwhile
        try:
            generation, epoch = await self._residency.flush(
                self.worker, beliefs.batch, batch, epoch=told, alive_s=ALIVE_S, lease_s=LEASE_S
            )
        except RedisUnavailable:
            beliefs.dirty = True
            raise
        beliefs.confirm(batch, counted=bool(epoch) and epoch == told)
        if generation != beliefs.generation or epoch != beliefs.epoch:
            self._note_change("")

    def nudge(self) -> None:
        """Has the flusher run now."""
        self._work.set()

    def lost_epoch(self) -> None:
        """Redis has lost its memory, as some script's answer says."""
        self.epoch_lost.set()

    async def changed(self, timeout_s: float) -> None:
        """Waits for a change of slots or locks."""
        await self._changed.wait(timeout_s)

    async def drained(self, timeout_s: float) -> None:
        """Waits for some worker's word that it stopped using a model."""
        await self._drained.wait(timeout_s)

    async def run(self) -> None:
        """Flushes and follows until cancelled; tells Redis at the end that the worker is gone."""
        flushed = 0.0
        try:
            while True:
                # Not `wait_for`: in Python 3.11 it loses a cancellation that comes with the event (cpython 86296).
                with suppress(TimeoutError):
                    async with asyncio.timeout(FLUSH_INTERVAL_S):
                        await self._work.wait()
                self._work.clear()
                try:
                    if self._stale:
                        await self.sync()
                    due = time.monotonic() - flushed >= HEARTBEAT_S
                    if due or self._beliefs.dirty or self._beliefs.urgent:
                        await self.flush()
                        flushed = time.monotonic()
                except RedisUnavailable:
                    # What is known stays valid; the next turn tries again.
                    self._stale = True
        finally:
            await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        with suppress(RedisUnavailable):
            async with self._flushing:
                batch = self._beliefs.take_batch()
                await self._residency.flush(
                    self.worker,
                    self._beliefs.batch,
                    batch,
                    epoch=self._beliefs.epoch,
                    alive_s=0.0,
                    lease_s=0.0,
                )

    def _note_change(self, _subject: str) -> None:
        self._stale = True
        self._work.set()
        self._changed.send()
