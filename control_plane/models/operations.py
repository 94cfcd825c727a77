"""What operators do with models: load, unload, delete, warm up, say how they are served, and move aliases.

A load with a file runs the exporter, publishes the version to all workers, and brings it into Triton. Every load is a
job of its own task: whoever waits for it may leave without harm to it.
"""

import asyncio
import re
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import msgspec
import structlog

from control_plane.errors import (
    FieldError,
    InvalidInput,
    ModelInUse,
    ModelLoadFailed,
    RedisUnavailable,
    ServiceUnavailable,
    ServingError,
    ShuttingDown,
    UnknownModel,
    UnknownVersion,
)
from control_plane.models import files
from control_plane.models.aliases import Aliases
from control_plane.models.cache import ModelCache
from control_plane.models.card import ServingOptions, Tuning, change_serving
from control_plane.models.exporter import Exporter, ExportLimits
from control_plane.models.fallbacks import release_fallback
from control_plane.models.jobs import Job, Jobs, JobState
from control_plane.models.paths import resolve_source
from control_plane.models.publisher import LoadOutcome, LoadRequest, Publisher
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.models.serving import ServingState, checked_serving, state_of, users_of
from control_plane.models.tuning.tuner import Infer, Tuner
from control_plane.models.versions import ALIAS_PATTERN, LATEST, MODEL_TYPE_PATTERN, VERSION_PATTERN
from control_plane.models.warmup import Warmup
from control_plane.settings import Settings
from control_plane.store.lock import Locks
from control_plane.store.redis import RedisStore
from control_plane.triton.client import TritonClient

log = structlog.get_logger()

_RESERVED_TYPES = frozenset({"cache", "jobs"})
_UNLOAD_S = 60.0
_CHANGE_S = 30.0
_ALIASES_POLL_S = 5.0


