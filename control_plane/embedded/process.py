"""A child process that is kept running: readiness, restarts with back-off, an orderly stop, a bounded log file.

The child dies with the thread that starts it (see launcher.py), so start children from a thread that lives as long as
they should: the main thread, or one that runs the event loop. It leads a process group of its own, which is killed as
a whole when the child has exited, so that no grandchild outlives it.
"""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import structlog

from control_plane.embedded import launcher
from control_plane.embedded.errors import ChildFailed

log = structlog.get_logger()

_FIRST_POLL_S = 0.01
_LONGEST_POLL_S = 0.1
_TAIL_BYTES = 16_384


class ChildState(StrEnum):
    """What a child is doing."""

    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing_off"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How long to wait before a child that died is started again."""

    first_pause_s: float = 0.1
    """Before the first restart, in seconds."""
    longest_pause_s: float = 15.0
    """Upper bound, in seconds."""
    factor: float = 2.0
    """Growth with each failure in a row."""
    jitter: float = 0.2
    """Largest part of the pause that chance adds, so that children don't restart in step."""
    stable_after_s: float = 30.0
    """A child that ran so long starts from `first_pause_s` again, in seconds."""

    def pause_s(self, failures: int, *, chance: float) -> float:
        """The pause after so many failures in a row (from 1), for a `chance` in [0, 1), in seconds."""
        exponent = min(max(failures - 1, 0), 32)
        return min(self.first_pause_s * self.factor**exponent, self.longest_pause_s) * (
            1 + self.jitter * chance
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What to run, and how to treat it."""

    name: str
    """For logs and the state file."""
    command: tuple[str, ...]
    """Program and arguments."""
    log_path: Path
    """Takes its standard output and error; the previous start's is kept beside it as `.1`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's own."""
    inherited_fds: tuple[int, ...] = ()
    """File descriptors that it keeps."""
    start_timeout_s: float = 60.0
    """Longest time until it is ready, in seconds."""
    stop_timeout_s: float = 10.0
    """Between SIGTERM and SIGKILL, in seconds."""
    fatal_exit_codes: frozenset[int] = frozenset()
    """Exit codes after which a restart is pointless."""
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    """When to start it again."""
    log_limit_bytes: int = 32 * 1024 * 1024
    """The log file's content is moved aside when it grows past this."""
    log_check_s: float = 10.0
    """How often its size is looked at, in seconds."""


async def _always_ready() -> bool:
    return True


def _nothing() -> None:
    return


class Child:
    """One supervised child process.

    Args:
        spec: What to run.
        ready: Asked again and again until it says yes; must not raise, and must bound its own waiting.
        before_start: Called before each start, e.g. to clear what a killed predecessor left.
        on_change: Called after each change of state.
    """

    def __init__(
        self,
        spec: ChildSpec,
        *,
        ready: Callable[[], Awaitable[bool]] = _always_ready,
        before_start: Callable[[], None] = _nothing,
        on_change: Callable[[], None] = _nothing,
    ) -> None:
        self.spec = spec
        self.restarts = 0
        self.exit_code: int | None = None
        self.gave_up = asyncio.Event()
        self._ready = ready
        self._before_start = before_start
        self._on_change = on_change
        self._state = ChildState.STOPPED
        self._process: subprocess.Popen[bytes] | None = None
        self._exited = asyncio.Event()
        self._stopping = False
        self._keeper: asyncio.Task[None] | None = None

    @property
    def state(self) -> ChildState:
        """What it is doing."""
        return self._state

    @property
    def pid(self) -> int | None:
        """Its process id, while it has one."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Starts it, waits until it is ready, and keeps it running from then on.

        Raises:
            ChildFailed: it exited, or wasn't ready in time. Nothing is left running.
        """
        self._stopping = False
        _set_aside(self.spec.log_path)
        try:
            self._spawn()
            if not await self._became_ready():
                reason = (
                    f"isn't ready after {self.spec.start_timeout_s:g} s"
                    if self._process is not None and not self._exited.is_set()
                    else f"exited with code {self.exit_code} during its start"
                )
                raise self._failure(reason)
        except BaseException:
            await self._kill()
            self._enter(ChildState.STOPPED)
            raise
        self._enter(ChildState.RUNNING)
        self._keeper = asyncio.create_task(self._keep(), name=f"keep-{self.spec.name}")

    async def stop(self, *, force: bool = False) -> None:
        """Stops it: SIGTERM, a wait of `stop_timeout_s`, then SIGKILL for its whole group.

        Args:
            force: SIGKILL at once.
        """
        self._stopping = True
        if self._process is not None and not self._exited.is_set():
            if not force:
                with suppress(ProcessLookupError):
                    os.kill(self._process.pid, signal.SIGTERM)
                await self._exits_within(self.spec.stop_timeout_s)
            await self._kill()
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        self._enter(ChildState.STOPPED)

    def kill(self) -> None:
        """Sends SIGKILL to its group; also cuts the wait of a stop under way short."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of its log."""
        try:
            with self.spec.log_path.open("rb") as file:
                file.seek(max(0, self.spec.log_path.stat().st_size - _TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join(deque(text.splitlines(), maxlen=lines))

    def _spawn(self) -> None:
        self._before_start()
        self._enter(ChildState.STARTING)
        self._exited = asyncio.Event()
        self.exit_code = None
        wrapped = [
            sys.executable,
            "-I",
            "-S",
            str(Path(launcher.__file__)),
            str(os.getpid()),
            *self.spec.command,
        ]
        with self.spec.log_path.open("ab") as log_file:
            self._process = subprocess.Popen(
                wrapped,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                env=_inherited_environment() | dict(self.spec.environment),
                pass_fds=self.spec.inherited_fds,
                start_new_session=True,
            )
        pidfd = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(pidfd, self._reap, pidfd, self._process)

    def _reap(self, pidfd: int, process: subprocess.Popen[bytes]) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        # The group goes before its leader is reaped: until then nobody else can get its number.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self.exit_code = process.wait()
        self._process = None
        self._exited.set()

    async def _became_ready(self) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.spec.start_timeout_s
        poll_s = _FIRST_POLL_S
        while not self._exited.is_set() and loop.time() < deadline:
            if await self._ready() and not self._exited.is_set():
                return True
            await self._exits_within(poll_s)
            poll_s = min(poll_s * 1.5, _LONGEST_POLL_S)
        return False

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        ready_at: float | None = loop.time()
        while True:
            await self._watch_log_until_exit()
            if self._stopping:
                return
            if self.exit_code in self.spec.fatal_exit_codes:
                log.error(
                    "child_gave_up", child=self.spec.name, exit_code=self.exit_code, log_tail=self.log_tail(5)
                )
                self._enter(ChildState.STOPPED)
                self.gave_up.set()
                return
            # A long start that failed is no stable run.
            was_stable = ready_at is not None and loop.time() - ready_at >= self.spec.restart.stable_after_s
            failures = 1 if was_stable else failures + 1
            ready_at = None
            pause_s = self.spec.restart.pause_s(failures, chance=random.random())  # noqa: S311  jitter
            log.warning(
                "child_exited",
                child=self.spec.name,
                exit_code=self.exit_code,
                restart_in_s=round(pause_s, 3),
                log_tail=self.log_tail(5),
            )
            self._enter(ChildState.BACKING_OFF)
            await asyncio.sleep(pause_s)
            try:
                self._spawn()
            except OSError as error:
                log.warning("child_not_started", child=self.spec.name, error=str(error))
                self._exited.set()
                continue
            self.restarts += 1
            if await self._became_ready():
                log.info("child_restarted", child=self.spec.name, pid=self.pid, restarts=self.restarts)
                self._enter(ChildState.RUNNING)
                ready_at = loop.time()
            else:
                await self._kill()

    async def _exits_within(self, timeout_s: float) -> None:
        # Not `wait_for`: in Python 3.11 it loses a cancellation that comes with the event (cpython 86296).
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._exited.wait()

    async def _watch_log_until_exit(self) -> None:
        while not self._exited.is_set():
            await self._exits_within(self.spec.log_check_s)
            with suppress(OSError):
                if self.spec.log_path.stat().st_size > self.spec.log_limit_bytes:
                    # The child keeps the file open for appending, so it is copied and emptied, not renamed.
                    shutil.copyfile(self.spec.log_path, _aside(self.spec.log_path))
                    os.truncate(self.spec.log_path, 0)

    async def _kill(self) -> None:
        if self._process is not None:
            self.kill()
            await self._exited.wait()

    def _failure(self, reason: str) -> ChildFailed:
        return ChildFailed(
            f"{self.spec.name} {reason}.",
            name=self.spec.name,
            log_path=self.spec.log_path,
            log_tail=self.log_tail(),
            child_exit_code=self.exit_code,
        )

    def _enter(self, state: ChildState) -> None:
        self._state = state
        self._on_change()


def _aside(log_path: Path) -> Path:
    return log_path.with_name(log_path.name + ".1")


def _set_aside(log_path: Path) -> None:
    log_path.parent.mkdir(parents=True, exist_ok=True)
    if log_path.exists():
        log_path.replace(_aside(log_path))


def _inherited_environment() -> dict[str, str]:
    return dict(os.environ)  # noqa: TID251  children inherit it; no setting is read here
