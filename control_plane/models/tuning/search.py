"""Tries other instance counts and threads for a version, each as a temporary model of its own, and applies the best.

A temporary model is a folder `tuning.…` in the model repository, with the version's artefact by hard links, a
config.pbtxt of its own, and no model card: no worker registers it, and clients can't reach it. Its lock is held as long
as it is there, so that no reconciler unloads the stranger; when this process dies, the lock expires and one does. Its
folder is removed at the end whatever happens, or by the next search.
"""

import asyncio
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import structlog

from control_plane.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    ModelNotReady,
    ServingError,
    TritonUnavailable,
)
from control_plane.models.cache import ModelCache
from control_plane.models.card import Tuning, change_configuration
from control_plane.models.files import replace_file
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.models.tuning.configurations import (
    Configuration,
    Trial,
    configuration_of,
    configurations_to_try,
    read_config,
    with_configuration,
    write_config,
)
from control_plane.models.tuning.measurement import Progress, ignore_progress
from control_plane.models.tuning.tuner import Tuner, TuningRequest, writing
from control_plane.settings import Settings
from control_plane.triton.client import TritonClient

log = structlog.get_logger()

PREFIX = "tuning."
"""No model type begins so."""
_OWN_FILES = frozenset({"config.pbtxt", "model.json"})
_LOCK_S = 10.0
_GONE_S = 10.0
_GONE_POLL_S = 0.05
_GONE = frozenset({"", "UNAVAILABLE"})
_FAILED = (InferenceFailed, InvalidInput, ModelNotReady, DeadlineExceeded)


class ConfigurationSearch:
    """Searches for one process.

    Args:
        settings: All settings.
        triton: Loads and unloads.
        registry: Which versions exist.
        cache: Locks, and the reload of an applied configuration.
        tuner: Measures.
    """

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

    async def plan(self, model: ModelVersion, *, cores: int) -> tuple[Configuration, ...]:
        """The configurations to try, the present one first.

        Raises:
            InvalidInput: config.pbtxt can't be varied.
            ServiceUnavailable: it can't be read.
        """
        config = read_config(await _read_config_file(model))
        return configurations_to_try(
            configuration_of(config),
            cores=cores,
            worker_threads=self._settings.batch_processing.worker_threads,
        )

    async def try_all(
        self,
        model: ModelVersion,
        configurations: Sequence[Configuration],
        request: TuningRequest,
        *,
        on_progress: Progress = ignore_progress,
    ) -> list[Trial]:
        """Measures a loaded version as it is, then each other configuration. Changes nothing. The caller has the turn.

        Raises:
            As `Tuner.measure`; a configuration that Triton refuses, or that fails, is a failed trial.
            ServiceUnavailable: the model repository isn't writable.
        """
        await self.remove_leftovers()
        trials = []
        for number, configuration in enumerate(configurations):
            label = f"configuration {number + 1} of {len(configurations)}"

            def tell(step: str, label: str = label) -> None:
                on_progress(f"{label}: {step}")

            if number == 0:
                curve = await self._tuner.measure(model, request, on_progress=tell)
                trials.append(Trial(configuration=configuration, curve=curve))
                continue
            tell("loading")
            try:
                async with self._temporary(model, configuration) as name:
                    curve = await self._tuner.measure_as(
                        name,
                        model.card,
                        request,
                        instance_count=configuration.instance_count,
                        on_progress=tell,
                    )
            except _FAILED as error:
                trials.append(Trial(configuration=configuration, curve=None, failure=error.detail))
                continue
            trials.append(Trial(configuration=configuration, curve=curve))
        return trials

    async def apply(self, model: ModelVersion, configuration: Configuration, tuning: Tuning) -> ModelVersion:
        """Gives a version another configuration, with the tuning that was measured with it; it serves on meanwhile.

        Raises:
            ModelLoadFailed: Triton refused it; the former config.pbtxt is back.
            VersionConflict, ServiceUnavailable, TritonUnavailable, DeadlineExceeded, RedisUnavailable: see there.
        """
        async with self._tuner.changing(model) as current:
            path = current.folder / "config.pbtxt"
            former = await _read_config_file(current)
            config = with_configuration(read_config(former), configuration, name=current.key)
            data = write_config(config)
            with writing(current.key):
                await asyncio.to_thread(replace_file, path, data)
            try:
                await self._cache.reload(current)
            except BaseException:
                with writing(current.key):
                    replace_file(path, former)
                raise
            with writing(current.key):
                # After the reload: workers drop what they kept of the former answers when they see another card.
                await asyncio.to_thread(
                    change_configuration,
                    current.folder,
                    instance_count=configuration.instance_count,
                    config_sha256=hashlib.sha256(data).hexdigest(),
                    serving=msgspec.structs.replace(current.card.serving, tuning=tuning),
                )
            await self._tuner.republish()
        log.info(
            "model_configuration_applied",
            model=model.key,
            instance_count=configuration.instance_count,
            intra_op_threads=configuration.intra_op_threads,
        )
        return self._registry.get(model.key) or current

    async def remove_leftovers(self) -> tuple[str, ...]:
        """Removes temporary models that a killed search left; returns their names. The caller has the turn.

        Raises:
            ServiceUnavailable: the model repository can't be read.
        """
        with writing("the model repository"):
            names = await asyncio.to_thread(_temporary_names, self._registry.repository)
        for name in names:
            await self._take_out(name)
            log.info("temporary_model_removed", model=name)
        return names

    @asynccontextmanager
    async def _temporary(self, model: ModelVersion, configuration: Configuration) -> AsyncIterator[str]:
        """A loaded copy of the version with another configuration; yields its name in Triton."""
        name = f"{PREFIX}{model.key}.{secrets.token_hex(4)}"
        config = with_configuration(read_config(await _read_config_file(model)), configuration, name=name)
        async with self._cache.locks.hold(name, deadline=time.monotonic() + _LOCK_S):
            try:
                with writing("the model repository"):
                    await asyncio.to_thread(
                        copy_version, model.folder, self._registry.repository / name, write_config(config)
                    )
                await self._triton.load(name, timeout_s=self._settings.triton.load_timeout_s)
                yield name
            finally:
                await self._take_out(name)

    async def _take_out(self, name: str) -> None:
        try:
            with suppress(ServingError):
                await self._triton.unload(name)
                await self._until_gone(name)
        finally:
            shutil.rmtree(self._registry.repository / name, ignore_errors=True)

    async def _until_gone(self, name: str) -> None:
        deadline = time.monotonic() + _GONE_S
        while time.monotonic() < deadline:
            states = {entry.name: entry.state for entry in await self._triton.repository_index()}
            if states.get(name, "") in _GONE:
                return
            await asyncio.sleep(_GONE_POLL_S)
        raise TritonUnavailable(f"Triton does not unload {name}.")


def copy_version(folder: Path, target: Path, config: bytes) -> None:
    """Copies a version without its card, its files by hard links where the file system has them.

    Raises:
        OSError: the target exists, or can't be written.
    """

    def leave_out(parent: str, names: list[str]) -> set[str]:
        return set(names) & _OWN_FILES if Path(parent) == folder else set()

    shutil.copytree(folder, target, ignore=leave_out, copy_function=_link_or_copy)
    (target / "config.pbtxt").write_bytes(config)


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _temporary_names(repository: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in repository.glob(f"{PREFIX}*") if entry.is_dir()))


async def _read_config_file(model: ModelVersion) -> bytes:
    with writing(model.key):
        return await asyncio.to_thread((model.folder / "config.pbtxt").read_bytes)
