"""What the ensembles decided and learned, as Redis keeps it: the typed face of its keys and scripts.

Computes nothing: `control_plane.ensembles` does. An ensemble is named by its version and the digest of its content, so
that agents which replace others under the same version begin with nothing learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from redis.exceptions import NoScriptError, ResponseError

from control_plane.store.redis import RedisStore
from control_plane.store.scripts import read_script

EVENT = "ensemble"
"""Kind of the event that says that an ensemble learned; its subject is the ensemble's name."""

_CREDIT = read_script("credit", prelude="sums")
_CHANGE = read_script("ensemble_change")
_LATER_DECISION = read_script("later_decision")
_HISTORY_TAIL = 1_440
_LOG_PAGE = 500
"""Entries of the log that are read at once: requests go on in between."""


class CreditOutcome(StrEnum):
    """What became of a feedback."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    STALE = "stale"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleState:
    """What an ensemble learned.

    `policy` is JSON, None where none was ever set; `sums` the flat numbers of each period of the decay; `generation`
    changes when the policy or the sums are replaced, `revision` whenever anything is; `noted` is the revision that the
    history's last point is of; `updated_at` is wall time in seconds, of Redis' clock.
    """

    policy: str | None
    sums: Mapping[int, tuple[float, ...]]
    generation: int
    revision: int
    noted: int
    rewards: int
    updated_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """One feedback, ready to be counted. `sums` is empty where there is no reward."""

    request_id: str
    row: int
    ensemble: str
    text: str
    generation: int
    period: int
    sums: Sequence[float]
    log_entry: str


class EnsembleStore:
    """The ensembles in Redis. All methods raise RedisUnavailable when it doesn't answer.

    Args:
        store: The connection.
        retention_s: How long decisions are kept, in seconds.
        log_size: Rewarded decisions that each ensemble's log holds.
    """

    def __init__(self, store: RedisStore, *, retention_s: float, log_size: int) -> None:
        self._store = store
        self._retention_s = max(1, round(retention_s))
        self._log_size = log_size

    @property
    def is_up(self) -> bool:
        """Whether Redis answered last."""
        return self._store.up

    async def used_bytes(self) -> int | None:
        """What Redis takes of memory, all its keys together; None where it doesn't tell."""
        try:
            async with self._store.session() as redis:
                memory = await redis.info("memory")
        except ResponseError:  # some hosted ones don't allow INFO
            return None
        return int(memory["used_memory"])

    async def put_decisions(self, records: Mapping[str, tuple[str, float]]) -> None:
        """Keeps records for as long as the retention says.

        Args:
            records: By request id: the text, and when it was decided (wall time in seconds). Where there is one of the
                id already, the later one stays.
        """
        async with self._store.session() as redis, redis.pipeline(transaction=False) as pipe:
            for request_id, (record, _) in records.items():
                pipe.set(self._store.keys.decision(request_id), record, ex=self._retention_s, nx=True)
            are_new = await pipe.execute()
        for (request_id, (record, time_s)), is_new in zip(records.items(), are_new, strict=True):
            if not is_new:
                key = self._store.keys.decision(request_id)
                await self._store.run(_LATER_DECISION, (key,), (record, repr(time_s), self._retention_s))

    async def decisions(self, request_ids: Sequence[str]) -> dict[str, str]:
        """The records that are there, by request id."""
        async with self._store.session() as redis:
            found = await cast("Any", redis.mget([self._store.keys.decision(one) for one in request_ids]))
        return {one: record for one, record in zip(request_ids, found, strict=True) if record is not None}

    async def states(self, ensembles: Sequence[str]) -> dict[str, EnsembleState]:
        """All that was learned, each at one moment."""
        async with self._store.session() as redis, redis.pipeline(transaction=True) as pipe:
            for ensemble in ensembles:
                pipe.hgetall(self._state(ensemble))
                pipe.hgetall(self._sums(ensemble))
            answers = await pipe.execute()
        return {
            ensemble: _state_of(state, sums)
            for ensemble, state, sums in zip(ensembles, answers[::2], answers[1::2], strict=True)
        }

    async def credit(self, feedback: Sequence[Credit]) -> list[CreditOutcome]:
        """Counts feedback, each once and whole. Where it raises, some may have been counted: to repeat all is safe."""
        async with self._store.session() as redis:
            try:
                outcomes = await self._run_credits(redis, feedback)
            except NoScriptError:
                await cast("Any", redis.script_load(_CREDIT.text))
                outcomes = await self._run_credits(redis, feedback)
        return [CreditOutcome(outcome) for outcome in outcomes]

    async def _run_credits(self, redis: Any, feedback: Sequence[Credit]) -> list[str]:
        async with redis.pipeline(transaction=False) as pipe:
            for one in feedback:
                keys = (
                    self._store.keys.feedback(one.request_id, one.row),
                    self._state(one.ensemble),
                    self._sums(one.ensemble),
                    self._log(one.ensemble),
                )
                # A decision under the same id renews its own time, but not that of the feedback to it.
                arguments = (one.text, 2 * self._retention_s, one.generation, one.period, self._log_size)
                pipe.evalsha(
                    _CREDIT.digest, len(keys), *keys, *arguments, one.log_entry, *map(repr, one.sums)
                )
            answers: list[str] = await pipe.execute()
        return answers

    async def announce(self, ensemble: str) -> None:
        """Tells all workers that the ensemble learned."""
        await self._store.publish(EVENT, ensemble)

    async def change(
        self,
        ensemble: str,
        *,
        revision: int | None,
        policy: str | None = None,
        sums: Mapping[int, Sequence[float]] | None = None,
        rewards: int = 0,
        is_forgotten: bool = False,
    ) -> bool:
        """Sets the policy, and replaces the sums where some are given; false where the revision is another by now.

        With `is_forgotten` the log and the history go, too.
        """
        flat: list[Any] = []
        for period, numbers in (sums or {}).items():
            flat += [period, " ".join(map(repr, numbers))]
        changed = await self._store.run(
            _CHANGE,
            (self._state(ensemble), self._sums(ensemble), self._log(ensemble), *self._history(ensemble)),
            (
                "" if revision is None else revision,
                policy or "",
                0 if sums is None else 1,
                rewards,
                1 if is_forgotten else 0,
                *flat,
            ),
        )
        if changed:
            await self.announce(ensemble)
        return bool(changed)

    async def note_history(self, ensemble: str, point: str, *, revision: int, interval_s: float) -> None:
        """Adds a point to the history, unless one was added less than `interval_s` ago, by whichever replica."""
        key, turn = self._history(ensemble)
        async with self._store.session() as redis:
            if await redis.set(turn, "1", nx=True, px=max(1, round(interval_s * 1000))):
                await cast("Any", redis.rpush(key, point))
                await cast("Any", redis.ltrim(key, -_HISTORY_TAIL, -1))
                await cast("Any", redis.hset(self._state(ensemble), "noted", str(revision)))

    async def history(self, ensemble: str) -> list[str]:
        """The points, oldest first."""
        async with self._store.session() as redis:
            points = await cast("Any", redis.lrange(self._history(ensemble)[0], 0, -1))
        return list(points)

    async def log(self, ensemble: str) -> list[str]:
        """The latest entries of the log, oldest first."""
        entries: list[str] = []
        before = "+"
        while (left := self._log_size - len(entries)) > 0:
            async with self._store.session() as redis:
                page = await cast(
                    "Any", redis.xrevrange(self._log(ensemble), max=before, count=min(left, _LOG_PAGE))
                )
            entries += [fields["e"] for _, fields in page]
            if len(page) < _LOG_PAGE:
                break
            before = f"({page[-1][0]}"
        return entries[::-1]

    def on_learned(self, callback: Any) -> None:
        """Calls back with the ensemble's name when one learned, and with "" when that may have been missed."""
        self._store.on(EVENT, callback)

    def _state(self, ensemble: str) -> str:
        return self._store.keys.ensembles("state", ensemble)

    def _sums(self, ensemble: str) -> str:
        return self._store.keys.ensembles("sums", ensemble)

    def _log(self, ensemble: str) -> str:
        return self._store.keys.ensembles("log", ensemble)

    def _history(self, ensemble: str) -> tuple[str, str]:
        """The points, and whether it is too early for another."""
        return self._store.keys.ensembles("history", ensemble), self._store.keys.ensembles(
            "history_turn", ensemble
        )


def _state_of(state: Mapping[str, str], sums: Mapping[str, str]) -> EnsembleState:
    updated_at = state.get("updated_at")
    return EnsembleState(
        policy=state.get("policy"),
        sums={int(period): tuple(map(float, text.split())) for period, text in sums.items()},
        generation=int(state.get("generation", 0)),
        revision=int(state.get("revision", 0)),
        noted=int(state.get("noted", 0)),
        rewards=int(state.get("rewards", 0)),
        updated_at=None if updated_at is None else float(updated_at),
    )
