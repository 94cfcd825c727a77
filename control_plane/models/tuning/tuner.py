"""Tunes a loaded version: measures it on the running Triton, and writes the choice into its card for all workers.

One measurement at a time, over all replicas: two at once would measure each other.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

import msgspec
import structlog

from control_plane.errors import ModelNotReady, RedisUnavailable, ServiceUnavailable, VersionConflict
from control_plane.models.cache import ModelCache
from control_plane.models.card import ModelCard, Tuning, change_serving
from control_plane.models.examples import example_inputs
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.models.tuning.choice import Point
from control_plane.models.tuning.measurement import (
    Bounds,
    Call,
    Curve,
    Progress,
    ignore_progress,
    measure,
)
from control_plane.settings import Settings
from control_plane.store.redis import RedisStore
from control_plane.triton.datatypes import Array

log = structlog.get_logger()

DEFAULT_P95_MS = 50.0
_LOCK = "tuning"
_TURN_S = 600.0
_WRITE_S = 30.0


class Infer(Protocol):
    """One call to Triton; `TritonClient.infer` and `HttpInference.infer` are such."""

    async def __call__(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], *, timeout_s: float
    ) -> object:
        """Runs the call."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRequest:
    """What is asked for."""

    objective_p95_ms: float = DEFAULT_P95_MS
    """Longest 95th percentile of a request, in milliseconds."""
    seconds: float = 10.0
    """For the measurement of one version in one configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningOutcome:
    """What was measured, and what the card says now; `tuning` is None where no size meets the objective."""

    model: ModelVersion
    curve: Curve
    tuning: Tuning | None


class Tuner:
    """Measures for one process: an API worker, or the command line.

    Args:
        settings: All settings.
        store: Tells the workers of a changed card.
        infer: Makes one call to Triton, by the way that predictions take.
        registry: Which versions exist.
        cache: Keeps a version in use while it is measured.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        store: RedisStore,
        infer: Infer,
        registry: ModelRegistry,
        cache: ModelCache,
    ) -> None:
        self._settings = settings
        self._store = store
        self._infer = infer
        self._registry = registry
        self._cache = cache

    async def tune(
        self, model: ModelVersion, request: TuningRequest, *, on_progress: Progress = ignore_progress
    ) -> TuningOutcome:
        """Measures a loaded version, and keeps the choice in its card, where there is one.

        Raises:
            ModelNotReady: it isn't loaded.
            VersionConflict: its content was replaced meanwhile.
            ServiceUnavailable: the card can't be written.
            InvalidInput, InferenceFailed, TritonUnavailable: from the calls.
            DeadlineExceeded: other measurements, or an operation on the version, took too long.
            RedisUnavailable: see there.
        """
        async with self.turn(on_progress):
            curve = await self.measure(model, request, on_progress=on_progress)
            if curve.chosen is None:
                log.info("tuning_objective_not_met", model=model.key, p95_ms=request.objective_p95_ms)
                return TuningOutcome(model=model, curve=curve, tuning=None)
            tuning = tuning_of(curve.chosen, request)
            return TuningOutcome(model=await self.keep(model, tuning), curve=curve, tuning=tuning)

    @asynccontextmanager
    async def turn(self, on_progress: Progress = ignore_progress) -> AsyncIterator[None]:
        """Waits until nobody else measures.

        Raises:
            DeadlineExceeded, RedisUnavailable: see there.
        """
        on_progress("waiting for the turn to measure")
        async with self._cache.locks.hold(_LOCK, deadline=time.monotonic() + _TURN_S):
            yield

    async def measure(
        self, model: ModelVersion, request: TuningRequest, *, on_progress: Progress = ignore_progress
    ) -> Curve:
        """Measures a loaded version, which nothing unloads meanwhile. The caller has the turn.

        Raises:
            As `tune`, apart from what concerns the card.
        """
        if not self._cache.try_use(model):
            raise ModelNotReady(
                f"{model.key} isn't loaded.", remedy="Load it first: POST /api/v1/models/warmup."
            )
        try:
            return await self.measure_as(
                model.key,
                model.card,
                request,
                instance_count=model.card.instance_count,
                on_progress=on_progress,
            )
        finally:
            self._cache.done(model)

    async def measure_as(
        self,
        name: str,
        card: ModelCard,
        request: TuningRequest,
        *,
        instance_count: int,
        on_progress: Progress = ignore_progress,
    ) -> Curve:
        """Measures what Triton holds under `name`, with the tensors of `card`.

        Raises:
            InvalidInput, InferenceFailed, ModelNotReady, TritonUnavailable, DeadlineExceeded: from the calls.
        """
        batching = self._settings.batch_processing
        bounds = Bounds(
            max_rows=max(1, min(batching.max_batch_size, card.max_batch_size)),
            instance_count=instance_count,
            calls_in_flight=batching.calls_in_flight,
        )
        return await measure(
            self._calls(name, card),
            bounds,
            objective_p95_ms=request.objective_p95_ms,
            seconds=request.seconds,
            on_progress=on_progress,
        )

    async def keep(self, model: ModelVersion, tuning: Tuning) -> ModelVersion:
        """Writes the tuning into the version's card and tells all workers; returns the version with it.

        Raises:
            VersionConflict: its content isn't any more what was measured.
            ServiceUnavailable: the card can't be written.
            DeadlineExceeded, RedisUnavailable: see there.
        """
        async with self.changing(model) as current:
            serving = msgspec.structs.replace(current.card.serving, tuning=tuning)
            with writing(model.key):
                await asyncio.to_thread(change_serving, current.folder, serving)
            await self.republish()
        log.info(
            "model_tuned",
            model=model.key,
            rows_per_call=tuning.rows_per_call,
            calls_in_flight=tuning.calls_in_flight,
        )
        return self._registry.get(model.key) or current

    @asynccontextmanager
    async def changing(self, model: ModelVersion) -> AsyncIterator[ModelVersion]:
        """Keeps everyone else from changing the version; yields it as it is now.

        Raises:
            VersionConflict: its content isn't any more that of `model`.
            DeadlineExceeded, RedisUnavailable: see there.
        """
        deadline = time.monotonic() + _WRITE_S
        locks = self._cache.locks
        # In the order of ModelOperations.change_serving.
        async with (
            locks.hold(f"serving:{model.model_type}", deadline=deadline),
            locks.hold(f"export:{model.key}", deadline=deadline),
        ):
            await self._registry.refresh()
            current = self._registry.get(model.key)
            if current is None or current.card.content_digest != model.card.content_digest:
                raise VersionConflict(
                    f"{model.key} was replaced while it was measured.", remedy="Tune it again."
                )
            yield current

    async def republish(self) -> None:
        """Reads the model repository again, here and in all workers."""
        await self._registry.refresh()
        with suppress(RedisUnavailable):
            # The others' reconcilers see it all the same, a little later.
            await self._store.publish("registry")

    def _calls(self, name: str, card: ModelCard) -> Call:
        outputs = [tensor.triton_name for tensor in card.outputs]
        inputs_of = lru_cache(maxsize=None)(lambda rows: example_inputs(card, rows=rows))

        async def call(rows: int) -> None:
            await self._infer(name, inputs_of(rows), outputs, timeout_s=self._settings.triton.timeout_s)

        return call


def tuning_of(chosen: Point, request: TuningRequest) -> Tuning:
    """What the card says of a choice."""
    return Tuning(
        rows_per_call=chosen.size.rows,
        calls_in_flight=chosen.size.calls_in_flight,
        objective_p95_ms=request.objective_p95_ms,
        p95_ms=round(chosen.p95_ms, 3),
        rows_per_s=round(chosen.rows_per_s, 1),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def described(point: Point) -> dict[str, float]:
    """A point for reports: `rows`, `calls_in_flight`, times in milliseconds, throughput."""
    return {
        "rows": point.size.rows,
        "calls_in_flight": point.size.calls_in_flight,
        "p50_ms": round(point.p50_ms, 3),
        "p95_ms": round(point.p95_ms, 3),
        "request_p95_ms": round(point.request_p95_ms, 3),
        "rows_per_s": round(point.rows_per_s, 1),
    }


@contextmanager
def writing(key: str) -> Iterator[None]:
    """Turns the file system's errors into ours.

    Raises:
        ServiceUnavailable: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise ServiceUnavailable(
            f"The files of {key} can't be written: {error.strerror}.",
            remedy="Check that this process may write to the model repository, and that there is room.",
        ) from error
