"""Keeps decisions until their rewards come: noted in memory while a request is answered, written in batches after it.

With Redis away they wait, up to a bound; those beyond it are dropped and counted. What a killed worker had not written
is lost: at most one interval's decisions, whose feedback then is `unknown`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import structlog

from control_plane.ensembles.records import DecisionRecord, record_of, to_text
from control_plane.errors import RedisUnavailable
from control_plane.inference.decisions import Decision
from control_plane.models.card import ModelCard
from control_plane.settings import FeedbackSettings
from control_plane.store.ensembles import EnsembleStore
from control_plane.telemetry import metrics

log = structlog.get_logger()

_BATCH = 500
_RETRY_S = 0.5


class DecisionRecorder:
    """The decisions of one worker that aren't written yet.

    Args:
        store: Where they go.
        settings: Bounds and intervals.
        wall: Wall time in seconds.
    """

    def __init__(
        self, store: EnsembleStore, settings: FeedbackSettings, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._settings = settings
        self._wall = wall
        self._waiting: deque[tuple[str, DecisionRecord]] = deque()
        self._many = asyncio.Event()
        self._flushing = asyncio.Lock()

    @property
    def waiting(self) -> int:
        """How many aren't written yet."""
        return len(self._waiting)

    def note(self, request_id: str, card: ModelCard, decision: Decision) -> tuple[str, ...]:
        """See `DecisionSink`."""
        rows = len(decision.actions)
        if rows > self._settings.max_rows:
            most = self._settings.max_rows
            return (f"No feedback can be given to this request: decisions are kept of at most {most} rows.",)
        if not np.isfinite(decision.agent_probs.sum()):
            return ("No feedback can be given to this request: the agents' probabilities aren't finite.",)
        if len(self._waiting) >= self._settings.max_waiting:
            metrics.DECISIONS_DROPPED.inc()
            return (
                "No feedback can be given to this request: Redis doesn't answer, and too many wait for it.",
            )
        self._waiting.append((request_id, record_of(card, decision, time_s=self._wall())))
        if len(self._waiting) >= _BATCH:
            self._many.set()
        return ()

    async def run(self) -> None:
        """Writes what waits, every `flush_interval_s` or as soon as there is a batch of it, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._settings.flush_interval_s):
                    await self._many.wait()
            except TimeoutError:
                pass
            self._many.clear()
            try:
                await self.flush()
            except RedisUnavailable:
                await asyncio.sleep(_RETRY_S)

    async def flush(self) -> None:
        """Writes all that waits.

        Raises:
            RedisUnavailable: what isn't written still waits.
        """
        async with self._flushing:
            while self._waiting:
                batch = [self._waiting[position] for position in range(min(_BATCH, len(self._waiting)))]
                await self._store.put_decisions({one: to_text(record) for one, record in batch})
                for _ in batch:
                    self._waiting.popleft()
                metrics.DECISIONS_RECORDED.inc(len(batch))

    async def aclose(self) -> None:
        """Writes the rest, where Redis takes it."""
        try:
            await self.flush()
        except RedisUnavailable:
            log.warning("decisions_lost", decisions=len(self._waiting))
            metrics.DECISIONS_DROPPED.inc(len(self._waiting))
