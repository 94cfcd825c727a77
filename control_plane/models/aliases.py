"""Names such as `production` for a version, with the history of their moves: shared through Redis, read from memory."""

import asyncio
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import msgspec

from control_plane.errors import RedisUnavailable, UnknownAlias
from control_plane.store.redis import RedisStore
from control_plane.store.scripts import read_script

_MOVE = read_script("alias_move")


class AliasMove(msgspec.Struct, frozen=True, kw_only=True):
    """One move of an alias: wall time in seconds, the version it left and the one it took (None: there was none)."""

    time: float
    from_version: str | None = msgspec.field(name="from")
    to_version: str | None = msgspec.field(name="to")


_decode_move = msgspec.json.Decoder(AliasMove, strict=False).decode


class Aliases:
    """The aliases of all types. `target` is for the hot path: a look into memory."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._targets: Mapping[str, str] = {}
        self._loaded = False
        self._stale = asyncio.Event()
        store.on("aliases", lambda _: self._stale.set())

    @property
    def loaded(self) -> bool:
        """Whether the aliases were ever read."""
        return self._loaded

    def target(self, model_type: str, alias: str) -> str | None:
        """The version that the alias names.

        Raises:
            RedisUnavailable: the aliases were never read, so nobody can tell.
        """
        if not self._loaded:
            raise RedisUnavailable(
                f"{alias!r} is no version of {model_type}; whether it is an alias isn't known while Redis is down.",
                remedy="Name the version itself, or try again after Retry-After.",
            )
        return self._targets.get(f"{model_type}/{alias}")

    def of_type(self, model_type: str) -> dict[str, str]:
        """Alias to version, of one type, sorted by name."""
        prefix = f"{model_type}/"
        return {
            field[len(prefix) :]: version
            for field, version in sorted(self._targets.items())
            if field.startswith(prefix)
        }

    def naming(self, model_type: str, version: str) -> tuple[str, ...]:
        """The aliases that name this very version."""
        return tuple(alias for alias, target in self.of_type(model_type).items() if target == version)

    async def move(self, model_type: str, alias: str, version: str) -> str | None:
        """Points the alias to a version; returns the former one. Doing it twice is one move.

        Raises:
            RedisUnavailable: see there.
        """
        _, former = await self._change(f"{model_type}/{alias}", version)
        return former

    async def remove(self, model_type: str, alias: str) -> str:
        """Removes the alias; returns the version that it named.

        Raises:
            UnknownAlias: there is none.
            RedisUnavailable: see there.
        """
        moved, former = await self._change(f"{model_type}/{alias}", "")
        if not moved or former is None:
            known = ", ".join(self.of_type(model_type)) or "none"
            raise UnknownAlias(
                f"{model_type} has no alias {alias!r}.", expected=f"one of: {known}", got=alias
            )
        return former

    async def history(self, model_type: str, alias: str) -> tuple[AliasMove, ...]:
        """The moves of an alias, oldest first.

        Raises:
            RedisUnavailable: see there.
        """
        key = self._store.keys.alias_history(f"{model_type}/{alias}")
        async with self._store.session() as redis:
            rows = await cast("Any", redis.lrange(key, 0, -1))
        return tuple(_decode_move(row) for row in rows)

    async def refresh(self) -> None:
        """Reads all aliases.

        Raises:
            RedisUnavailable: see there.
        """
        async with self._store.session() as redis:
            self._targets = dict(await cast("Any", redis.hgetall(self._store.keys.aliases)))
        self._loaded = True

    async def restore(self) -> None:
        """Gives Redis back what this worker remembers, after Redis lost its memory. What is there already stays.

        Raises:
            RedisUnavailable: see there.
        """
        async with self._store.session() as redis:
            for field, version in self._targets.items():
                await cast("Any", redis.hsetnx(self._store.keys.aliases, field, version))
        await self.refresh()

    async def run(self, *, interval_s: float) -> None:
        """Keeps the view fresh: at once on a move anywhere, and every `interval_s` seconds."""
        while True:
            self._stale.clear()
            # Without Redis the last known aliases go on.
            with suppress(RedisUnavailable):
                await self.refresh()
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._stale.wait()

    async def _change(self, field: str, version: str) -> tuple[bool, str | None]:
        keys = (self._store.keys.aliases, self._store.keys.alias_history(field))
        arguments = (field, version, repr(time.time()), uuid.uuid4().hex, self._store.keys.events)
        moved, former = await self._store.run(_MOVE, keys, arguments)
        await self.refresh()
        return bool(moved), former or None
