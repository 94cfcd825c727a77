"""Runs Redis, Triton and the API workers of one machine: starts, watches, restarts and stops them in order.

The workers share one listening socket, which the supervisor binds and they inherit: a worker that restarts loses no
connection that waits to be accepted, and the port stays the same.
"""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from control_plane.embedded import layout, ports, probes
from control_plane.embedded.errors import ChildFailed
from control_plane.embedded.process import Child, ChildSpec, RestartPolicy
from control_plane.embedded.redis import RedisOptions, RedisServer
from control_plane.embedded.state import ProcessState, ServerState, write_state
from control_plane.embedded.triton import TritonOptions, TritonServer

log = structlog.get_logger()

EXIT_CONFIG = 78
"""A worker's exit code (EX_CONFIG of sysexits.h) for a setting that a restart can't mend."""
FD_PLACEHOLDER = "{fd}"
"""Stands in a worker's command for the number of the inherited listening socket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where the started services are; None for those that aren't embedded."""

    redis_url: str | None = None
    triton_grpc_url: str | None = None
    triton_http_url: str | None = None
    triton_metrics_url: str | None = None
    api_host: str | None = None
    api_port: int | None = None


def _no_environment(_: Endpoints) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How to run the API workers."""

    command: tuple[str, ...]
    """Program and arguments; `{fd}` becomes the number of the listening socket."""
    count: int = 1
    """Worker processes."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 0
    """Port; 0 takes a free one."""
    environment: Callable[[Endpoints], Mapping[str, str]] = _no_environment
    """Additions to the workers' environment, from where the services are; called once, before the first starts."""
    ready_path: str | None = None
    """Path that answers 200 once a worker takes requests, whichever does; None counts a started worker as ready."""
    start_timeout_s: float = 60.0
    """Longest time until a worker is ready, in seconds."""
    drain_timeout_s: float = 30.0
    """Longest time for its requests in flight after SIGTERM, in seconds."""
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    """When to start a worker again."""


async def _nothing(_: Endpoints) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedOptions:
    """What to run on this machine."""

    data_dir: Path
    """Logs, Redis' data, Triton's backends, the state file; held by a lock."""
    redis: RedisOptions | None = field(default_factory=RedisOptions)
    """None: not embedded."""
    triton: TritonOptions | None = None
    """None: not embedded."""
    workers: WorkerOptions | None = None
    """None: no API workers, only the services."""
    on_ready: Callable[[Endpoints], Awaitable[None]] = _nothing
    """Awaited once, when everything is ready."""


async def supervise(options: EmbeddedOptions) -> int:
    """Runs everything until SIGTERM or SIGINT, then stops workers, Triton and Redis in this order.

    A second SIGTERM or SIGINT kills at once. SIGHUP is ignored. Must run in the main thread: the children die with it.

    Args:
        options: What to run.

    Returns:
        0 after an ordered stop; `EXIT_CONFIG` when a worker said that its configuration is wrong.

    Raises:
        WheelMissing: a binary isn't installed.
        DataDirLocked: another server uses the data directory.
        PortTaken: a port that was asked for is in use.
        ChildFailed: a child didn't start. Whatever had been started is stopped.
    """
    return await _Supervisor(options).run()


