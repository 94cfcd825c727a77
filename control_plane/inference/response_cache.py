"""Answers identical requests from memory: what Triton gave for a version, kept for a while, within a bound of bytes.

Each worker has one for each version whose card asks for it. It lives as long as that very card: a version that is
overwritten, or whose options change, begins with an empty one, so outputs never pass from one content to another.
Identical requests that come while the first one runs each run; the first answer to arrive is kept.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from cachetools import TTLCache

from control_plane.inference.plans import Plan
from control_plane.inference.tensors import Array
from control_plane.models.card import ResponseCacheOptions
from control_plane.telemetry import metrics

_KEY_BYTES = 24
_HASHED_AT_ONCE_BYTES = 256 * 1024
# What an entry takes beside its numbers, rounded up from tracemalloc (CPython 3.11, numpy 1.26): the key, the three
# dictionaries' slots, the entry; and for each array its object, shape and strides.
_ENTRY_BYTES = 800
_ARRAY_BYTES = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptOutputs:
    """A call's outputs by Triton tensor name, read-only, and their age in seconds."""

    arrays: Mapping[str, Array]
    age_s: float


@dataclass(frozen=True, slots=True)
class _Entry:
    arrays: Mapping[str, Array]
    kept_at: float
    size_bytes: int


class _Entries(TTLCache[bytes, _Entry]):
    """Least recently used leave first; `evicted` is told of each that leaves before its time."""

    def __init__(
        self, max_bytes: int, ttl_s: float, *, clock: Callable[[], float], evicted: Callable[[], None]
    ) -> None:
        super().__init__(max_bytes, ttl_s, timer=clock, getsizeof=_size_of)
        self._evicted = evicted

    def popitem(self) -> tuple[bytes, _Entry]:
        """See the base class, which calls it to make room."""
        item = super().popitem()
        self._evicted()
        return item


class ResponseCache:
    """The kept outputs of one version in one worker.

    Args:
        options: The card's.
        model: The version's name in Triton, for the metrics.
        secret: Keys the hash, at most 64 bytes: who doesn't know it can't make two inputs collide.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        options: ResponseCacheOptions,
        *,
        model: str,
        secret: bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._secret = secret
        self._clock = clock
        self._is_closed = False
        self._hits = metrics.RESPONSE_CACHE_HITS.labels(model)
        self._misses = metrics.RESPONSE_CACHE_MISSES.labels(model)
        self._size_bytes = metrics.RESPONSE_CACHE_BYTES.labels(model)
        self._entries = _Entries(
            options.max_bytes,
            options.ttl_s + options.stale_for_s,
            clock=clock,
            evicted=metrics.RESPONSE_CACHE_EVICTIONS.labels(model).inc,
        )

    @property
    def size_bytes(self) -> int:
        """Estimated memory of all that is kept."""
        return int(self._entries.currsize)

    async def key_of(self, plan: Plan) -> bytes:
        """What identifies a call: its wanted outputs, and name, dtype, shape and bytes of each input.

        Long inputs are hashed in a thread.
        """
        if sum(array.nbytes for array in plan.inputs.values()) <= _HASHED_AT_ONCE_BYTES:
            return self._hash(plan)
        return await asyncio.to_thread(self._hash, plan)

    def get(self, key: bytes) -> KeptOutputs | None:
        """Outputs that were kept at most `ttl_s` ago; counted as a hit or a miss."""
        kept = self._find(key, self._options.ttl_s)
        (self._misses if kept is None else self._hits).inc()
        return kept

    def get_stale(self, key: bytes) -> KeptOutputs | None:
        """Outputs that were kept at most `ttl_s + stale_for_s` ago; counted nowhere."""
        return self._find(key, self._options.ttl_s + self._options.stale_for_s)

    def put(self, key: bytes, outputs: Mapping[str, Array]) -> None:
        """Keeps copies of a call's outputs; views would keep the whole merged answer of many requests alive.

        What alone is larger than `max_bytes` isn't kept.
        """
        size_bytes = _ENTRY_BYTES + sum(array.nbytes + _ARRAY_BYTES for array in outputs.values())
        if self._is_closed or size_bytes > self._options.max_bytes:
            return
        arrays = {name: _read_only_copy(array) for name, array in outputs.items()}
        self._entries[key] = _Entry(MappingProxyType(arrays), self._clock(), size_bytes)
        self._size_bytes.set(self.size_bytes)

    def sweep(self) -> None:
        """Lets go of what has expired."""
        self._entries.expire()
        if not self._is_closed:
            self._size_bytes.set(self.size_bytes)

    def close(self) -> None:
        """Lets go of everything, and keeps nothing any more: calls that are under way may still end."""
        self._is_closed = True
        self._entries.clear()
        self._size_bytes.set(0)

    def _find(self, key: bytes, longest_s: float) -> KeptOutputs | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        age_s = self._clock() - entry.kept_at
        return KeptOutputs(arrays=entry.arrays, age_s=age_s) if age_s < longest_s else None

    def _hash(self, plan: Plan) -> bytes:
        arrays = [(name, np.ascontiguousarray(array)) for name, array in plan.inputs.items()]
        # Its own length before it, and the arrays' lengths in it: no two calls give the same bytes.
        header = repr(
            (plan.outputs, [(name, array.dtype.str, array.shape) for name, array in arrays])
        ).encode()
        hasher = hashlib.blake2b(digest_size=_KEY_BYTES, key=self._secret)
        hasher.update(len(header).to_bytes(8, "little"))
        hasher.update(header)
        for _, array in arrays:
            hasher.update(array)  # type: ignore[arg-type]  # a contiguous array is a buffer
        return hasher.digest()


def _size_of(entry: _Entry) -> int:
    return entry.size_bytes


def _read_only_copy(array: Array) -> Array:
    copy = np.array(array, order="C")
    copy.flags.writeable = False
    return copy
