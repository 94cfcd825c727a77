"""Brings a version in: from a file through the exporter and the model repository into Triton, or straight from there.

What Triton refuses does not stay: a new version's files are removed again, an overwritten one's are put back.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from control_plane.errors import ModelLoadFailed, RedisUnavailable
from control_plane.models import files
from control_plane.models.cache import ModelCache
from control_plane.models.exporter import Exporter, ExportRequest, ExportStatus
from control_plane.models.jobs import Job
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.settings import Settings
from control_plane.store.redis import RedisStore

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """What to load. Without `file_path`: a registered version."""

    model_type: str
    version: str
    file_path: str | None = None
    config: dict[str, Any] | None = None
    format: str | None = None
    device: str | None = None
    overwrite: bool = False
    normalization: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOutcome:
    """What a load did. `status`: published, unchanged, or registered (there was no file)."""

    model_type: str
    version: str
    triton_model: str
    status: str
    load_time_ms: float
    """Of the whole load, export included."""
    triton_load_time_ms: float
    """In Triton alone; 0 where it was loaded already."""
    evicted: tuple[str, ...]
    warnings: tuple[str, ...]


class Publisher:
    """Loads for operators."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: RedisStore,
        registry: ModelRegistry,
        cache: ModelCache,
        exporter: Exporter,
    ) -> None:
        self._settings = settings
        self._store = store
        self._registry = registry
        self._cache = cache
        self._exporter = exporter

    async def load_registered(self, model: ModelVersion, job: Job) -> LoadOutcome:
        """Loads a registered version.

        Raises:
            ModelLoadFailed, CacheFull, RedisUnavailable, TritonUnavailable, DeadlineExceeded: see there.
        """
        started = time.monotonic()
        job.stage("loading", 0.95)
        report = await self._cache.load(model, deadline=self._load_deadline(), fresh=True)
        return _outcome(model, "registered", started, report.load_time_s, report.evicted)

    async def load_file(self, request: LoadRequest, source: Path, job: Job) -> LoadOutcome:
        """Exports a file, publishes the version, and loads it. One at a time for each version, over all workers.

        Raises:
            ExportRejected, VersionConflict, PayloadTooLarge: from the exporter.
            ModelLoadFailed, CacheFull, RedisUnavailable, TritonUnavailable, DeadlineExceeded: see there.
        """
        started = time.monotonic()
        key = f"{request.model_type}-{request.version}"
        wait_s = self._settings.models.export_timeout_s + self._settings.triton.load_timeout_s
        async with self._cache.locks.hold(f"export:{key}", deadline=time.monotonic() + wait_s):
            await self._registry.refresh()
            before = self._registry.get(key)
            kept = None
            if before is not None and request.overwrite:
                kept = await asyncio.to_thread(files.keep_copy, before.folder)
            try:
                status = await self._export(request, source, job)
                await self.republish()
                model = self._registry.get(key)
                if model is None:
                    raise ModelLoadFailed(f"{key} was published, but its model card can't be read.")
                job.stage("loading", 0.97)
                try:
                    replaced = before is not None and status is ExportStatus.PUBLISHED
                    took_s, evicted = await self._bring_in(model, replaced=replaced)
                except ModelLoadFailed as error:
                    if status is ExportStatus.PUBLISHED:
                        await self._take_back(model, kept)
                        kept = None
                        raise _taken_back(error, restored=before is not None) from error
                    raise
            finally:
                if kept is not None:
                    await asyncio.to_thread(files.discard, kept)
        return _outcome(model, status.value, started, took_s, evicted)

    async def _export(self, request: LoadRequest, source: Path, job: Job) -> ExportStatus:
        def note(stage: str, progress: float) -> None:
            job.stage(stage, progress)
            log.info("export_stage", model_type=request.model_type, version=request.version, stage=stage)

        return await self._exporter.export(
            ExportRequest(
                model_type=request.model_type,
                version=request.version,
                file_path=str(source),
                repository=str(self._registry.repository.resolve()),
                config=request.config,
                format=request.format,
                device=request.device,
                overwrite=request.overwrite,
                normalization=request.normalization,
                max_batch_size=self._settings.batch_processing.max_batch_size,
            ),
            on_stage=note,
        )

    async def _bring_in(self, model: ModelVersion, *, replaced: bool) -> tuple[float, tuple[str, ...]]:
        if replaced:
            try:
                took_s = await self._cache.reload(model)
            finally:
                # Also after an error: Triton may have taken the new files all the same.
                await self._renew_card(model)
            if took_s is not None:
                return took_s, ()
        report = await self._cache.load(model, deadline=self._load_deadline(), fresh=True)
        return report.load_time_s, report.evicted

    async def _renew_card(self, model: ModelVersion) -> None:
        """Has all workers read the card again, and drop with the old one what they kept of Triton's answers: until the
        reload those still came from the files before.
        """
        await asyncio.to_thread(os.utime, model.folder / "model.json")
        await self.republish()

    async def _take_back(self, model: ModelVersion, kept: Path | None) -> None:
        if kept is None:
            await asyncio.to_thread(files.remove, model.folder)
        else:
            await asyncio.to_thread(files.restore, kept, model.folder)
        await self.republish()
        log.warning("publication_taken_back", model=model.key, restored=kept is not None)

    def _load_deadline(self) -> float:
        return time.monotonic() + self._settings.triton.load_timeout_s

    async def republish(self) -> None:
        """Reads the model repository again, here and in all workers."""
        await self._registry.refresh()
        with suppress(RedisUnavailable):
            # The others' reconcilers see it all the same, a little later.
            await self._store.publish("registry")


def _outcome(
    model: ModelVersion, status: str, started: float, triton_s: float, evicted: Sequence[str]
) -> LoadOutcome:
    return LoadOutcome(
        model_type=model.model_type,
        version=model.version,
        triton_model=model.key,
        status=status,
        load_time_ms=round((time.monotonic() - started) * 1000, 3),
        triton_load_time_ms=round(triton_s * 1000, 3),
        evicted=tuple(evicted),
        warnings=model.card.warnings,
    )


def _taken_back(error: ModelLoadFailed, *, restored: bool) -> ModelLoadFailed:
    done = "The former version's files were put back." if restored else "Its files were removed again."
    return ModelLoadFailed(f"{error.detail.rstrip('.')}. {done}", remedy=error.remedy, facts=error.facts)
