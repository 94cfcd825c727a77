"""Child processes: readiness, restarts, stop, groups, logs, death with the parent."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from control_plane.embedded.errors import ChildFailed
from control_plane.embedded.process import Child, ChildSpec, ChildState, RestartPolicy
from tests.support import programs
from tests.support.embedded import is_alive
from tests.support.server import wait_until

_QUICK = RestartPolicy(first_pause_s=0.05, longest_pause_s=0.2)


def _spec(tmp_path: Path, *command: str, **changes: object) -> ChildSpec:
    settings = {"name": "child", "log_path": tmp_path / "logs" / "child.log", "restart": _QUICK} | changes
    return ChildSpec(command=command, **settings)


@asynccontextmanager
async def _running(child: Child) -> AsyncIterator[Child]:
    await child.start()
    try:
        yield child
    finally:
        await child.stop()


async def _until(condition: Callable[[], bool], what: str, *, timeout_s: float = 20.0) -> None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.01)


async def test_start_and_stop_leaves_nothing(tmp_path: Path) -> None:
    states: list[ChildState] = []
    child = Child(_spec(tmp_path, "sleep", "600"), on_change=lambda: states.append(child.state))
    async with _running(child):
        pid = child.pid
        assert pid is not None
        assert child.state is ChildState.RUNNING
    assert states == [ChildState.STARTING, ChildState.RUNNING, ChildState.STOPPED]
    assert child.pid is None
    assert not psutil.pid_exists(pid)


async def test_twenty_starts_leave_no_thread_descriptor_or_child(tmp_path: Path) -> None:
    async def once() -> None:
        async with _running(Child(_spec(tmp_path, "sleep", "600"))):
            pass

    await once()
    before = (_open_files(), threading.active_count(), len(psutil.Process().children()))
    for _ in range(20):
        await once()
    assert (
        _open_files(),
        threading.active_count(),
        len(psutil.Process().children()),
    ) == before


async def test_start_of_a_program_that_exits_fails_with_its_log(tmp_path: Path) -> None:
    child = Child(_spec(tmp_path, "sh", "-c", "echo no such luck; exit 3"), ready=_never)
    with pytest.raises(ChildFailed, match=r"exited with code 3 during its start.*\nno such luck") as caught:
        await child.start()
    assert caught.value.log_path.read_text() == "no such luck\n"
    assert child.state is ChildState.STOPPED


async def test_start_of_a_missing_program_fails_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=r"/no/such/program can't be run: No such file"):
        await Child(_spec(tmp_path, "/no/such/program"), ready=_never).start()


async def test_start_not_ready_before_the_deadline_fails_and_kills(tmp_path: Path) -> None:
    child = Child(_spec(tmp_path, "sh", "-c", "echo $$; sleep 600", start_timeout_s=0.5), ready=_never)
    with pytest.raises(ChildFailed, match=r"isn't ready after 0\.5 s"):
        await child.start()
    assert not is_alive(int(child.log_tail()))


async def test_killed_child_is_started_again(tmp_path: Path) -> None:
    starts: list[int] = []
    child = Child(_spec(tmp_path, "sleep", "600"), before_start=lambda: starts.append(1))
    async with _running(child):
        for restarts in (1, 2):
            os.kill(child.pid or 0, signal.SIGKILL)
            await _until(
                lambda n=restarts: child.restarts == n and child.state is ChildState.RUNNING, "a restart"
            )
        assert len(starts) == 3


async def test_stop_while_backing_off_starts_nothing(tmp_path: Path) -> None:
    child = Child(
        _spec(tmp_path, "sleep", "600", restart=RestartPolicy(first_pause_s=60, longest_pause_s=60))
    )
    async with _running(child):
        os.kill(child.pid or 0, signal.SIGKILL)
        await _until(lambda: child.state is ChildState.BACKING_OFF, "the back-off")
    assert child.state is ChildState.STOPPED
    assert child.restarts == 0


async def test_fatal_exit_code_gives_up(tmp_path: Path) -> None:
    child = Child(_spec(tmp_path, "sh", "-c", "sleep 0.1; exit 78", fatal_exit_codes=frozenset({78})))
    async with _running(child):
        await asyncio.wait_for(child.gave_up.wait(), 20)
        assert (child.state, child.exit_code, child.restarts) == (ChildState.STOPPED, 78, 0)


async def test_stop_of_a_child_that_ignores_sigterm_kills_it(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap '' TERM; touch {ready}; while true; do sleep 1; done"
    child = Child(_spec(tmp_path, "sh", "-c", script, stop_timeout_s=0.3), ready=_exists(ready))
    async with _running(child):
        pid = child.pid or 0
    assert child.exit_code == -signal.SIGKILL
    assert not psutil.pid_exists(pid)


async def test_grandchildren_go_when_the_child_is_killed(tmp_path: Path) -> None:
    child = Child(_spec(tmp_path, sys.executable, programs.THIS, "nest"))
    async with _running(child):
        await _until(lambda: child.log_tail() != "", "the grandchild's id")
        grandchild = int(child.log_tail())
        os.kill(child.pid or 0, signal.SIGKILL)
        await _until(lambda: not is_alive(grandchild), "the grandchild's end")


async def test_log_of_a_chatty_child_stays_bounded(tmp_path: Path) -> None:
    script = "while true; do echo a line of some length; done"
    child = Child(_spec(tmp_path, "sh", "-c", script, log_limit_bytes=50_000, log_check_s=0.05))
    aside = child.spec.log_path.with_name("child.log.1")
    async with _running(child):
        for _ in range(2):
            await _until(aside.exists, "the log moved aside")
            assert aside.stat().st_size > child.spec.log_limit_bytes
            aside.unlink()
        await _until(lambda: "a line of some length" in child.log_tail(), "lines in the emptied log")


async def test_log_keeps_the_start_before(tmp_path: Path) -> None:
    child = Child(_spec(tmp_path, "sh", "-c", "echo first; exec sleep 600"))
    for _ in range(2):
        async with _running(child):
            await _until(lambda: child.log_tail() == "first", "the log line")
    folder = child.spec.log_path.parent
    assert sorted(path.name for path in folder.iterdir()) == ["child.log", "child.log.1"]


def test_family_dies_when_the_parent_is_killed(tmp_path: Path) -> None:
    log_path = tmp_path / "child.log"
    parent = subprocess.Popen(
        [sys.executable, programs.THIS, "family", str(log_path)], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_until(lambda: log_path.read_text() != "", timeout_s=20, what="the grandchild's id")
        assert is_alive(child)
        parent.kill()
        wait_until(lambda: not is_alive(child), timeout_s=20, what="the child's death")
    grandchild = int(log_path.read_text())
    os.kill(grandchild, signal.SIGKILL)  # a grandchild is its parent's to bind; nothing is left running here


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _never() -> bool:
    return False


def _exists(path: Path) -> Callable[[], object]:
    async def ready() -> bool:
        return path.exists()  # noqa: ASYNC240  one stat

    return ready
