"""Experiments in Redis: the typed face of keys and scripts. Computes nothing: `control_plane.experiments` does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import structlog
from redis.exceptions import ResponseError

from control_plane.store.ensembles import CreditOutcome
from control_plane.store.redis import RedisStore
from control_plane.store.scripts import read_script

log = structlog.get_logger()

EVENT = "experiment"
"""Kind of the event that says that an experiment began, changed or ended; its subject is the id."""

_CREATE = read_script("experiment_create")
_MOVE = read_script("experiment_move")
_FLUSH = read_script("experiment_flush", prelude="sums")
_OUTCOME = read_script("experiment_outcome", prelude="sums")
_BATCH_KEPT_S = 86_400
_MOST_UNITS = 1_000_000
_TIMELINE_TAIL = 500
_COUNTS_TIMEOUT_S = 20.0
"""A bandit of many share epochs has a hundred thousand sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredExperiment:
    """A definition as JSON, and its state's fields."""

    experiment_id: str
    definition: str
    state: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCounts:
    """All that was counted; fields are `epoch|variant|…`, as the worker's counters name them."""

    counts: Mapping[str, int]
    moments: Mapping[str, tuple[float, ...]]
    sketches: Mapping[str, int]


class CountBatch(msgspec.Struct, kw_only=True):
    """What a worker counted of one experiment since its last batch."""

    counts: dict[str, int] = msgspec.field(default_factory=dict)
    moments: dict[str, list[float]] = msgspec.field(default_factory=dict)
    sketches: dict[str, int] = msgspec.field(default_factory=dict)
    units: dict[str, list[str]] = msgspec.field(default_factory=dict)


