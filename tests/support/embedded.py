"""A real Triton and a real Redis for tests, on free ports, in a thread with an event loop of its own.

The thread lets any test, synchronous or on whatever loop, use one server for the whole run. The servers die with the
thread, so a test process that is killed leaves nothing behind either.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from control_plane.embedded.redis import RedisOptions, RedisServer
from control_plane.embedded.triton import TritonOptions, TritonServer

_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedServices:
    """Where the services of a test run are."""

    triton_grpc_url: str
    triton_http_url: str
    metrics_url: str
    redis_url: str
    model_repository: Path
    logs: Path


@contextmanager
def running_triton(data_dir: Path, model_repository: Path, *extra_arguments: str) -> Iterator[TritonServer]:
    """A Triton on free ports, ready for calls.

    Args:
        data_dir: Takes its log and its backends.
        model_repository: What it reads; models may be added later, and loaded by name.
        extra_arguments: For its command line.
    """
    options = TritonOptions(
        model_repository=model_repository, extra_arguments=extra_arguments, exit_timeout_s=2
    )
    server = TritonServer(options, data_dir=data_dir)
    with _in_thread(server):
        yield server


@contextmanager
def running_redis(data_dir: Path) -> Iterator[RedisServer]:
    """A Redis on a free port, ready for commands."""
    server = RedisServer(RedisOptions(), data_dir=data_dir)
    with _in_thread(server):
        yield server


@contextmanager
def running_services(data_dir: Path, model_repository: Path) -> Iterator[EmbeddedServices]:
    """Both of them."""
    with ExitStack() as stack:
        redis = stack.enter_context(running_redis(data_dir))
        triton = stack.enter_context(running_triton(data_dir, model_repository))
        yield EmbeddedServices(
            triton_grpc_url=triton.grpc_url,
            triton_http_url=triton.http_url,
            metrics_url=triton.metrics_url,
            redis_url=redis.url,
            model_repository=model_repository,
            logs=data_dir / "logs",
        )


def processes_of(data_dir: Path) -> list[str]:
    """Command lines of living processes that belong to a data directory: servers, workers, model processes."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            words = " ".join([*process.cmdline(), process.cwd()])
        except psutil.Error:
            continue
        if str(data_dir) in words and process.pid != psutil.Process().pid:
            found.append(f"{process.pid} {words}")
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs: it exists, and isn't a zombie that waits to be reaped."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def model_processes(triton: TritonServer) -> list[int]:
    """Process ids of a Triton's model instances."""
    if triton.child.pid is None:
        return []
    found = []
    for process in psutil.Process(triton.child.pid).children():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.name().startswith("triton_python"):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


@contextmanager
def _in_thread(server: TritonServer | RedisServer) -> Iterator[None]:
    started = threading.Event()
    stop = threading.Event()
    failures: list[BaseException] = []

    async def serve() -> None:
        async with server:
            started.set()
            while not stop.is_set():  # noqa: ASYNC110  set by another thread
                await asyncio.sleep(0.02)

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001  raised again in the test's thread
            failures.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name=type(server).__name__, daemon=True)
    thread.start()
    started.wait()
    try:
        if not failures:
            yield
    finally:
        stop.set()
        thread.join(_STOP_TIMEOUT_S)
    if failures:
        raise failures[0]
