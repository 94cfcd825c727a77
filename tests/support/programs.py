"""Small real programs for the supervisor's tests, run as `python tests/support/programs.py NAME ARGUMENT…`."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

# ruff: noqa: T201  these programs speak through their output

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from control_plane.embedded.process import Child, ChildSpec
from control_plane.embedded.supervisor import EmbeddedOptions, Endpoints, WorkerOptions, supervise
from control_plane.embedded.triton import TritonOptions

THIS = str(Path(__file__).absolute())


def worker(fd: str, folder: str) -> None:
    """An HTTP server on an inherited socket: `/slow` answers after a second, and SIGTERM waits for it.

    A file `bad_setting` in the folder makes it exit with code 78, as an API worker does on a wrong setting.
    """
    if (Path(folder) / "bad_setting").exists():
        sys.exit(78)
    listener = socket.socket(fileno=int(fd))
    listener.setblocking(True)
    busy = stopping = False

    def stop(_: int, __: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        if not busy:
            sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    print("redis", os.environ["WORKER_REDIS_URL"], flush=True)  # noqa: TID251  a program of its own
    while not stopping:
        connection, _ = listener.accept()
        busy = True
        with connection:
            request = connection.recv(4096)
            if b"/slow" in request:
                time.sleep(1.0)
            body = str(os.getpid())
            connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        busy = False


def server(data_dir: str, model_repository: str, workers: str) -> None:
    """Redis, Triton and so many workers under `supervise`; the exit code is its result."""

    def environment(endpoints: Endpoints) -> Mapping[str, str]:
        return {"WORKER_REDIS_URL": endpoints.redis_url or ""}

    options = EmbeddedOptions(
        data_dir=Path(data_dir),
        triton=TritonOptions(model_repository=Path(model_repository), exit_timeout_s=2),
        workers=WorkerOptions(
            command=(sys.executable, THIS, "worker", "{fd}", data_dir),
            count=int(workers),
            environment=environment,
            ready_path="/ready",
            drain_timeout_s=10.0,
        ),
    )
    sys.exit(asyncio.run(supervise(options)))


def family(log_path: str) -> None:
    """A child with a child of its own, kept until this process dies; their ids go to standard output."""

    async def keep() -> None:
        child = Child(
            ChildSpec(name="parent", command=(sys.executable, THIS, "nest"), log_path=Path(log_path))
        )
        await child.start()
        print(child.pid, flush=True)
        await asyncio.sleep(600)

    asyncio.run(keep())


def nest() -> None:
    """A process with a sleeping child, whose id goes to standard output."""
    print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
    signal.pause()


if __name__ == "__main__":
    {"worker": worker, "server": server, "family": family, "nest": nest}[sys.argv[1]](*sys.argv[2:])