class ExperimentStore:
    """All methods raise RedisUnavailable when it doesn't answer."""

    def __init__(self, store: RedisStore, *, retention_s: float) -> None:
        self._store = store
        self._key = store.keys.experiments
        self._retention_s = max(1, round(retention_s))

    def on_change(self, callback: Any) -> None:
        """Calls back with an experiment's id when it changed, and with "" when that may have been missed."""
        self._store.on(EVENT, callback)

    async def create(
        self, experiment_id: str, definition: str, state: Mapping[str, Any], *, created_at: float
    ) -> bool:
        """Creates it; false where the id is taken."""
        keys = (
            self._key("definition", experiment_id),
            self._key("state", experiment_id),
            self._key("ids"),
            self._key("active"),
        )
        flat = [part for pair in state.items() for part in pair]
        created = await self._store.run(_CREATE, keys, (experiment_id, definition, repr(created_at), *flat))
        if created:
            await self._store.publish(EVENT, experiment_id)
        return bool(created)

    async def move(
        self, experiment_id: str, *, revision: int, changes: Mapping[str, Any], ends: bool = False
    ) -> bool:
        """Changes the state; false where another replica changed it first."""
        keys = (self._key("state", experiment_id), self._key("active"))
        flat = [part for pair in changes.items() for part in pair]
        moved = await self._store.run(_MOVE, keys, (experiment_id, revision, int(ends), *flat))
        if moved:
            await self._store.publish(EVENT, experiment_id)
        return bool(moved)

    async def active(self) -> list[StoredExperiment]:
        """The active ones, oldest first."""
        return await self._read(await self._ids("active"))

    async def all(self) -> list[StoredExperiment]:
        """All of them, oldest first."""
        return await self._read(await self._ids("ids"))

    async def get(self, experiment_id: str) -> StoredExperiment | None:
        """One of them; None: there is none."""
        found = await self._read([experiment_id])
        return found[0] if found else None

    async def _ids(self, name: str) -> list[str]:
        async with self._store.session() as redis:
            return list(await cast("Any", redis.zrange(self._key(name), 0, -1)))

    async def _read(self, ids: Sequence[str]) -> list[StoredExperiment]:
        if not ids:
            return []
        async with self._store.session() as redis, redis.pipeline(transaction=True) as pipe:
            for one in ids:
                pipe.get(self._key("definition", one))
                pipe.hgetall(self._key("state", one))
            answers = await pipe.execute()
        return [
            StoredExperiment(experiment_id=one, definition=definition, state=state)
            for one, definition, state in zip(ids, answers[::2], answers[1::2], strict=True)
            if definition is not None
        ]

    async def add(self, experiment_id: str, worker: str, batch: int, counted: CountBatch) -> bool:
        """Adds a worker's batch, once; false where Redis won't have it, ever."""
        keys = (
            self._key("batch", experiment_id, worker),
            *(self._key(name, experiment_id) for name in ("counts", "moments", "sketches", "units")),
        )
        text = msgspec.json.encode(counted).decode()
        try:
            await self._store.run(_FLUSH, keys, (batch, _BATCH_KEPT_S, _MOST_UNITS, text))
        except ResponseError as error:
            log.error("experiment_batch_refused", experiment_id=experiment_id, reason=str(error)[:300])
            return False
        return True

    async def counts(self, experiment_id: str) -> StoredCounts:
        """All that was counted, at one moment."""
        async with (
            self._store.session(timeout_s=_COUNTS_TIMEOUT_S) as redis,
            redis.pipeline(transaction=True) as pipe,
        ):
            for name in ("counts", "moments", "sketches"):
                pipe.hgetall(self._key(name, experiment_id))
            counts, moments, sketches = await pipe.execute()
        return StoredCounts(
            counts={name: int(count) for name, count in counts.items()},
            moments={name: tuple(map(float, numbers.split())) for name, numbers in moments.items()},
            sketches={name: int(count) for name, count in sketches.items()},
        )

    async def requests_of(self, ids: Sequence[str]) -> dict[str, int]:
        """How many requests each experiment had, over all variants."""
        if not ids:
            return {}
        async with self._store.session() as redis, redis.pipeline(transaction=False) as pipe:
            for one in ids:
                pipe.hgetall(self._key("counts", one))
            answers = await pipe.execute()
        return {
            one: sum(int(count) for name, count in counts.items() if name.endswith("|requests"))
            for one, counts in zip(ids, answers, strict=True)
        }

    async def put_participants(self, records: Mapping[str, str]) -> None:
        """Keeps what feedback to participants' requests needs, by request id."""
        async with self._store.session() as redis, redis.pipeline(transaction=False) as pipe:
            for request_id, record in records.items():
                pipe.set(self._key("participant", request_id), record, ex=self._retention_s)
            await pipe.execute()

    async def participants(self, request_ids: Sequence[str]) -> dict[str, str]:
        """The records that are there, by request id."""
        async with self._store.session() as redis:
            found = await cast("Any", redis.mget([self._key("participant", one) for one in request_ids]))
        return {one: record for one, record in zip(request_ids, found, strict=True) if record is not None}

    async def credit(
        self,
        experiment_id: str,
        request_id: str,
        *,
        text: str,
        moments: Mapping[str, Sequence[float]],
    ) -> CreditOutcome:
        """Counts the outcomes of one feedback, once. `moments` has the same number of numbers for each field."""
        keys = (self._key("feedback", request_id), self._key("moments", experiment_id))
        width = len(next(iter(moments.values()), ()))
        flat: list[Any] = []
        for name, numbers in moments.items():
            flat += [name, *map(repr, numbers)]
        return CreditOutcome(await self._store.run(_OUTCOME, keys, (text, self._retention_s, width, *flat)))

    async def take_turn(self, what: str, experiment_id: str, *, interval_s: float) -> bool:
        """Whether it is this worker's turn: true for one of all workers in each interval."""
        key = self._key("turn", experiment_id, what)
        async with self._store.session() as redis:
            return bool(await redis.set(key, "1", nx=True, px=max(1, round(interval_s * 1000))))

    async def note_timeline(self, experiment_id: str, point: str) -> None:
        """Adds a point to the timeline."""
        key = self._key("timeline", experiment_id)
        async with self._store.session() as redis, redis.pipeline(transaction=True) as pipe:
            pipe.rpush(key, point)
            pipe.ltrim(key, -_TIMELINE_TAIL, -1)
            await pipe.execute()

    async def timeline(self, experiment_id: str) -> list[str]:
        """The points, oldest first."""
        async with self._store.session() as redis:
            return list(await cast("Any", redis.lrange(self._key("timeline", experiment_id), 0, -1)))
