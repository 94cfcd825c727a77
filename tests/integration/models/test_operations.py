"""What operators do, over the real services and the real exporter."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest

from control_plane.embedded.redis import RedisServer
from control_plane.embedded.triton import TritonServer
from control_plane.errors import (
    DeadlineExceeded,
    ExportRejected,
    FileMissing,
    InvalidInput,
    ModelInUse,
    ModelLoadFailed,
    PathNotAllowed,
    UnknownAlias,
    UnknownJob,
    UnknownModel,
    UnknownVersion,
    VersionConflict,
)
from control_plane.models.exporter import Exporter, ExportLimits
from control_plane.models.fallbacks import OWNER
from control_plane.models.jobs import JobStatus
from control_plane.models.publisher import LoadRequest
from control_plane.models.warmup import WarmupStatus, WarmupTarget
from tests.support.model_worker import ModelWorker, eventually, model_worker, worker_settings
from tests.support.repository import identity_like_onnx, marker_of, write_identity_like_model

StartOperator = Callable[..., Awaitable[ModelWorker]]


@pytest.fixture
def registry_path(tmp_path: Path) -> Path:
    """Where this test's checkpoints lie."""
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
async def start_operator(
    cache_triton: TritonServer,
    redis_server: RedisServer,
    redis_key_prefix: str,
    repository: Path,
    registry_path: Path,
) -> AsyncIterator[StartOperator]:
    """Starts a worker; `act` puts the stand-in in the exporter's place."""
    async with AsyncExitStack() as stack:

        async def start(
            *, act: str | None = None, timeout_s: float = 120.0, load_timeout_s: float = 60.0
        ) -> ModelWorker:
            settings = worker_settings(
                redis_port=redis_server.port,
                grpc_url=cache_triton.grpc_url,
                repository=repository,
                key_prefix=redis_key_prefix,
                models={
                    "registry_path": registry_path,
                    "checkpoints_path": registry_path.parent / "checkpoints",
                },
            )
            triton = settings.triton.model_copy(update={"load_timeout_s": load_timeout_s})
            settings = settings.model_copy(update={"triton": triton})
            command = (sys.executable, "-m", "tests.support.stand_in_exporter", act) if act else None
            exporter = Exporter(ExportLimits(timeout_s=timeout_s, memory_mb=4096), command=command)
            return await stack.enter_async_context(model_worker(settings, exporter=exporter))

        yield start


def _leftovers(repository: Path) -> list[str]:
    staging = repository / ".staging"
    return [path.name for path in staging.iterdir() if path.is_dir()] if staging.is_dir() else []


def _request(version: str = "v1", file_path: str = "tiny.onnx", *, overwrite: bool = False) -> LoadRequest:
    return LoadRequest(model_type="tiny", version=version, file_path=file_path, overwrite=overwrite)


async def test_file_is_exported_published_and_loaded(
    start_operator: StartOperator, registry_path: Path, repository: Path
) -> None:
    worker, other = await start_operator(), await start_operator()
    (registry_path / "tiny.onnx").write_bytes(identity_like_onnx(5.0))
    outcome = await worker.operations.load(_request())
    assert (outcome.triton_model, outcome.status, outcome.evicted) == ("tiny-v1", "published", ())
    assert outcome.load_time_ms > outcome.triton_load_time_ms > 0
    assert await worker.use(worker.version("tiny", "latest")) == 5.0

    async def known() -> bool:
        return other.registry.get("tiny-v1") is not None

    await eventually(known, timeout_s=5, what="the other worker knows the version")
    assert await other.use(other.version("tiny", "1")) == 5.0

    again = await worker.operations.load(_request(version="1"))
    assert (again.version, again.status, again.triton_load_time_ms) == ("v1", "unchanged", 0.0)

    (registry_path / "tiny.onnx").write_bytes(identity_like_onnx(6.0))
    with pytest.raises(VersionConflict):
        await worker.operations.load(_request())
    assert await worker.use(worker.version("tiny", "v1")) == 5.0
    replaced = await worker.operations.load(_request(overwrite=True))
    assert replaced.status == "published"
    assert await worker.use(worker.version("tiny", "v1")) == 6.0
    assert not _leftovers(repository)


async def test_refused_file_leaves_nothing_behind(
    start_operator: StartOperator, registry_path: Path, repository: Path
) -> None:
    worker = await start_operator()
    (registry_path / "tiny.onnx").write_bytes(b"not a model at all")
    with pytest.raises(ExportRejected) as raised:
        await worker.operations.load(_request())
    assert raised.value.facts["code"]
    assert raised.value.detail
    assert worker.registry.get("tiny-v1") is None
    assert not (repository / "tiny-v1").exists()
    assert not _leftovers(repository)


