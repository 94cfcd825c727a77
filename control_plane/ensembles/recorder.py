"""Keeps decisions until their rewards come: noted in memory while a request is answered, written in batches after it.

With Redis away they wait, up to a bound; those beyond it are dropped and counted, as are all while Redis is fuller
than it may be. What a killed worker had not written is lost: at most one interval's decisions, whose feedback then is
`unknown`.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

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
_MEASURE_S = 10.0
_COMPLAIN_S = 60.0
_REFUSAL = "No feedback can be given to this request: "


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
        self._waiting_rows = 0
        self._is_full = False
        self._measured_at = self._complained_at = -math.inf
        self._many = asyncio.Event()
        self._flushing = asyncio.Lock()

    def note(self, request_id: str, card: ModelCard, decision: Decision) -> tuple[str, ...]:
        """See `DecisionSink`."""
        rows, settings = len(decision.actions), self._settings
        if not settings.retention_s:
            return ()
        if rows > settings.max_rows:
            return (f"{_REFUSAL}decisions are kept of at most {settings.max_rows} rows.",)
        if not math.isfinite(decision.agent_probs.sum() + decision.propensity.sum()):
            return (f"{_REFUSAL}the agents' probabilities aren't finite.",)
        if self._is_full:
            metrics.DECISIONS_DROPPED.inc()
            return (f"{_REFUSAL}Redis holds more than feedback.max_redis_bytes.",)
        if self._waiting_rows + rows > settings.max_waiting:
            metrics.DECISIONS_DROPPED.inc()
            return (f"{_REFUSAL}Redis doesn't answer, and too many wait for it.",)
        self._waiting.append((request_id, record_of(card, decision, time_s=self._wall())))
        self._waiting_rows += rows
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
                await self._measure()
            except RedisUnavailable:
                await asyncio.sleep(_RETRY_S)

    async def flush(self) -> None:
        """Writes all that waits.

        Raises:
            RedisUnavailable: what isn't written still waits.
        """
        async with self._flushing:
            while self._waiting:
                batch = list(islice(self._waiting, _BATCH))
                await self._store.put_decisions(
                    {one: (to_text(record), record.time_s) for one, record in batch}
                )
                for _, record in batch:
                    self._waiting.popleft()
                    self._waiting_rows -= record.rows
                metrics.DECISIONS_RECORDED.inc(len(batch))

    async def _measure(self) -> None:
        """Looks now and then whether Redis has room for decisions."""
        now = time.monotonic()
        if not self._settings.retention_s or now - self._measured_at < _MEASURE_S:
            return
        self._measured_at = now
        used_bytes, most_bytes = await self._store.used_bytes(), self._settings.max_redis_bytes
        self._is_full = used_bytes is not None and used_bytes > most_bytes
        if self._is_full and now - self._complained_at >= _COMPLAIN_S:
            self._complained_at = now
            log.warning("decisions_not_kept", redis_used_bytes=used_bytes, max_redis_bytes=most_bytes)

    async def aclose(self) -> None:
        """Writes the rest, where Redis takes it."""
        try:
            await self.flush()
        except RedisUnavailable:
            log.warning("decisions_lost", decisions=len(self._waiting))
            metrics.DECISIONS_DROPPED.inc(len(self._waiting))
