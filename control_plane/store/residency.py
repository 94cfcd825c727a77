"""Which model versions hold a slot in Triton, as Redis knows it: the typed face of the residency scripts.

Decides nothing beyond what must be atomic; `models/` decides. A slot is `ready`, `loading` or `unloading`; the last
two belong to the operation that holds the named lock with that fence.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

import msgspec

from control_plane.store.redis import RedisStore
from control_plane.store.scripts import Script, read_script


class SlotState(StrEnum):
    """State of a slot."""

    READY = "ready"
    LOADING = "loading"
    UNLOADING = "unloading"


class ReserveOutcome(StrEnum):
    """What `reserve` did."""

    RESERVED = "reserved"
    EVICT = "evict"
    FULL = "full"
    BUSY = "busy"
    STALE = "stale"


class UnloadOutcome(StrEnum):
    """What `begin_unload` did, or why it didn't."""

    UNLOADING = "unloading"
    GONE = "gone"
    BUSY = "busy"
    PINNED = "pinned"
    LEASED = "leased"
    USED = "used"


class ClaimOutcome(StrEnum):
    """What `claim` did."""

    CLAIMED = "claimed"
    BUSY = "busy"
    FULL = "full"


class UnloadMode(StrEnum):
    """Why a model is unloaded: `idle` and `surplus` spare what is in use, `idle` also what was used since."""

    EXPLICIT = "explicit"
    IDLE = "idle"
    SURPLUS = "surplus"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A model's place in Triton. `held`: the operation that changes it is alive (false for `ready`)."""

    state: SlotState
    fence: int
    lock: str
    held: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All slots at one moment. `last_used` is wall time in seconds."""

    generation: int
    epoch: str
    slots: Mapping[str, Slot]
    last_used: Mapping[str, float]
    pinned: frozenset[str]
    leased: frozenset[str]


class FlushBatch(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker did since its last flush.

    `touched`: (model, last use in wall seconds as text); `uses`: (model, number of uses); `drained`: (model, fence as
    text). The numbers of uses and `stats` are counted once for each batch number.
    """

    touched: tuple[tuple[str, str], ...] = ()
    uses: tuple[tuple[str, int], ...] = ()
    stats: dict[str, int] = msgspec.field(default_factory=dict)
    leased: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    drained: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTotals:
    """Counters over all workers, and each model's."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    expirations: int = 0
    usage: Mapping[str, int] = field(default_factory=dict)
    loaded_at: Mapping[str, float] = field(default_factory=dict)


def _script(name: str) -> Script:
    return read_script(name, prelude="residency")


_RESERVE = _script("reserve")
_MARK_READY = _script("mark_ready")
_BEGIN_UNLOAD = _script("begin_unload")
_END_UNLOAD = _script("end_unload")
_ABORT_UNLOAD = _script("abort_unload")
_FREE = _script("free_slot")
_CLAIM = _script("claim_slot")
_SNAPSHOT = _script("snapshot")
_FLUSH = _script("flush")
_UNDRAINED = _script("undrained")
_PIN = _script("pin")


class ResidencyStore:
    """The slots in Redis. All methods raise RedisUnavailable when it doesn't answer."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._keys = store.keys.residency
        self._channel = store.keys.events
        self._lock_prefix = store.keys.lock("")

    async def snapshot(self) -> Snapshot:
        """Reads all slots at one moment."""
        answer = await self._run(_SNAPSHOT, self._lock_prefix)
        generation, epoch, slots, held, used, pins, leased = answer
        alive = frozenset(held)
        return Snapshot(
            generation=int(generation),
            epoch=epoch,
            slots={model: _slot(text, held=model in alive) for model, text in _pairs(slots)},
            last_used={model: float(score) for model, score in _pairs(used)},
            pinned=frozenset(pins),
            leased=frozenset(leased),
        )

    async def reserve(self, model: str, fence: int, *, most: int, epoch: str) -> tuple[ReserveOutcome, str]:
        """Takes a slot for `model`, or names the victim (now `unloading`) whose slot becomes ours when it is gone."""
        outcome, victim = await self._run(
            _RESERVE, self._channel, self._lock_prefix, model, fence, most, epoch
        )
        return ReserveOutcome(outcome), victim

    async def mark_ready(
        self, model: str, fence: int, *, used: float, loaded_at: float, worker: str, lease_s: float
    ) -> bool:
        """Notes that the model is loaded; false when the slot belongs to a later operation."""
        arguments = (model, fence, repr(used), repr(loaded_at), worker, lease_s)
        return bool(await self._run(_MARK_READY, self._channel, *arguments))

    async def begin_unload(
        self, model: str, fence: int, mode: UnloadMode, *, idle_since: float = 0.0
    ) -> UnloadOutcome:
        """Marks the slot `unloading`, unless the mode forbids it."""
        arguments = (self._lock_prefix, model, fence, mode.value, repr(idle_since))
        return UnloadOutcome(await self._run(_BEGIN_UNLOAD, self._channel, *arguments))

    async def end_unload(self, model: str, fence: int, *, counter: str = "", successor: str = "") -> bool:
        """Frees the slot of a model that left Triton, or hands it to `successor` (state `loading`)."""
        return bool(await self._run(_END_UNLOAD, self._channel, model, fence, counter, successor))

    async def abort_unload(self, model: str, fence: int) -> bool:
        """Marks the slot `ready` again."""
        return bool(await self._run(_ABORT_UNLOAD, self._channel, model, fence))

    async def free(self, model: str, fence: int) -> bool:
        """Gives the slot back."""
        return bool(await self._run(_FREE, self._channel, model, fence))

    async def claim(
        self, model: str, fence: int, state: SlotState, *, most: int, used: float, loaded_at: float
    ) -> ClaimOutcome:
        """Takes over a slot without a living holder, or makes one for a model that Triton has."""
        arguments = (self._lock_prefix, model, fence, state.value, most, repr(used), repr(loaded_at))
        return ClaimOutcome(await self._run(_CLAIM, self._channel, *arguments))

    async def flush(
        self, worker: str, batch: int, payload: FlushBatch, *, epoch: str, alive_s: float, lease_s: float
    ) -> tuple[int, str]:
        """Counts a batch once (not at all when the epoch is another), renews leases and the worker's sign of life.

        Returns:
            The generation and the epoch of the slots.
        """
        text = msgspec.json.encode(payload).decode()
        keys = (*self._keys, self._store.keys.models("batch", worker))
        arguments = (self._channel, worker, batch, epoch, alive_s, lease_s, text)
        generation, epoch = await self._store.run(_FLUSH, keys, arguments)
        return int(generation), epoch

    async def undrained(self, model: str, fence: int) -> int:
        """How many living workers still use the model that is being unloaded under `fence`."""
        return int(await self._run(_UNDRAINED, model, fence))

    async def begin_epoch(self, epoch: str) -> str:
        """Sets the epoch where there is none (Redis is new, or lost its memory); returns the one that holds."""
        key = self._store.keys.models("epoch")
        async with self._store.session() as redis:
            await redis.set(key, epoch, nx=True)
            return str(await redis.get(key))

    async def set_pin(self, model: str, owner: str, *, on: bool) -> int:
        """Pins or unpins; returns how many owners pin the model now."""
        keys = (*self._keys, self._store.keys.pin_owners(model))
        return int(await self._store.run(_PIN, keys, (self._channel, model, owner, int(on))))

    async def pin_owners(self, model: str) -> frozenset[str]:
        """Who pins the model."""
        async with self._store.session() as redis:
            return frozenset(await cast("Any", redis.smembers(self._store.keys.pin_owners(model))))

    async def pinned(self, model: str) -> bool:
        """Whether anyone pins the model."""
        async with self._store.session() as redis:
            return bool(await cast("Any", redis.hexists(self._store.keys.models("pins"), model)))

    async def totals(self) -> CacheTotals:
        """The counters."""
        names = self._store.keys.models
        async with self._store.session() as redis, redis.pipeline(transaction=True) as pipe:
            for name in ("stats", "usage", "loaded_at"):
                pipe.hgetall(names(name))
            stats, usage, loaded_at = await pipe.execute()
        counters = {name: int(stats.get(name, 0)) for name in ("hits", "misses", "evictions", "expirations")}
        return CacheTotals(
            **counters,
            usage={model: int(count) for model, count in usage.items()},
            loaded_at={model: float(at) for model, at in loaded_at.items()},
        )

    async def forget_usage(self, model: str) -> None:
        """Drops a deleted version's usage count."""
        async with self._store.session() as redis:
            await cast("Any", redis.hdel(self._store.keys.models("usage"), model))

    async def _run(self, script: Script, *arguments: Any) -> Any:
        return await self._store.run(script, self._keys, arguments)


def _slot(text: str, *, held: bool) -> Slot:
    state, fence, lock = text.split("|", 2)
    return Slot(state=SlotState(state), fence=int(fence), lock=lock, held=held)


def _pairs(flat: Iterable[str]) -> Iterable[tuple[str, str]]:
    values = list(flat)
    return zip(values[::2], values[1::2], strict=True)