async def test_bad_requests_are_refused_before_any_job(
    start_operator: StartOperator, registry_path: Path
) -> None:
    worker = await start_operator()
    (registry_path / "link.onnx").symlink_to("/etc/passwd")
    cases: list[tuple[LoadRequest, type[Exception]]] = [
        (_request(file_path="link.onnx"), PathNotAllowed),
        (_request(file_path="../x.onnx"), PathNotAllowed),
        (_request(file_path="nothing.onnx"), FileMissing),
        (_request(version="latest"), InvalidInput),
        (_request(version="a/b"), InvalidInput),
        (LoadRequest(model_type="Tiny!", version="v1", file_path="x"), InvalidInput),
        (LoadRequest(model_type="jobs", version="v1", file_path="x"), InvalidInput),
        (LoadRequest(model_type="tiny", version="v1"), UnknownModel),
        (LoadRequest(model_type="echo", version="v9"), UnknownVersion),
    ]
    for request, error in cases:
        with pytest.raises(error):
            worker.operations.start_load(request)


async def test_version_that_triton_refuses_is_taken_back(
    start_operator: StartOperator, registry_path: Path, repository: Path
) -> None:
    worker = await start_operator(act="broken")
    (registry_path / "tiny.onnx").write_bytes(b"x")
    with pytest.raises(ModelLoadFailed, match="removed again"):
        await worker.operations.load(_request())
    assert not (repository / "tiny-v1").exists()
    assert worker.registry.get("tiny-v1") is None

    write_identity_like_model(repository, "tiny", "v1")
    await worker.registry.refresh()
    assert await worker.use(worker.version("tiny", "v1")) == marker_of("tiny", "v1")
    with pytest.raises(ModelLoadFailed, match="put back"):
        await worker.operations.load(_request(overwrite=True))
    assert await worker.use(worker.version("tiny", "v1")) == marker_of("tiny", "v1")
    await worker.cache.unload("tiny-v1", deadline=time.monotonic() + 10)
    assert await worker.use(worker.version("tiny", "v1")) == marker_of("tiny", "v1")
    assert not _leftovers(repository)


async def test_card_is_renewed_also_where_the_load_came_to_no_end(
    start_operator: StartOperator, registry_path: Path, repository: Path
) -> None:
    """Triton may take the new files later: what was kept of the old ones' answers has to go."""
    worker, hasty = await start_operator(), await start_operator(act="fine", load_timeout_s=1.0)
    (registry_path / "tiny.onnx").write_bytes(b"x")
    write_identity_like_model(repository, "tiny", "v1")
    await worker.registry.refresh()
    await worker.use(worker.version("tiny", "v1"))
    async with worker.locks.hold("tiny-v1", deadline=time.monotonic() + 10):
        with pytest.raises(DeadlineExceeded):
            await hasty.operations.load(_request(overwrite=True))
    folder = repository / "tiny-v1"
    written_s, renewed_s = ((folder / name).stat().st_mtime for name in ("config.pbtxt", "model.json"))
    assert renewed_s - written_s > 0.5, "after the deadline, and not with the other files"


async def test_export_past_its_time_is_killed_with_its_children(
    start_operator: StartOperator, registry_path: Path
) -> None:
    worker = await start_operator(act="hang", timeout_s=2.0)
    (registry_path / "tiny.onnx").write_bytes(b"x")
    with pytest.raises(ExportRejected, match="longer than 2 s"):
        await worker.operations.load(_request())
    child = int((registry_path / "tiny.pid").read_text())

    async def gone() -> bool:
        return not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE

    await eventually(gone, timeout_s=5, what="the exporter's child is gone")


async def test_crashed_exporter_is_reported(start_operator: StartOperator, registry_path: Path) -> None:
    worker = await start_operator(act="crash")
    (registry_path / "tiny.onnx").write_bytes(b"x")
    with pytest.raises(ModelLoadFailed, match="exit code 3"):
        await worker.operations.load(_request())


async def test_job_is_followed_from_another_worker(
    start_operator: StartOperator, registry_path: Path
) -> None:
    worker, other = await start_operator(act="fine"), await start_operator()
    (registry_path / "tiny.onnx").write_bytes(b"x")
    job_id = worker.operations.start_load(_request())

    async def visible() -> bool:
        try:
            await other.operations.job(job_id)
        except UnknownJob:
            return False
        return True

    await eventually(visible, timeout_s=5, what="the job is in Redis")
    states = [state async for state in other.operations.jobs.follow(job_id) if state is not None]
    assert states[-1].status is JobStatus.SUCCEEDED
    assert (states[-1].result or {})["triton_model"] == "tiny-v1"
    progress = [state.progress for state in states]
    assert progress == sorted(progress)
    with pytest.raises(UnknownJob):
        await other.operations.job("nothing")


async def test_failed_job_keeps_its_problem(start_operator: StartOperator, registry_path: Path) -> None:
    worker = await start_operator(act="crash")
    (registry_path / "tiny.onnx").write_bytes(b"x")
    job_id = worker.operations.start_load(_request())
    states = [state async for state in worker.operations.jobs.follow(job_id) if state is not None]
    assert states[-1].status is JobStatus.FAILED
    assert states[-1].error is not None
    assert states[-1].error.status == 500
    assert states[-1].error.code == "export_crashed"


