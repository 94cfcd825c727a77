"""The installed command as a test's server: `python -m control_plane serve`, with its own data, registry and ports."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parent.parent.parent
START_TIMEOUT_S = 90.0


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str, poll_s: float = 0.05) -> None:
    """Polls until `condition`, with a deadline.

    Raises:
        AssertionError: it didn't come true in time; the text names `what`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(poll_s)


@dataclass
class Server:
    """A running deployment."""

    process: subprocess.Popen[bytes]
    folder: Path
    settings: Mapping[str, str]
    log_path: Path
    clients: list[httpx.Client] = field(default_factory=list)

    @property
    def state(self) -> dict[str, Any]:
        """The supervisor's state file: the processes with their pids and ports."""
        return json.loads((self.folder / "data/state.json").read_text())

    @property
    def url(self) -> str:
        """Base URL of the REST API."""
        return f"http://127.0.0.1:{self.state['ports']['api']}"

    @property
    def grpc_url(self) -> str:
        """Triton's gRPC address."""
        return f"127.0.0.1:{self.state['ports']['triton_grpc']}"

    @property
    def registry(self) -> Path:
        """Where checkpoints to load are put."""
        return self.folder / "models"

    @property
    def repository(self) -> Path:
        """The model repository."""
        return self.folder / "model_repository"

    def client(self, timeout_s: float = 120.0) -> httpx.Client:
        """A client of the REST API."""
        client = httpx.Client(base_url=self.url, timeout=timeout_s)
        self.clients.append(client)
        return client

    def pid(self, name: str) -> int:
        """Process id of `triton`, `redis` or `worker-0`, …"""
        return int(self.state["processes"][name]["pid"])

    def kill(self, name: str) -> int:
        """Kills a process with SIGKILL; returns its pid."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def logs(self) -> list[dict[str, Any]]:
        """The JSON log events so far."""
        events = []
        for path in [self.log_path, *(self.folder / "data").rglob("*.log")]:
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith("{"):
                    try:
                        events.append(json.loads(line))
                    except json.JSONDecodeError:
                        continue
        return events

    def log_tail(self) -> str:
        """The ends of the logs, for a failure's report."""
        parts = []
        for path in [self.log_path, *sorted((self.folder / "data").rglob("*.log"))]:
            parts.append(f"--- {path.name}\n" + path.read_text(errors="replace")[-3000:])
        return "\n".join(parts)

    def is_ready(self) -> bool:
        """Whether /health/ready says so."""
        try:
            return httpx.get(f"{self.url}/api/v1/health/ready", timeout=5).status_code == 200
        except (httpx.HTTPError, OSError, KeyError, json.JSONDecodeError):
            return False

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM, and wait; returns the exit code."""
        for client in self.clients:
            client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@contextmanager
def running_server(folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Starts the command, yields when it is ready, stops it, and checks that no process is left.

    Args:
        folder: For data, registry, repository and logs of this deployment.
        settings: Further environment variables.
    """
    for name in ("data", "models", "model_repository"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    environment = {
        **{
            key: value
            for key, value in os.environ.items()  # noqa: TID251
            if not key.startswith(("MODEL_SERVING", "REDIS", "API_"))
        },
        "API_PORT": "0",
        "MODEL_SERVING__TRITON__HTTP_PORT": "0",
        "MODEL_SERVING__TRITON__GRPC_PORT": "0",
        "MODEL_SERVING__TRITON__METRICS_PORT": "0",
        "MODEL_SERVING__TRITON__MODEL_REPOSITORY": str(folder / "model_repository"),
        "MODEL_SERVING__EMBEDDED__DATA_DIR": str(folder / "data"),
        "MODEL_REGISTRY_PATH": str(folder / "models"),
        **(settings or {}),
    }
    log_path = folder / "serve.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "control_plane", "serve"],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )
    server = Server(process=process, folder=folder, settings=environment, log_path=log_path)
    children: list[psutil.Process] = []
    try:
        wait_until(
            lambda: process.poll() is not None or server.is_ready(),
            timeout_s=START_TIMEOUT_S,
            what="server ready",
        )
        assert process.poll() is None, f"the server exited with {process.returncode}"
        yield server
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
    except BaseException:
        print(server.log_tail())  # noqa: T201  shown by pytest for a failed test
        raise
    finally:
        if process.poll() is None:
            children = children or psutil.Process(process.pid).children(recursive=True)
        try:
            server.stop()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    _, left = psutil.wait_procs(children, timeout=10)
    assert not left, f"left running: {left}"
