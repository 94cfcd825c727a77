"""Loads as jobs: their stage, progress and outcome, readable from every worker for an hour."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from enum import StrEnum
from typing import Any

import msgspec
import structlog

from control_plane.errors import RedisUnavailable, ServingError, UnknownJob, problem_of
from control_plane.store.redis import RedisStore

log = structlog.get_logger()

TTL_S = 3600
_POLL_S = 1.0
_MOST_REMEMBERED = 1000


class JobStatus(StrEnum):
    """Where a job is."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class JobProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job failed: the problem document's facts."""

    type: str
    title: str
    status: int
    detail: str
    expected: str | None = None
    got: str | None = None
    remedy: str | None = None
    code: str | None = None


class JobState(msgspec.Struct, frozen=True, kw_only=True):
    """A job at one moment. Times are wall seconds; `result` is what the load answers with."""

    job_id: str
    model_type: str
    version: str
    status: JobStatus
    stage: str
    progress: float
    created_at: float
    updated_at: float
    error: JobProblem | None = None
    result: dict[str, Any] | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(JobState).decode


def problem_facts(error: ServingError) -> JobProblem:
    """An error as it is kept with a job."""
    row = problem_of(error)
    return JobProblem(
        type=f"/docs/errors#{row.slug}",
        title=row.title,
        status=row.status,
        detail=error.detail,
        expected=error.expected,
        got=error.got,
        remedy=error.remedy,
        code=error.facts.get("code"),
    )


class Job:
    """A job of this worker, while it runs."""

    def __init__(self, jobs: "Jobs", state: JobState) -> None:
        self._jobs = jobs
        self.state = state

    def stage(self, stage: str, progress: float) -> None:
        """Notes a stage; written soon, in order."""
        self._change(stage=stage, progress=round(progress, 3))

    def succeed(self, result: dict[str, Any]) -> None:
        """Ends the job well."""
        self._change(status=JobStatus.SUCCEEDED, stage="finished", progress=1.0, result=result)

    def fail(self, error: ServingError) -> None:
        """Ends the job; the stage stays the one that failed."""
        self._change(status=JobStatus.FAILED, error=problem_facts(error))

    def _change(self, **changes: Any) -> None:
        self.state = msgspec.structs.replace(self.state, updated_at=time.time(), **changes)
        self._jobs.note(self.state)


class Jobs:
    """All jobs. `run` writes this worker's to Redis."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._mine: dict[str, JobState] = {}
        self._unwritten: dict[str, JobState] = {}
        self._work = asyncio.Event()
        self._changed = asyncio.Event()
        store.on("job", lambda _: self._wake())

    def start(self, model_type: str, version: str) -> Job:
        """Begins a job."""
        now = time.time()
        state = JobState(
            job_id=uuid.uuid4().hex,
            model_type=model_type,
            version=version,
            status=JobStatus.RUNNING,
            stage="waiting",
            progress=0.0,
            created_at=now,
            updated_at=now,
        )
        self.note(state)
        return Job(self, state)

    def note(self, state: JobState) -> None:
        """Takes a job's new state."""
        self._mine[state.job_id] = self._unwritten[state.job_id] = state
        while len(self._mine) > _MOST_REMEMBERED:
            self._mine.pop(next(iter(self._mine)))
        self._work.set()
        self._wake()

    async def get(self, job_id: str) -> JobState:
        """A job's present state.

        Raises:
            UnknownJob: there is none, or it was forgotten.
            RedisUnavailable: it isn't this worker's, and Redis doesn't answer.
        """
        mine = self._mine.get(job_id)
        if mine is not None:
            return mine
        async with self._store.session() as redis:
            text = await redis.get(self._store.keys.job(job_id))
        if text is None:
            raise UnknownJob(
                f"There is no load job {job_id!r}.", remedy="Jobs are forgotten an hour after they end."
            )
        return _decode(text)

    async def follow(self, job_id: str) -> AsyncIterator[JobState | None]:
        """Yields each state until the job has ended; None now and then, so that a connection stays open.

        Raises:
            As `get`, at the first state.
        """
        last = await self.get(job_id)
        yield last
        while last.status is JobStatus.RUNNING:
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._changed.wait()
            try:
                state = await self.get(job_id)
            except RedisUnavailable:
                yield None
                continue
            except UnknownJob:
                return
            yield state if state != last else None
            last = state

    async def write(self) -> None:
        """Writes what changed.

        Raises:
            RedisUnavailable: it is kept for the next time.
        """
        while self._unwritten:
            job_id, state = next(iter(self._unwritten.items()))
            async with self._store.session() as redis:
                await redis.set(self._store.keys.job(job_id), _encode(state), ex=TTL_S)
            await self._store.publish("job", job_id)
            if self._unwritten.get(job_id) is state:
                del self._unwritten[job_id]

    async def run(self) -> None:
        """Writes jobs until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self.write()
            except RedisUnavailable:
                await asyncio.sleep(_POLL_S)
                self._work.set()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