class _Supervisor:
    def __init__(self, options: EmbeddedOptions) -> None:
        self._options = options
        self._data_dir = options.data_dir.absolute()
        self._redis: RedisServer | None = None
        self._triton: TritonServer | None = None
        self._workers: list[Child] = []
        self._listener: socket.socket | None = None
        self._api_port = 0
        self._ready = False
        self._stop_asked = asyncio.Event()
        self._force = False

    async def run(self) -> int:
        async with AsyncExitStack() as stack:
            stack.enter_context(layout.lock_data_dir(self._data_dir))
            await stack.enter_async_context(self._signals())
            stack.callback(self._write_state)
            try:
                if not await self._started_before_stop(stack):
                    return 0
            except ChildFailed as error:
                if error.child_exit_code != EXIT_CONFIG:
                    raise
                log.error("child_gave_up", child=error.name, exit_code=EXIT_CONFIG, log_tail=error.log_tail)
                return EXIT_CONFIG
            self._ready = True
            self._write_state()
            log.info("server_ready", supervisor_pid=os.getpid(), **self._ports())
            await self._options.on_ready(self._endpoints())
            exit_code = await self._until_stop()
            self._ready = False
            # The workers close the last copies, after they have served whoever waits in the socket's queue.
            if self._listener is not None:
                self._listener.close()
            log.info("server_stopping", exit_code=exit_code)
            return exit_code

    async def _start(self, stack: AsyncExitStack) -> None:
        options = self._options
        if options.workers is not None:
            # Bound before anything is started: a taken port is the likeliest failure.
            if options.workers.port:
                await ports.becomes_free(options.workers.port, host=options.workers.host)
            self._listener = stack.enter_context(ports.listen(options.workers.host, options.workers.port))
            self._api_port = int(self._listener.getsockname()[1])
        if options.redis is not None:
            self._redis = RedisServer(options.redis, data_dir=self._data_dir, on_change=self._write_state)
            stack.push_async_callback(self._stop_service, self._redis)
        if options.triton is not None:
            self._triton = TritonServer(options.triton, data_dir=self._data_dir, on_change=self._write_state)
            stack.push_async_callback(self._stop_service, self._triton)
        await _all_or_first_error(
            *(server.start() for server in (self._redis, self._triton) if server is not None)
        )
        if options.workers is not None and self._listener is not None:
            environment = options.workers.environment(self._endpoints())
            self._workers = [
                self._worker(index, options.workers, environment) for index in range(options.workers.count)
            ]
            stack.push_async_callback(self._stop_workers)
            await _all_or_first_error(*(worker.start() for worker in self._workers))

    def _worker(self, index: int, options: WorkerOptions, environment: Mapping[str, str]) -> Child:
        assert self._listener is not None  # noqa: S101  bound in _start
        fd = self._listener.fileno()
        address = self._listener.getsockname()
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])  # noqa: S104  compared, not bound
        path = options.ready_path

        async def is_ready() -> bool:
            return path is None or await probes.http_ok(host, address[1], path)

        return Child(
            ChildSpec(
                name=f"worker-{index}",
                command=tuple(part.replace(FD_PLACEHOLDER, str(fd)) for part in options.command),
                log_path=self._data_dir / "logs" / f"worker-{index}.log",
                environment=environment,
                inherited_fds=(fd,),
                start_timeout_s=options.start_timeout_s,
                stop_timeout_s=options.drain_timeout_s,
                fatal_exit_codes=frozenset({EXIT_CONFIG}),
                restart=options.restart,
            ),
            ready=is_ready,
            on_change=self._write_state,
        )

    async def _started_before_stop(self, stack: AsyncExitStack) -> bool:
        starting = asyncio.create_task(self._start(stack))
        stop = asyncio.create_task(self._stop_asked.wait())
        try:
            await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting})
        if starting.cancelled():
            return False
        await starting
        return True

    async def _until_stop(self) -> int:
        waits = [asyncio.create_task(worker.gave_up.wait()) for worker in self._workers]
        waits.append(asyncio.create_task(self._stop_asked.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return EXIT_CONFIG if any(worker.gave_up.is_set() for worker in self._workers) else 0

    async def _stop_workers(self) -> None:
        if self._listener is not None:
            self._listener.close()  # with the workers' copies gone as well, new connections are refused
        await asyncio.gather(*(worker.stop(force=self._force) for worker in self._workers))

    async def _stop_service(self, server: RedisServer | TritonServer) -> None:
        await server.stop(force=self._force)

    @asynccontextmanager
    async def _signals(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal, number)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _on_stop_signal(self, number: signal.Signals) -> None:
        if not self._stop_asked.is_set():
            log.info("stop_requested", signal=number.name)
            self._stop_asked.set()
            return
        log.warning("stop_forced", signal=number.name)
        self._force = True
        for child in self._children().values():
            child.kill()

    def _children(self) -> dict[str, Child]:
        children = {worker.spec.name: worker for worker in self._workers}
        for name, server in (("redis", self._redis), ("triton", self._triton)):
            if server is not None and server.has_child:
                children[name] = server.child
        return children

    def _ports(self) -> dict[str, int]:
        found: dict[str, int] = {}
        if self._listener is not None:
            found["api"] = self._api_port
        if self._redis is not None and self._redis.has_child:
            found["redis"] = self._redis.port
        if self._triton is not None and self._triton.has_child:
            chosen = self._triton.ports
            found |= {
                "triton_http": chosen.http,
                "triton_grpc": chosen.grpc,
                "triton_metrics": chosen.metrics,
            }
        return found

    def _endpoints(self) -> Endpoints:
        redis, triton, workers = self._redis, self._triton, self._options.workers
        return Endpoints(
            redis_url=None if redis is None else redis.url,
            triton_grpc_url=None if triton is None else triton.grpc_url,
            triton_http_url=None if triton is None else triton.http_url,
            triton_metrics_url=None if triton is None else triton.metrics_url,
            api_host=None if workers is None else workers.host,
            api_port=self._ports().get("api"),
        )

    def _write_state(self) -> None:
        processes = {
            name: ProcessState(pid=child.pid, state=str(child.state), restarts=child.restarts)
            for name, child in self._children().items()
        }
        ready = self._ready and not self._stop_asked.is_set()
        state = ServerState(supervisor_pid=os.getpid(), ready=ready, processes=processes, ports=self._ports())
        try:
            write_state(self._data_dir, state)
        except OSError as error:  # a full disk must not stop what it describes
            log.warning("state_not_written", error=str(error))


async def _all_or_first_error(*starts: Awaitable[None]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for start in starts:
                group.create_task(_await(start))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _await(awaitable: Awaitable[None]) -> None:
    await awaitable
