"""Warm-up: loads versions ahead and runs one inference of zeros on each, so that the first request finds them hot.

Where it is asked to, it tunes them too, one after the other, once all are loaded.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from control_plane.errors import NotFound, ServingError
from control_plane.models.cache import ModelCache
from control_plane.models.examples import example_inputs
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.models.tuning.tuner import Tuner, TuningOutcome, TuningRequest
from control_plane.settings import Settings
from control_plane.triton.client import TritonClient

_AT_ONCE = 2


class WarmupStatus(StrEnum):
    """What became of one version."""

    WARMED = "warmed"
    ALREADY_CACHED = "already_cached"
    NOT_FOUND = "not_found"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupTarget:
    """A version as the caller named it; an alias or `latest` too."""

    model_type: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupResult:
    """What became of one target. `version` is the resolved one; times are milliseconds."""

    model_type: str
    version: str
    status: WarmupStatus
    load_time_ms: float | None = None
    inference_time_ms: float | None = None
    error: ServingError | None = None
    tuning: TuningOutcome | None = None
    """None: it wasn't asked for, or wasn't done because of `error`."""


class Warmup:
    """Warms versions up."""

    def __init__(
        self,
        *,
        settings: Settings,
        triton: TritonClient,
        registry: ModelRegistry,
        cache: ModelCache,
        tuner: Tuner,
    ) -> None:
        self._settings = settings
        self._triton = triton
        self._registry = registry
        self._cache = cache
        self._tuner = tuner

    async def warm_up(
        self, targets: Sequence[WarmupTarget], *, tuning: TuningRequest | None = None
    ) -> list[WarmupResult]:
        """Warms the targets up, a few at a time; one that fails doesn't stop the others.

        Args:
            targets: Which versions.
            tuning: Tune each that is loaded, one at a time; None: none.
        """
        turn = asyncio.Semaphore(_AT_ONCE)

        async def one(target: WarmupTarget) -> WarmupResult:
            async with turn:
                return await self._warm_up(target)

        results = list(await asyncio.gather(*(one(target) for target in targets)))
        if tuning is None:
            return results
        return [await self._tune(result, tuning) for result in results]

    async def _tune(self, result: WarmupResult, request: TuningRequest) -> WarmupResult:
        if result.error is not None:
            return result
        try:
            model = self._registry.resolve(result.model_type, result.version)
            # While others were tuned, it may have had to leave.
            await self._cache.load(model, deadline=self._load_deadline())
            return replace(result, tuning=await self._tuner.tune(model, request))
        except ServingError as error:
            return replace(result, status=WarmupStatus.ERROR, error=error)

    def _load_deadline(self) -> float:
        return time.monotonic() + self._settings.triton.load_timeout_s

    async def _warm_up(self, target: WarmupTarget) -> WarmupResult:
        try:
            model = await self._registry.resolve_fresh(target.model_type, target.version)
        except NotFound as error:
            return _result(target, WarmupStatus.NOT_FOUND, error)
        except ServingError as error:
            return _result(target, WarmupStatus.ERROR, error)
        if self._cache.is_loaded(model):
            return WarmupResult(
                model_type=model.model_type, version=model.version, status=WarmupStatus.ALREADY_CACHED
            )
        try:
            report = await self._cache.load(model, deadline=self._load_deadline())
            inference_s = await self._infer(model)
        except ServingError as error:
            return _result(
                WarmupTarget(model_type=model.model_type, version=model.version), WarmupStatus.ERROR, error
            )
        return WarmupResult(
            model_type=model.model_type,
            version=model.version,
            status=WarmupStatus.WARMED,
            load_time_ms=round(report.load_time_s * 1000, 3),
            inference_time_ms=round(inference_s * 1000, 3),
        )

    async def _infer(self, model: ModelVersion) -> float:
        started = time.monotonic()
        await self._triton.infer(
            model.key,
            example_inputs(model.card),
            [tensor.triton_name for tensor in model.card.outputs],
            timeout_s=self._settings.triton.timeout_s,
        )
        return time.monotonic() - started


def _result(target: WarmupTarget, status: WarmupStatus, error: ServingError) -> WarmupResult:
    return WarmupResult(model_type=target.model_type, version=target.version, status=status, error=error)
