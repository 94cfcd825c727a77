"""Which model versions exist: an in-memory view of the model repository, one for each worker.

Reading never fails on what lies in the folder: a version without a good card is skipped, with one line in the log.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

import msgspec
import structlog

from control_plane.errors import RedisUnavailable, UnknownModel, UnknownVersion
from control_plane.models.aliases import Aliases
from control_plane.models.card import ModelCard, read_card
from control_plane.models.versions import (
    LATEST,
    VersionOrder,
    latest_of,
    newest_first,
    order_of,
    spellings_of,
)

log = structlog.get_logger()

_UNKNOWN_REFRESH_S = 0.5

_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A registered version. `registered_at` is wall time in seconds; `key` is its name in Triton."""

    model_type: str
    version: str
    card: ModelCard
    folder: Path
    registered_at: float

    @property
    def key(self) -> str:
        """The model's name in Triton."""
        return self.card.triton_model


class _Family:
    """The versions of one type, in order, with an index by every spelling."""

    __slots__ = ("by_name", "latest", "newest_first")

    def __init__(self, versions: list[ModelVersion]) -> None:
        placed: list[tuple[VersionOrder, ModelVersion]] = [
            (order_of(version.version, version.registered_at), version) for version in versions
        ]
        by_text = {version.version: version for version in versions}
        orders = newest_first(order for order, _ in placed)
        self.newest_first = tuple(by_text[order.text] for order in orders)
        self.by_name: dict[str, ModelVersion] = {}
        for version in self.newest_first:
            for spelling in spellings_of(version.version)[1:]:
                self.by_name.setdefault(spelling, version)
        self.by_name.update(by_text)
        newest = latest_of(orders)
        assert newest is not None  # noqa: S101  a family has at least one version
        self.latest = by_text[newest.text]


