"""The embedded Redis: configuration, port, readiness. `process.py` keeps it running."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from control_plane.embedded import layout, ports, probes
from control_plane.embedded.errors import ChildFailed, PortTaken
from control_plane.embedded.process import Child, ChildSpec, RestartPolicy
from control_plane.embedded.server import EmbeddedServer

log = structlog.get_logger()

_BIND_ATTEMPTS = 5
_BIND_FAILURE = "address already in use"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisOptions:
    """How to run Redis."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 0
    """Port; 0 takes a free one."""
    start_timeout_s: float = 60.0
    """Longest time until it has its data and answers, in seconds."""
    stop_timeout_s: float = 10.0
    """Between SIGTERM and SIGKILL, in seconds."""
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    """When to start it again."""


class RedisServer(EmbeddedServer):
    """A Redis that is kept running and keeps its data, as an async context manager.

    Args:
        options: How to run it.
        data_dir: Takes `redis/` and `logs/redis.log`. One Redis for each data directory.
        on_change: Called when its process changes state.
    """

    def __init__(
        self, options: RedisOptions, *, data_dir: Path, on_change: Callable[[], None] | None = None
    ) -> None:
        super().__init__("Redis")
        self.options = options
        self._data_dir = data_dir.absolute()
        self._on_change = on_change or (lambda: None)
        self._port = 0

    @property
    def port(self) -> int:
        """Where it listens; the same after each restart."""
        return self._port

    @property
    def url(self) -> str:
        """`redis://` URL of database 0. It has no password, and listens on loopback."""
        return f"redis://{self.options.host}:{self._port}/0"

    async def start(self) -> None:
        """Starts Redis and waits until it answers.

        Raises:
            WheelMissing: there is no redis-server.
            PortTaken: the port that was asked for is in use.
            ChildFailed: it exited, or wasn't ready in time.
        """
        binary = await asyncio.to_thread(layout.find_redis)
        folder = self._data_dir / "redis"
        folder.mkdir(parents=True, exist_ok=True)
        if self.options.port and not await ports.becomes_free(self.options.port, host=self.options.host):
            raise _port_taken(self.options.host, self.options.port)
        for attempt in range(_BIND_ATTEMPTS):
            self._port = self.options.port or ports.free_ports(1, host=self.options.host)[0]
            config = folder / "redis.conf"
            config.write_text(redis_configuration(self.options, port=self._port, folder=folder), "utf-8")
            self._child = Child(
                ChildSpec(
                    name="redis",
                    command=(str(binary), str(config)),
                    log_path=self._data_dir / "logs" / "redis.log",
                    start_timeout_s=self.options.start_timeout_s,
                    stop_timeout_s=self.options.stop_timeout_s,
                    restart=self.options.restart,
                ),
                ready=self._is_ready,
                on_change=self._on_change,
            )
            try:
                await self._child.start()
            except ChildFailed as error:
                if _BIND_FAILURE not in error.log_tail.lower():
                    raise
                if self.options.port or attempt == _BIND_ATTEMPTS - 1:
                    raise _port_taken(self.options.host, self._port) from error
                log.warning("redis_port_taken", attempt=attempt + 1)
            else:
                break
        log.info(
            "redis_ready", pid=self.child.pid, host=self.options.host, port=self._port, binary=str(binary)
        )

    async def stop(self, *, force: bool = False) -> None:
        """Stops Redis; what was written stays in its append-only file."""
        if self._child is not None:
            await self._child.stop(force=force)

    async def _is_ready(self) -> bool:
        return await probes.redis_answers(self.options.host, self._port)


def redis_configuration(options: RedisOptions, *, port: int, folder: Path) -> str:
    """The text of redis.conf: loopback, append-only file synced each second, no snapshots, no Unix socket."""
    place = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    lines = [
        f"bind {options.host}",
        f"port {port}",
        "protected-mode yes",
        "daemonize no",
        f'dir "{place}"',
        "appendonly yes",
        "appendfsync everysec",
        "aof-load-truncated yes",  # a kill may cut the last entry short
        'save ""',
        'logfile ""',  # to standard output, which is the log file
    ]
    return "\n".join(lines) + "\n"


def _port_taken(host: str, port: int) -> PortTaken:
    return PortTaken(
        f"Redis can't listen on {host}:{port}: in use.",
        expected="a free port",
        got=str(port),
        remedy="Stop what uses it, set REDIS_HOST to use that Redis, or choose another port; 0 takes a free one.",
    )