async def test_alias_moves_under_traffic_and_back(start_operator: StartOperator) -> None:
    worker, other = await start_operator(), await start_operator()
    for version in ("v1.0", "v1.1"):
        await worker.use(worker.version("echo", version))
    await worker.operations.move_alias("echo", "production", "v1.0")
    running = True
    seen: set[str] = set()

    async def caller(one: ModelWorker) -> None:
        while running:
            model = one.version("echo", "production")
            assert await one.use(model) == marker_of("echo", model.version)
            seen.add(model.version)

    async def names(version: str) -> bool:
        return all(one.aliases.target("echo", "production") == version for one in (worker, other))

    await eventually(lambda: names("v1.0"), timeout_s=5, what="both know the alias")
    callers = [asyncio.create_task(caller(one)) for one in (worker, other) for _ in range(2)]
    for version in ("1.1", "v1.0", "v1.1"):
        model, _ = await other.operations.move_alias("echo", "production", version)
        await eventually(lambda model=model: names(model.version), timeout_s=5, what="both follow")
        await asyncio.sleep(0.05)
    running = False
    await asyncio.gather(*callers)
    assert seen == {"v1.0", "v1.1"}
    history = await worker.aliases.history("echo", "production")
    assert [(move.from_version, move.to_version) for move in history] == [
        (None, "v1.0"), ("v1.0", "v1.1"), ("v1.1", "v1.0"), ("v1.0", "v1.1"),
    ]  # fmt: skip
    assert [move.time for move in history] == sorted(move.time for move in history)
    assert await worker.operations.remove_alias("echo", "production") == "v1.1"
    with pytest.raises(UnknownAlias):
        await worker.operations.remove_alias("echo", "production")
    with pytest.raises(UnknownVersion):
        worker.version("echo", "production")


@pytest.mark.parametrize("alias", ["latest", "v1.0", "1.0", "Production", "1st", "a" * 65, "a/b"])
async def test_alias_that_cannot_be_is_refused(start_operator: StartOperator, alias: str) -> None:
    worker = await start_operator()
    with pytest.raises(InvalidInput):
        await worker.operations.move_alias("echo", alias, "v1.0")


async def test_delete_removes_the_version_unless_it_is_needed(
    start_operator: StartOperator, repository: Path
) -> None:
    worker, other = await start_operator(), await start_operator()
    model = worker.version("echo", "v1.0")
    await worker.use(model)
    await worker.operations.move_alias("echo", "production", "v1.0")
    with pytest.raises(ModelInUse, match="production"):
        await other.operations.delete("echo", "v1.0")
    await worker.operations.remove_alias("echo", "production")
    await worker.cache.pin(model.key, "experiment")
    with pytest.raises(ModelInUse, match="pinned"):
        await other.operations.delete("echo", "v1.0")
    await worker.cache.unpin(model.key, "experiment")
    # Nobody's fallback any more, and no worker has looked since.
    await worker.cache.pin(model.key, f"{OWNER}echo-v1.1")
    await other.operations.delete("echo", "1.0")
    assert not (repository / "echo-v1.0").exists()
    assert model.key not in await worker.ready_in_triton()
    with pytest.raises(UnknownVersion):
        other.version("echo", "v1.0")
    with pytest.raises(UnknownVersion):
        await other.operations.delete("echo", "v1.0")
    assert not _leftovers(repository)


async def test_unload_is_idempotent_and_a_use_loads_again(start_operator: StartOperator) -> None:
    worker = await start_operator()
    model = worker.version("echo", "v1.0")
    await worker.use(model)
    for _ in range(2):
        assert (await worker.operations.unload("echo", "1.0")).key == model.key
        assert await worker.ready_in_triton() == set()
    assert await worker.use(model) == marker_of("echo", "v1.0")


async def test_warmup_tells_what_became_of_each(start_operator: StartOperator, repository: Path) -> None:
    write_identity_like_model(repository, "bad", "v1", broken=True)
    worker = await start_operator()
    await worker.use(worker.version("echo", "v1.1"))
    targets = [("echo", "v1.0"), ("echo", "1.1"), ("echo", "v9"), ("nothing", "v1"), ("bad", "latest")]
    results = await worker.operations.warmup.warm_up(
        [WarmupTarget(model_type=model_type, version=version) for model_type, version in targets]
    )
    assert [result.status for result in results] == [
        WarmupStatus.WARMED,
        WarmupStatus.ALREADY_CACHED,
        WarmupStatus.NOT_FOUND,
        WarmupStatus.NOT_FOUND,
        WarmupStatus.ERROR,
    ]
    assert [result.version for result in results[:2]] == ["v1.0", "v1.1"]
    stats = await worker.cache.stats()
    assert (stats.hits, stats.misses) == (0, 1)