class ModelRegistry:
    """The registered versions.

    Args:
        repository: The model repository's folder.
        aliases: The aliases; `resolve` knows them as versions.
    """

    def __init__(self, repository: Path, aliases: Aliases) -> None:
        self._repository = repository
        self._aliases = aliases
        self._families: Mapping[str, _Family] = {}
        self._by_key: Mapping[str, ModelVersion] = {}
        self._read: dict[str, tuple[_Stamp, ModelVersion | None]] = {}
        self._refreshing = asyncio.Lock()
        self._refreshed_at = 0.0

    @property
    def repository(self) -> Path:
        """The model repository's folder."""
        return self._repository

    @property
    def keys(self) -> frozenset[str]:
        """Triton names of all registered versions."""
        return frozenset(self._by_key)

    def resolve(self, model_type: str, version: str = LATEST) -> ModelVersion:
        """Finds a version by `latest`, its name (with or without `v`), or an alias.

        Raises:
            UnknownModel: no version of the type is registered.
            UnknownVersion: the type has no such version or alias.
            RedisUnavailable: the name may be an alias, and the aliases were never read.
        """
        family = self._families.get(model_type)
        if family is None:
            known = ", ".join(sorted(self._families)) or "none yet"
            raise UnknownModel(
                f"No model type {model_type!r} is registered.",
                expected=f"one of: {known}",
                got=model_type,
                remedy="Load a version with POST /api/v1/models/load; GET /api/v1/models lists what there is.",
            )
        if version == LATEST:
            return family.latest
        found = family.by_name.get(version)
        if found is not None:
            return found
        target = self._aliases.target(model_type, version)
        found = family.by_name.get(target) if target is not None else None
        if found is not None:
            return found
        return self._raise_unknown(model_type, version, family, target)

    async def resolve_fresh(self, model_type: str, version: str = LATEST) -> ModelVersion:
        """As `resolve`, but reads the repository again before it says that something doesn't exist: a version that was
        exported on the command line is there at once. At most every `_UNKNOWN_REFRESH_S` seconds, whoever asks.

        Raises:
            As `resolve`.
        """
        try:
            return self.resolve(model_type, version)
        except (UnknownModel, UnknownVersion):
            if time.monotonic() - self._refreshed_at < _UNKNOWN_REFRESH_S:
                raise
        await self.refresh()
        return self.resolve(model_type, version)

    def get(self, key: str) -> ModelVersion | None:
        """The version of that Triton name."""
        return self._by_key.get(key)

    def find(self, model_type: str, version: str) -> ModelVersion | None:
        """The version of exactly that name, `v` optional; neither `latest` nor an alias."""
        family = self._families.get(model_type)
        return family.by_name.get(version) if family else None

    def model_types(self) -> tuple[str, ...]:
        """The types that have a version, sorted."""
        return tuple(sorted(self._families))

    def versions(self, model_type: str) -> tuple[ModelVersion, ...]:
        """The type's versions, newest first; empty for an unknown type."""
        family = self._families.get(model_type)
        return family.newest_first if family else ()

    async def refresh(self) -> None:
        """Reads the repository again; folders whose card didn't change are not read. At first the aliases, too."""
        if not self._aliases.loaded:
            with suppress(RedisUnavailable):
                await self._aliases.refresh()
        async with self._refreshing:
            read = await asyncio.to_thread(_scan, self._repository, dict(self._read))
            self._refreshed_at = time.monotonic()
            if read == self._read:
                return
            self._read = read
            found = [version for _, version in read.values() if version is not None]
            grouped: defaultdict[str, list[ModelVersion]] = defaultdict(list)
            for version in found:
                grouped[version.model_type].append(version)
            self._families = MappingProxyType({name: _Family(versions) for name, versions in grouped.items()})
            self._by_key = MappingProxyType({version.key: version for version in found})

    def _raise_unknown(
        self, model_type: str, version: str, family: _Family, target: str | None
    ) -> ModelVersion:
        names = [one.version for one in family.newest_first]
        aliases = self._aliases.of_type(model_type)
        dangling = (
            f" The alias {version!r} names {target}, which is not registered." if target is not None else ""
        )
        listed = ", ".join([LATEST, *names, *aliases])
        raise UnknownVersion(
            f"{model_type} has no version or alias {version!r}.{dangling}",
            expected=f"one of: {listed}",
            got=version,
            remedy="Name a registered version, or load this one with POST /api/v1/models/load.",
        )


def _scan(
    repository: Path, known: dict[str, tuple[_Stamp, ModelVersion | None]]
) -> dict[str, tuple[_Stamp, ModelVersion | None]]:
    read: dict[str, tuple[_Stamp, ModelVersion | None]] = {}
    try:
        folders = [folder for folder in repository.iterdir() if not folder.name.startswith(".")]
    except OSError:
        return read
    for folder in folders:
        try:
            status = (folder / "model.json").stat()
        except OSError:
            continue
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        before = known.get(folder.name)
        read[folder.name] = (
            before if before is not None and before[0] == stamp else (stamp, _read_version(folder))
        )
    return read


def _read_version(folder: Path) -> ModelVersion | None:
    try:
        card = read_card(folder)
        _check(card, folder)
        return ModelVersion(
            model_type=card.model_type,
            version=card.version,
            card=card,
            folder=folder,
            registered_at=datetime.fromisoformat(card.created_at).timestamp(),
        )
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        log.warning("model_version_skipped", folder=folder.name, reason=str(error))
        return None


def _check(card: ModelCard, folder: Path) -> None:
    if not card.triton_model == folder.name == f"{card.model_type}-{card.version}":
        raise ValueError(f"the card names {card.triton_model}, the folder {folder.name}")
    if not (folder / "config.pbtxt").is_file():
        raise ValueError("config.pbtxt is missing")
    sizes = [(folder / name).stat().st_size for name in card.checksums if name != "config.pbtxt"]
    if sum(sizes) != card.size_bytes:
        raise ValueError(f"the artefact has {sum(sizes)} bytes, the card says {card.size_bytes}")
