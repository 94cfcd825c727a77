"""Starts a peer, waits until it answers, checks its answers against ours, and stops it with all its processes."""

import json
import math
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.bodies import JSON_TYPE, Window
from benchmarks.deployment import PREDICT
from benchmarks.load import LoadResult, result_of
from benchmarks.peers.catalog import IN_PROCESS, ROOT, Peer, Setting
from benchmarks.system import System, http_system, process_tree

START_S, STOP_S = 90.0, 20.0
RELATIVE, ABSOLUTE = 1e-5, 1e-6
"""Absolute too: `epistemic` is a small difference of two float32 near 1, whose last place is 1e-7."""
OWN_FIELDS = frozenset({"request_id", "timestamp", "processing_time_ms"})
_CHECK_CALLERS = 8


class PeerFailed(RuntimeError):
    """A peer didn't start, or stopped."""


class AnswersDiffer(RuntimeError):
    """A peer's answer isn't ours."""


@contextmanager
def running(
    peer: Peer,
    setting: Setting,
    *,
    model: Path,
    bodies: Sequence[bytes],
    folder: Path,
    name: str | None = None,
) -> Iterator[tuple[str, System]]:
    """A peer while it runs: its URL, and as a system to load.

    Args:
        peer: Which one; its environment is there.
        setting: How.
        model: The graph.
        bodies: Requests.
        folder: Takes its log.
        name: Of the system; the peer's when None.

    Raises:
        PeerFailed: it didn't answer in time; the end of its log is in the message.
    """
    port = free_port()
    log_path = folder / f"{peer.folder}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            peer.command(setting, model, port), cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, bodies[0], log_path)
        yield (
            url,
            http_system(
                name or peer.name,
                url=url,
                path=PREDICT,
                bodies=bodies,
                content_type=JSON_TYPE,
                processes=lambda: {"server": process_tree(process.pid)},
            ),
        )
    finally:
        stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, body: bytes, log_path: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if ask(url, body):
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise PeerFailed(
        f"it doesn't answer; {log_path.name} ends: {log_path.read_text(errors='replace')[-2000:]}"
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for what is left of the tree after a while."""
    tree = process_tree(process.pid)
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(tree, timeout=5)
    for orphan in left:
        try:
            orphan.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=5)


def free_port() -> int:
    """A port with two more free behind it, which MLServer takes for gRPC and metrics."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
                third.bind(("127.0.0.1", port + 2))
            except (OSError, OverflowError):
                continue
            return port
    raise PeerFailed("no three free ports in a row")


def ask(url: str, body: bytes) -> dict[str, Any]:
    """One answer.

    Raises:
        httpx.HTTPError: none, or not 200.
    """
    answer = httpx.post(url + PREDICT, content=body, headers={"Content-Type": JSON_TYPE}, timeout=30)
    answer.raise_for_status()
    return dict(answer.json())


def check(name: str, url: str, bodies: Sequence[bytes], expected: Sequence[Mapping[str, Any]]) -> None:
    """Asks for all at once, so that merged calls are checked too.

    Raises:
        AnswersDiffer: an answer isn't the expected one.
    """
    with ThreadPoolExecutor(_CHECK_CALLERS) as callers:
        answers = list(callers.map(lambda body: ask(url, body), bodies))
    for index, (theirs, ours) in enumerate(zip(answers, expected, strict=True)):
        found = differences(ours, theirs)
        if found:
            raise AnswersDiffer(f"{name}, window {index}: " + "; ".join(found[:5]))


def differences(ours: Any, theirs: Any, path: str = "answer") -> list[str]:
    """Where two answers differ, as text."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = (ours.keys() | theirs.keys()) - OWN_FIELDS
        return [
            text
            for name in sorted(names)
            for text in differences(ours.get(name, "absent"), theirs.get(name, "absent"), f"{path}.{name}")
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [text for index, (a, b) in pairs for text in differences(a, b, f"{path}[{index}]")]
    if _is_number(ours) and _is_number(theirs):
        is_same = math.isclose(ours, theirs, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    else:
        is_same = type(ours) is type(theirs) and ours == theirs
    return [] if is_same else [f"{path}: ours {ours!r}, theirs {theirs!r}"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextmanager
def in_process(*, model: Path, windows: Sequence[Window], folder: Path) -> Iterator[System]:
    """Raw ONNX Runtime as a system: the rows of all callers in one call."""
    path = folder / "windows.npy"
    np.save(path, np.stack(windows))
    command = [str(IN_PROCESS.python), "-m", "benchmarks.peers.inprocess.server"]
    process = subprocess.Popen(
        [*command, "--model", str(model), "--windows", str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    asked, answers = process.stdin, process.stdout

    def drive(connections: int, seconds: float) -> LoadResult:
        asked.write(f"{connections} {seconds}\n")
        asked.flush()
        line = answers.readline()
        if not line:
            raise PeerFailed("the process with raw ONNX Runtime stopped")
        calls_ms = json.loads(line)
        each = [value for value in calls_ms for _ in range(connections)]
        return result_of(
            each, generator="none", connections=connections, seconds=max(seconds, sum(calls_ms) / 1000)
        )

    try:
        yield System(
            name=IN_PROCESS.name, drive=drive, processes=lambda: {"server": process_tree(process.pid)}
        )
    finally:
        asked.close()
        process.wait(STOP_S)
