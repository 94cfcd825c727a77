"""The embedded Triton: command line, ports, readiness, leftovers. `process.py` keeps it running."""

import asyncio
import hashlib
import shlex
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from control_plane.embedded import layout, ports, probes
from control_plane.embedded.errors import ChildFailed, PortTaken
from control_plane.embedded.process import Child, ChildSpec, RestartPolicy
from control_plane.embedded.server import EmbeddedServer

log = structlog.get_logger()

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the Python backend's regions lie there
_BIND_ATTEMPTS = 5
_BIND_FAILURES = ("address already in use", "failed to bind", "socket '", "unavailable - socket")


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonOptions:
    """How to run Triton."""

    model_repository: Path
    """The folder with the models."""
    host: str = "127.0.0.1"
    """Address of its three services. It knows no authentication: leave it on loopback."""
    http_port: int = 0
    """Port; 0 takes a free one."""
    grpc_port: int = 0
    """Port; 0 takes a free one."""
    metrics_port: int = 0
    """Port; 0 takes a free one."""
    model_load_threads: int = 4
    """Models loaded at the same time."""
    response_cache_bytes: int = 0
    """Size of the response cache; 0 for none."""
    shared_memory_bytes: int = 1024 * 1024
    """First size, and growth, of a model instance's region in /dev/shm; 1 MiB is the least that Triton takes."""
    extra_arguments: tuple[str, ...] = ()
    """Further arguments, e.g. `--grpc-restricted-protocol=…`."""
    start_timeout_s: float = 60.0
    """Longest time until it is ready, in seconds."""
    exit_timeout_s: int = 5
    """How long its exit waits for requests in flight and for models to unload, in whole seconds."""
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    """When to start it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonPorts:
    """Where it listens; the same after each restart."""

    http: int
    grpc: int
    metrics: int


class TritonServer(EmbeddedServer):
    """A Triton that is kept running, as an async context manager.

    Args:
        options: How to run it.
        data_dir: Takes `triton/backends` and `logs/triton.log`. One Triton for each data directory.
        on_change: Called when its process changes state.
        choose_ports: Finds free ports, as `ports.free_ports` does.
    """

    def __init__(
        self,
        options: TritonOptions,
        *,
        data_dir: Path,
        on_change: Callable[[], None] | None = None,
        choose_ports: Callable[..., list[int]] = ports.free_ports,
    ) -> None:
        super().__init__("Triton")
        self.options = options
        self._data_dir = data_dir.absolute()
        self._choose_ports = choose_ports
        self._on_change = on_change or (lambda: None)
        # The prefix belongs to the data directory, so a later start can tell its own leftovers from others'.
        digest = hashlib.sha256(str(self._data_dir.resolve()).encode()).hexdigest()[:12]
        self.region_prefix = f"model_serving_{digest}_"
        self._ports: TritonPorts | None = None
        self._links: tempfile.TemporaryDirectory[str] | None = None

    @property
    def ports(self) -> TritonPorts:
        """Where it listens."""
        if self._ports is None:
            raise RuntimeError("The Triton server wasn't started.")
        return self._ports

    @property
    def grpc_url(self) -> str:
        """`host:port` of its gRPC service."""
        return f"{self.options.host}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """Base URL of its HTTP service."""
        return f"http://{self.options.host}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """URL of its Prometheus metrics."""
        return f"http://{self.options.host}:{self.ports.metrics}/metrics"

    async def start(self) -> None:
        """Lays out the backends, starts Triton and waits until it is ready.

        Raises:
            WheelMissing: Triton isn't installed.
            PortTaken: a port that was asked for is in use.
            ChildFailed: it exited, or wasn't ready in time.
        """
        files = await asyncio.to_thread(layout.find_triton)
        backends = self._data_dir / "triton" / "backends"
        await asyncio.to_thread(layout.lay_out_backends, backends, files)
        self.options.model_repository.mkdir(parents=True, exist_ok=True)
        repository, backends = self._for_the_shell(self.options.model_repository.absolute(), backends)
        asked = (self.options.http_port, self.options.grpc_port, self.options.metrics_port)
        for port in asked:
            if port and not await ports.becomes_free(port, host=self.options.host):
                raise _port_taken(self.options.host, port)
        for attempt in range(_BIND_ATTEMPTS):
            free = iter(self._choose_ports(len(asked), host=self.options.host))
            http, grpc, metrics = (port or next(free) for port in asked)
            self._ports = TritonPorts(http=http, grpc=grpc, metrics=metrics)
            self._child = Child(
                ChildSpec(
                    name="triton",
                    command=(
                        str(files.binary),
                        *triton_arguments(
                            self.options,
                            self._ports,
                            repository=repository,
                            backends=backends,
                            caches=files.caches,
                            region_prefix=self.region_prefix,
                        ),
                    ),
                    log_path=self._data_dir / "logs" / "triton.log",
                    environment=layout.triton_environment(files),
                    start_timeout_s=self.options.start_timeout_s,
                    # Triton gives up by itself at its exit timeout; a model whose process was killed never unloads.
                    stop_timeout_s=self.options.exit_timeout_s + 5,
                    restart=self.options.restart,
                ),
                ready=self._is_ready,
                before_start=self._remove_regions,
                on_change=self._on_change,
            )
            try:
                await self._child.start()
            except ChildFailed as error:
                if not _is_bind_failure(error.log_tail):
                    raise
                taken = [port for port in asked if port and not ports.is_free(port, host=self.options.host)]
                if taken or attempt == _BIND_ATTEMPTS - 1:
                    raise _port_taken(self.options.host, *(taken or self._ports_tuple())) from error
                log.warning("triton_port_taken", attempt=attempt + 1)
            else:
                break
        log.info(
            "triton_ready",
            pid=self.child.pid,
            grpc=self.grpc_url,
            http=self.http_url,
            metrics=self.metrics_url,
        )

    async def stop(self, *, force: bool = False) -> None:
        """Stops Triton and removes its shared memory."""
        if self._child is not None:
            await self._child.stop(force=force)
            self._remove_regions()
        if self._links is not None:
            self._links.cleanup()
            self._links = None

    async def _is_ready(self) -> bool:
        host = self.options.host
        # Metrics come last, and Triton goes on without them when their port is taken.
        return await probes.http_ok(host, self.ports.http, "/v2/health/ready") and await probes.http_ok(
            host, self.ports.metrics, "/metrics"
        )

    def _for_the_shell(self, *folders: Path) -> tuple[Path, ...]:
        """The folders, or links to them in a private folder where a path of theirs isn't one word to a shell.

        Triton's Python backend starts the models' processes through bash, with unquoted paths (2.51): in `my project/`
        no model would ever load.
        """
        if all(shlex.quote(str(folder)) == str(folder) for folder in folders):
            return folders
        self._links = tempfile.TemporaryDirectory(prefix="model_serving_")
        links = tuple(Path(self._links.name) / str(number) for number in range(len(folders)))
        for link, folder in zip(links, folders, strict=True):
            link.symlink_to(folder)
        return links

    def _ports_tuple(self) -> tuple[int, int, int]:
        return self.ports.http, self.ports.grpc, self.ports.metrics

    def _remove_regions(self) -> None:
        for region in _SHARED_MEMORY.glob(f"*{self.region_prefix}*"):
            with suppress(OSError):
                region.unlink()


def triton_arguments(
    options: TritonOptions,
    chosen: TritonPorts,
    *,
    repository: Path,
    backends: Path,
    caches: Path,
    region_prefix: str,
) -> list[str]:
    """Triton's command line, without the program.

    The configuration isn't completed by the backends: that starts a model's process twice, and stopping the first one
    takes a fixed second (1.4 s for a load instead of 0.15 s, Triton 2.51). So every config.pbtxt must be complete.

    Args:
        options: How to run it.
        chosen: The ports.
        repository: The model repository.
        backends: The backends folder.
        caches: The wheel's caches folder.
        region_prefix: Starts the names of its regions in /dev/shm.
    """
    arguments = [
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        # Strictly, one model that fails to load would make the whole server unready.
        "--strict-readiness=false",
        f"--model-load-thread-count={options.model_load_threads}",
        f"--exit-timeout-secs={options.exit_timeout_s}",
        f"--http-address={options.host}",
        f"--http-port={chosen.http}",
        f"--grpc-address={options.host}",
        f"--grpc-port={chosen.grpc}",
        f"--metrics-address={options.host}",
        f"--metrics-port={chosen.metrics}",
        "--log-format=ISO8601",
        # The Python backend's settings hold for the backends that are written in Python, too.
        f"--backend-config=python,shm-region-prefix-name={region_prefix}",
        f"--backend-config=python,shm-default-byte-size={options.shared_memory_bytes}",
        f"--backend-config=python,shm-growth-byte-size={options.shared_memory_bytes}",
    ]
    if options.response_cache_bytes:
        arguments += [
            f"--cache-directory={caches}",
            f"--cache-config=local,size={options.response_cache_bytes}",
        ]
    return [*arguments, *options.extra_arguments]


def _is_bind_failure(text: str) -> bool:
    lowered = text.lower()
    return any(mark in lowered for mark in _BIND_FAILURES)


def _port_taken(host: str, *taken: int) -> PortTaken:
    names = ", ".join(str(port) for port in taken)
    return PortTaken(
        f"Triton can't listen on {host}, port {names}: in use.",
        expected="free ports",
        got=names,
        remedy="Stop what uses it, or set triton.http_port, grpc_port and metrics_port; 0 takes a free one.",
    )
