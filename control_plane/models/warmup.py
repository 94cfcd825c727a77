"""Warm-up: loads versions ahead and runs one inference of zeros on each, so that the first request finds them hot."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from control_plane.errors import NotFound, ServingError
from control_plane.models.cache import ModelCache
from control_plane.models.card import CardTensor, ModelCard
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.settings import Settings
from control_plane.triton.client import TritonClient
from control_plane.triton.datatypes import Array, dtype_of

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


class Warmup:
    """Warms versions up."""

    def __init__(
        self, *, settings: Settings, triton: TritonClient, registry: ModelRegistry, cache: ModelCache
    ) -> None:
        self._settings = settings
        self._triton = triton
        self._registry = registry
        self._cache = cache

    async def warm_up(self, targets: Sequence[WarmupTarget]) -> list[WarmupResult]:
        """Warms the targets up, a few at a time; one that fails doesn't stop the others."""
        turn = asyncio.Semaphore(_AT_ONCE)

        async def one(target: WarmupTarget) -> WarmupResult:
            async with turn:
                return await self._warm_up(target)

        return list(await asyncio.gather(*(one(target) for target in targets)))

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
            deadline = time.monotonic() + self._settings.triton.load_timeout_s
            report = await self._cache.load(model, deadline=deadline)
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


def example_inputs(card: ModelCard) -> dict[str, Array]:
    """Zeros of a valid shape for each input, `[1, ...]`, by Triton tensor name.

    A dynamic axis gets the configuration's `sequence_length` where there is one, else 1.
    """
    return {tensor.triton_name: _zeros(tensor, card) for tensor in card.inputs}


def _zeros(tensor: CardTensor, card: ModelCard) -> Array:
    configured = card.config.get("sequence_length")
    dynamic = configured if isinstance(configured, int) and configured > 0 else 1
    shape = [dynamic if size < 0 else size for size in tensor.shape]
    batch = [1] if card.max_batch_size > 0 else []
    return np.zeros((*batch, *shape), dtype_of(tensor.datatype))


def _result(target: WarmupTarget, status: WarmupStatus, error: ServingError) -> WarmupResult:
    return WarmupResult(model_type=target.model_type, version=target.version, status=status, error=error)