class ModelOperations:
    """The operators' side of the models. `run` must run beside it; `aclose` cancels the loads that it started."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: RedisStore,
        triton: TritonClient,
        registry: ModelRegistry,
        aliases: Aliases,
        cache: ModelCache,
        exporter: Exporter | None = None,
        infer: Infer | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._registry = registry
        self._cache = cache
        self._locks: Locks = cache.locks
        self.aliases = aliases
        self.jobs = Jobs(store)
        # Tuning measures by the way that predictions take.
        tuner = Tuner(
            settings=settings, store=store, infer=infer or triton.infer, registry=registry, cache=cache
        )
        self.warmup = Warmup(settings=settings, triton=triton, registry=registry, cache=cache, tuner=tuner)
        limits = ExportLimits(
            timeout_s=settings.models.export_timeout_s, memory_mb=settings.models.export_memory_limit_mb
        )
        self._publisher = Publisher(
            settings=settings,
            store=store,
            registry=registry,
            cache=cache,
            exporter=exporter or Exporter(limits),
        )
        self._tasks: dict[str, asyncio.Task[LoadOutcome]] = {}
        self._registry_stale = asyncio.Event()
        store.on("registry", lambda _: self._registry_stale.set())

    def start_load(self, request: LoadRequest) -> str:
        """Starts a load and returns its job's id. What can be told at once is checked before.

        Raises:
            InvalidInput: a name is malformed.
            PathNotAllowed, FileMissing: `file_path` leads outside, or nowhere.
            UnknownModel, UnknownVersion: there is no file, and no such version.
        """
        if request.file_path is None:
            model = self._registry.resolve(request.model_type, request.version)
            job = self.jobs.start(model.model_type, model.version)
            work = self._publisher.load_registered(model, job)
        else:
            request = self._canonical(request)
            source = resolve_source(
                request.file_path or "",
                (self._settings.models.registry_path, self._settings.models.checkpoints_path),
            )
            job = self.jobs.start(request.model_type, request.version)
            work = self._publisher.load_file(request, source, job)
        job_id = job.state.job_id
        task = asyncio.create_task(self._finish(work, job), name=f"load job {job_id}")
        self._tasks[job_id] = task
        task.add_done_callback(lambda done: self._forget(job_id, done))
        return job_id

    async def load(self, request: LoadRequest) -> LoadOutcome:
        """Loads and waits. A caller that is cancelled leaves the load running.

        Raises:
            As `start_load`, and whatever ends the load: ExportRejected, VersionConflict, ModelLoadFailed, CacheFull,
            RedisUnavailable, TritonUnavailable, DeadlineExceeded, ShuttingDown.
        """
        task = self._tasks[self.start_load(request)]
        await asyncio.wait({task})
        if task.cancelled():
            raise ShuttingDown("This worker is stopping; the load was given up.")
        return task.result()

    async def job(self, job_id: str) -> JobState:
        """A load job's state, whichever worker runs it.

        Raises:
            UnknownJob, RedisUnavailable: see there.
        """
        return await self.jobs.get(job_id)

    async def unload(self, model_type: str, version: str) -> ModelVersion:
        """Unloads a version once its requests in flight are done; nothing to do when it isn't loaded.

        Raises:
            UnknownModel, UnknownVersion: see there.
            ModelInUse: it is pinned.
            DeadlineExceeded, RedisUnavailable, TritonUnavailable: see there.
        """
        model = self._registry.resolve(model_type, version)
        await self._cache.unload(model.key, deadline=time.monotonic() + _UNLOAD_S)
        return model

    async def delete(self, model_type: str, version: str) -> ModelVersion:
        """Unloads a version and removes its files.

        Raises:
            UnknownModel, UnknownVersion: see there.
            ModelInUse: it is pinned, an alias names it, or it is another version's fallback.
            DeadlineExceeded, RedisUnavailable, TritonUnavailable: see there.
        """
        model = self._find(model_type, version)
        async with self._locks.hold(f"export:{model.key}", deadline=time.monotonic() + _UNLOAD_S):
            await self.aliases.refresh()
            named = self.aliases.naming(model.model_type, model.version)
            if named:
                raise ModelInUse(
                    f"{model.key} is what the alias {', '.join(named)} names.",
                    remedy="Move or remove the alias first.",
                )
            # A change that names it at this very moment isn't seen: a fallback that is gone is passed over.
            users = users_of(model, self._registry)
            if users:
                raise ModelInUse(
                    f"{model.key} is the fallback of {', '.join(users)}.",
                    remedy="Give that version another fallback, or none, first: PUT /models/{type}/{version}/serving.",
                )
            await release_fallback(self._cache, model.key)
            if await self._cache.residency.pinned(model.key):
                raise ModelInUse(
                    f"{model.key} is pinned: an active experiment needs it.",
                    remedy="Stop the experiment first.",
                )
            deadline = time.monotonic() + _UNLOAD_S
            await self._cache.unload(model.key, deadline=deadline)
            await asyncio.to_thread(files.remove, model.folder)
            await self._publisher.republish()
            # A request that came between had it loaded again.
            await self._cache.unload(model.key, deadline=deadline)
            await self._cache.residency.forget_usage(model.key)
        log.info("model_deleted", model=model.key)
        return model

    async def serving(self, model_type: str, version: str) -> ServingState:
        """How a version is served; `version` may be `latest` or an alias.

        Raises:
            UnknownModel, UnknownVersion, RedisUnavailable: see there.
        """
        return state_of(await self._registry.resolve_fresh(model_type, version), self._registry)

    async def change_serving(
        self,
        model_type: str,
        version: str,
        options: ServingOptions,
        *,
        tuning: Tuning | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> ServingState:
        """Replaces how a version is served, for all workers; what was measured stays, unless `tuning` is None.

        Raises:
            UnknownModel, UnknownVersion: see there; an alias isn't enough.
            InvalidInput: the fallback can't answer for the version, or `tuning` isn't what was measured.
            ServiceUnavailable: the model repository isn't writable.
            DeadlineExceeded, RedisUnavailable: see there.
        """
        key = self._find(model_type, version).key
        deadline = time.monotonic() + _CHANGE_S
        # The first for all versions of a type: two changes at once must not make a circle of fallbacks.
        async with (
            self._locks.hold(f"serving:{model_type}", deadline=deadline),
            self._locks.hold(f"export:{key}", deadline=deadline),
        ):
            await self._registry.refresh()
            model = self._find(model_type, version)
            measured = model.card.serving.tuning
            if tuning not in (msgspec.UNSET, None, measured):
                raise InvalidInput(
                    "tuning is what was measured, and can't be set.",
                    expected="left out, as GET gives it, or null to forget it",
                    errors=[FieldError(path="tuning", message="can't be set")],
                )
            wanted = checked_serving(options, model, self._registry)
            wanted = msgspec.structs.replace(wanted, tuning=measured if tuning is not None else None)
            try:
                await asyncio.to_thread(change_serving, model.folder, wanted)
            except OSError as error:
                raise ServiceUnavailable(
                    f"The model card of {model.key} can't be written: {error.strerror}.",
                    remedy="Check that the server may write to the model repository, and that there is room.",
                ) from error
            await self._publisher.republish()
            changed = self._find(model_type, version)
        log.info("serving_changed", model=model.key, on_overload=wanted.on_overload, fallback=wanted.fallback)
        return state_of(changed, self._registry)

    async def move_alias(self, model_type: str, alias: str, version: str) -> tuple[ModelVersion, str | None]:
        """Points an alias to a version; returns the version and the one that it named before.

        Raises:
            InvalidInput: the alias' name is malformed, `latest`, or a version's.
            UnknownModel, UnknownVersion, RedisUnavailable: see there.
        """
        if (
            not re.match(ALIAS_PATTERN, alias)
            or alias == LATEST
            or self._registry.find(model_type, alias) is not None
        ):
            raise InvalidInput(
                f"{alias!r} can't be an alias.",
                expected=f"{ALIAS_PATTERN}, neither {LATEST!r} nor the name of a version",
                got=alias,
            )
        model = self._find(model_type, version)
        former = await self.aliases.move(model.model_type, alias, model.version)
        log.info("alias_moved", model_type=model_type, alias=alias, version=model.version, former=former)
        return model, former

    async def remove_alias(self, model_type: str, alias: str) -> str:
        """Removes an alias; returns the version that it named.

        Raises:
            UnknownAlias, RedisUnavailable: see there.
        """
        former = await self.aliases.remove(model_type, alias)
        log.info("alias_removed", model_type=model_type, alias=alias, former=former)
        return former

    async def run(self) -> None:
        """Writes jobs, and follows what other workers publish and which aliases they move, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.aliases.run(interval_s=_ALIASES_POLL_S))
            group.create_task(self.jobs.run())
            group.create_task(self._follow_registry())

    async def aclose(self) -> None:
        """Cancels the loads that this worker started; their exporters end, and nothing half-written remains."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(RedisUnavailable):
            await self.jobs.write()

    async def _follow_registry(self) -> None:
        while True:
            await self._registry_stale.wait()
            self._registry_stale.clear()
            await self._registry.refresh()

    async def _finish(self, work: Any, job: Job) -> LoadOutcome:
        try:
            outcome: LoadOutcome = await work
        except ServingError as error:
            job.fail(error)
            raise
        except asyncio.CancelledError:
            job.fail(ShuttingDown("The worker that ran this load stopped.", remedy="Load it again."))
            raise
        except Exception as error:
            log.exception("load_crashed", job_id=job.state.job_id)
            failure = ModelLoadFailed("The load failed unexpectedly; the log has the reason.")
            job.fail(failure)
            raise failure from error
        job.succeed(asdict(outcome))
        return outcome

    def _forget(self, job_id: str, task: "asyncio.Task[LoadOutcome]") -> None:
        self._tasks.pop(job_id, None)
        if not task.cancelled():
            task.exception()  # the job has it; nobody may be waiting

    def _find(self, model_type: str, version: str) -> ModelVersion:
        """A version by its own name: neither `latest` nor an alias."""
        model = self._registry.find(model_type, version)
        if model is not None:
            return model
        known = [one.version for one in self._registry.versions(model_type)]
        if not known:
            raise UnknownModel(f"No model type {model_type!r} is registered.", got=model_type)
        raise UnknownVersion(
            f"{model_type} has no version {version!r}.", expected=f"one of: {', '.join(known)}", got=version
        )

    def _canonical(self, request: LoadRequest) -> LoadRequest:
        wrong = [
            (name, value, pattern)
            for name, value, pattern in (
                ("model_type", request.model_type, MODEL_TYPE_PATTERN),
                ("version", request.version, VERSION_PATTERN),
            )
            if not re.match(pattern, value)
        ]
        if wrong:
            name, value, pattern = wrong[0]
            raise InvalidInput(f"{name} isn't valid.", expected=pattern, got=repr(value)[:100])
        if request.version == LATEST:
            raise _reserved("version", LATEST, "it always names the newest version")
        if request.model_type in _RESERVED_TYPES:
            raise _reserved("model_type", request.model_type, "it is a path of this API")
        known = self._registry.find(request.model_type, request.version)
        if known is None or known.version == request.version:
            return request
        # 1.0 and v1.0 are one version: what is registered keeps its spelling.
        return LoadRequest(**(asdict(request) | {"version": known.version}))


def _reserved(field: str, name: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"{name!r} can't be a {field}: it is reserved, as {why}.",
        expected="another name",
        got=name,
        remedy="Choose another one, such as v1.0." if field == "version" else "Choose another one.",
        errors=[FieldError(path=field, message=f"{name!r} is reserved")],
    )
