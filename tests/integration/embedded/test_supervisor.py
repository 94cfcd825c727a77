"""The whole of one machine under `supervise`: order, faults, signals, the state file."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from redis import Redis

from control_plane.embedded.state import ServerState, read_state
from tests.support import programs
from tests.support.embedded import processes_of
from tests.support.server import wait_until

_CHILDREN = {"redis", "triton", "worker-0", "worker-1"}


class _Supervised:
    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "data"
        self.output = folder / "output.log"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, programs.THIS, "server", str(self.data_dir), str(folder / "models"), "2"],
                stdout=output,
                stderr=output,
            )

    @property
    def state(self) -> ServerState:
        state = read_state(self.data_dir)
        assert state is not None, self.output.read_text()
        return state

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.state.ports['api']}"

    def pids(self) -> dict[str, int | None]:
        return {name: child.pid for name, child in self.state.processes.items()}

    def is_ready(self) -> bool:
        state = read_state(self.data_dir)
        if state is None or state.supervisor_pid != self.process.pid or not state.ready:
            return False
        return all(child.state == "running" for child in state.processes.values())

    def wait_ready(self) -> None:
        wait_until(
            lambda: self.process.poll() is not None or self.is_ready(),
            timeout_s=60,
            what=self.output.read_text(),
        )
        assert self.process.returncode is None, self.output.read_text()

    def wait_exit(self) -> int:
        return self.process.wait(60)


@contextmanager
def _supervised(folder: Path) -> Iterator[_Supervised]:
    server = _Supervised(folder)
    try:
        server.wait_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.process.terminate()
            server.wait_exit()
    wait_until(lambda: processes_of(folder) == [], timeout_s=20, what="no process left")


def test_supervise_starts_all_and_stops_all_on_sigterm(tmp_path: Path) -> None:
    with _supervised(tmp_path) as server:
        assert set(server.state.processes) == _CHILDREN
        assert set(server.state.ports) == {"api", "redis", "triton_http", "triton_grpc", "triton_metrics"}
        assert httpx.get(server.url).status_code == 200
        worker_log = server.data_dir / "logs" / "worker-0.log"
        said = f"redis redis://127.0.0.1:{server.state.ports['redis']}/0"
        wait_until(lambda: said in worker_log.read_text(), timeout_s=20, what="the worker's environment")
        pids = [pid for pid in server.pids().values() if pid is not None]
        server.process.terminate()
        assert server.wait_exit() == 0
        assert not any(psutil.pid_exists(pid) for pid in pids)
        stopped = server.state
        assert not stopped.ready
        assert {child.state for child in stopped.processes.values()} == {"stopped"}
    text = server.output.read_text()
    assert "Traceback" not in text
    assert text.index("server_ready") < text.index("stop_requested") < text.index("server_stopping")


def test_supervise_restarts_whatever_is_killed_at_the_same_ports(tmp_path: Path) -> None:
    with _supervised(tmp_path) as server:
        ports, before = server.state.ports, server.pids()
        for pid in before.values():
            os.kill(pid or 0, signal.SIGKILL)
        wait_until(
            lambda: server.is_ready() and not set(server.pids().values()) & set(before.values()),
            timeout_s=60,
            what="all of them back",
        )
        assert server.state.ports == ports
        assert {child.restarts for child in server.state.processes.values()} == {1}
        assert httpx.get(server.url).status_code == 200
        assert httpx.get(f"http://127.0.0.1:{ports['triton_http']}/v2/health/ready").status_code == 200
        with Redis(port=ports["redis"]) as client:
            assert client.ping()


def test_supervise_sigterm_drains_requests_in_flight(tmp_path: Path) -> None:
    with _supervised(tmp_path) as server, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(httpx.get, f"{server.url}/slow", timeout=20) for _ in range(2)]
        busy = [psutil.Process(server.pids()[f"worker-{index}"]) for index in range(2)]
        wait_until(
            lambda: all(_is_serving(process) for process in busy), timeout_s=20, what="requests in flight"
        )
        server.process.terminate()
        assert [answer.result().status_code for answer in answers] == [200, 200]
        assert server.wait_exit() == 0


def test_supervise_second_sigterm_kills_at_once(tmp_path: Path) -> None:
    with _supervised(tmp_path) as server:
        worker = server.pids()["worker-0"] or 0
        os.kill(worker, signal.SIGSTOP)  # it can't drain
        server.process.terminate()
        wait_until(lambda: not server.state.ready, timeout_s=20, what="the stop under way")
        server.process.terminate()
        assert server.process.wait(8) == 0


def test_supervise_sighup_changes_nothing(tmp_path: Path) -> None:
    with _supervised(tmp_path) as server:
        before = server.pids()
        server.process.send_signal(signal.SIGHUP)
        assert httpx.get(server.url).status_code == 200
        assert server.process.poll() is None
        assert server.pids() == before


def test_supervise_killed_takes_everything_along_and_starts_again(tmp_path: Path) -> None:
    with _supervised(tmp_path) as server:
        with Redis(port=server.state.ports["redis"]) as client:
            client.set("kept", "yes")
        server.process.kill()
        server.wait_exit()
        wait_until(lambda: processes_of(tmp_path) == [], timeout_s=20, what="no process left")
    with _supervised(tmp_path) as server, Redis(port=server.state.ports["redis"]) as client:
        assert client.get("kept") == b"yes"


def test_supervise_second_server_on_the_data_dir_is_refused(tmp_path: Path) -> None:
    with _supervised(tmp_path) as server:
        second = _Supervised(tmp_path)
        assert second.wait_exit() != 0
        assert (
            f"DataDirLocked: Another server (process {server.process.pid}) uses" in server.output.read_text()
        )
        assert server.is_ready()


@pytest.mark.parametrize("moment", ["start", "later"])
def test_supervise_worker_with_a_bad_setting_stops_with_its_code(tmp_path: Path, moment: str) -> None:
    (tmp_path / "data").mkdir()
    mark = tmp_path / "data" / "bad_setting"
    if moment == "start":
        mark.touch()
        server = _Supervised(tmp_path)
    else:
        server = _Supervised(tmp_path)
        server.wait_ready()
        mark.touch()
        os.kill(server.pids()["worker-0"] or 0, signal.SIGKILL)
    assert server.wait_exit() == 78, server.output.read_text()
    assert processes_of(tmp_path) == []


def _is_serving(process: psutil.Process) -> bool:
    return any(entry.status == psutil.CONN_ESTABLISHED for entry in process.net_connections("tcp"))
