"""Load on a server, from generators that aren't the bottleneck, and what came of it.

wrk drives HTTP/1.1 and h2load drives gRPC, each in a process of its own. Where wrk is absent, and in open loops,
`http_callers.py` does, in Python; the result's `generator` says so.

wrk corrects its percentiles for coordinated omission: an answer that took more than twice the mean counts also for the
requests that its caller would have sent meanwhile. So its p99 is, if anything, too high.
"""

import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_LUA = Path(__file__).parent / "load_http.lua"
_GRACE_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What a generator saw.

    Attributes:
        generator: wrk, h2load, python, …
        connections: Callers at once.
        seconds: How long it ran.
        answered: Answers with status 200.
        refused: Answers with status 503, where the generator tells them apart.
        timed_out: Answers with status 504, the same.
        failed: Every other answer, and broken connections.
        requests_per_s: Of the answered.
        p50_ms: And the others: latency of the answered.
        generator_cpu_s: Processor time that the generator took.
        in_time: Answered within the deadline that the generator was given.
        offered: Requests sent, or due to be sent, in an open loop.
    """

    generator: str
    connections: int
    seconds: float
    answered: int
    refused: int = 0
    timed_out: int = 0
    failed: int = 0
    requests_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    generator_cpu_s: float = 0.0
    in_time: int | None = None
    offered: int | None = None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least value that at least `share` (0 to 1) of the ascending values don't exceed; NaN of none."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def result_of(
    latencies_ms: Sequence[float],
    *,
    generator: str,
    connections: int,
    seconds: float,
    refused: int = 0,
    timed_out: int = 0,
    failed: int = 0,
    generator_cpu_s: float = 0.0,
    deadline_ms: float | None = None,
    offered: int | None = None,
) -> LoadResult:
    """The result for the latencies of all answered requests, in milliseconds."""
    ordered = sorted(latencies_ms)
    return LoadResult(
        generator=generator,
        connections=connections,
        seconds=seconds,
        answered=len(ordered),
        refused=refused,
        timed_out=timed_out,
        failed=failed,
        requests_per_s=len(ordered) / seconds,
        p50_ms=percentile(ordered, 0.5),
        p90_ms=percentile(ordered, 0.9),
        p99_ms=percentile(ordered, 0.99),
        max_ms=ordered[-1] if ordered else math.nan,
        generator_cpu_s=generator_cpu_s,
        in_time=None if deadline_ms is None else sum(value <= deadline_ms for value in ordered),
        offered=offered,
    )


def run_http(
    url: str,
    path: str,
    bodies: Sequence[bytes],
    content_type: str,
    *,
    connections: int,
    seconds: float,
    headers: Mapping[str, str] | None = None,
) -> LoadResult:
    """Posts the bodies in turn over HTTP/1.1 from `connections` callers, each with one request at a time.

    Args:
        url: `http://host:port`.
        path: With the query, if any.
        bodies: Several, so that nobody gains from having seen one before.
        content_type: Of the bodies.
        connections: Kept-alive connections.
        seconds: wrk takes whole ones: rounded up.
        headers: Further ones.

    Raises:
        RuntimeError: the generator failed, or nothing was answered.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        return run_python(
            "benchmarks.http_callers",
            {
                "url": url,
                "path": path,
                "headers": {"Content-Type": content_type, **(headers or {})},
                "connections": connections,
                "seconds": seconds,
            },
            bodies,
        )
    named = [text for pair in {"Content-Type": content_type, **(headers or {})}.items() for text in pair]
    with body_files(bodies) as folder:
        command = [
            *(wrk, "--threads", "1", "--connections", str(connections), "--timeout", "60s"),
            *("--duration", f"{math.ceil(seconds)}s", "--latency", "--script", str(_LUA), url),
            *("--", path, str(folder), str(len(bodies)), *named),
        ]
        output, cpu_s = run_command(command, seconds)
    marked = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if not marked:
        raise RuntimeError(f"wrk said nothing that can be read: {output[-500:]}")
    return wrk_result(json.loads(marked[0].removeprefix("RESULT ")), connections, cpu_s)


def run_open_http(
    url: str,
    path: str,
    bodies: Sequence[bytes],
    content_type: str,
    *,
    rate_per_s: float,
    connections: int,
    seconds: float,
    deadline_ms: float | None = None,
    distinct: str = "",
) -> LoadResult:
    """Posts at random times, so many a second on average, whatever comes back (an open loop).

    Args:
        url: And the next three: see `run_http`.
        path: See there.
        bodies: See there.
        content_type: See there.
        rate_per_s: Requests a second; their distances are exponentially distributed.
        connections: At most so many under way; what is due beyond waits, and its latency counts from when it was due.
        seconds: How long requests are sent; then their answers are waited for. The result's rate is over the time
            until the last one with status 200.
        deadline_ms: For the result's `in_time`.
        distinct: A text in the bodies to be replaced by a number, another one each time.

    Raises:
        RuntimeError: the generator failed, or nothing was answered.
    """
    options: dict[str, Any] = {
        "url": url,
        "path": path,
        "headers": {"Content-Type": content_type},
        "rate_per_s": rate_per_s,
        "connections": connections,
        "seconds": seconds,
        "deadline_ms": deadline_ms,
        "distinct": distinct,
    }
    return run_python("benchmarks.http_callers", options, bodies)


def wrk_result(said: Mapping[str, Any], connections: int, cpu_s: float) -> LoadResult:
    """What load_http.lua printed, as a result.

    Raises:
        RuntimeError: nothing was answered with 200.
    """
    answered = int(said["requests"] - said["bad_status"])
    if answered <= 0:
        raise RuntimeError(f"nothing was answered: {said}")
    return LoadResult(
        generator="wrk",
        connections=connections,
        seconds=said["seconds"],
        answered=answered,
        failed=int(said["bad_status"] + said["broken"]),
        requests_per_s=answered / said["seconds"],
        p50_ms=said["p50_ms"],
        p90_ms=said["p90_ms"],
        p99_ms=said["p99_ms"],
        max_ms=said["max_ms"],
        generator_cpu_s=cpu_s,
    )


def run_python(module: str, options: Mapping[str, Any], bodies: Sequence[bytes]) -> LoadResult:
    """Runs one of the Python generators in a process of its own.

    Raises:
        RuntimeError: it failed, or nothing was answered.
    """
    with body_files(bodies) as folder:
        text = json.dumps({**options, "folder": str(folder), "count": len(bodies)})
        output, _ = run_command([sys.executable, "-m", module, text], options["seconds"])
    said = json.loads(output.splitlines()[-1])
    result = LoadResult(**said)
    if result.answered + result.refused + result.timed_out == 0:
        raise RuntimeError(f"nothing was answered: {result}")
    return result


def run_command(command: Sequence[str], seconds: float) -> tuple[str, float]:
    """Runs a command; returns what it printed and its processor time in seconds.

    Raises:
        RuntimeError: it failed, or hung.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + _GRACE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{command[0]} hung") from error
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def body_files(bodies: Sequence[bytes]) -> Iterator[Path]:
    """A folder with the bodies as files 0, 1, …"""
    with tempfile.TemporaryDirectory(prefix="bodies-") as name:
        folder = Path(name)
        for index, body in enumerate(bodies):
            (folder / str(index)).write_bytes(body)
        yield folder
