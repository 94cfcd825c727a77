"""h2load: gRPC straight to Triton. Percentiles come from its own log of each request."""

import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.bodies import GRPC_HEADERS
from benchmarks.load import LoadResult, result_of, run_command

_METHOD = "/inference.GRPCInferenceService/ModelInfer"


def is_installed() -> bool:
    """Whether h2load is on PATH."""
    return shutil.which("h2load") is not None


def run_grpc(
    url: str, body: bytes, *, connections: int, seconds: float, expected_bytes: int = 0
) -> LoadResult:
    """ModelInfer from `connections` callers, each with a connection and one call at a time.

    Args:
        url: `host:port` of Triton's gRPC service.
        body: The framed message; the same each time, since Triton's response cache is off.
        connections: Callers.
        seconds: How long.
        expected_bytes: Least bytes of an answer. A failed call has status 200 too, and says so in its trailers only.

    Raises:
        RuntimeError: h2load failed, nothing was answered, or answers were too short.
    """
    with tempfile.TemporaryDirectory(prefix="h2load-") as name:
        data, log = Path(name) / "body", Path(name) / "log"
        data.write_bytes(body)
        command = [
            *("h2load", "--threads=1", f"--clients={connections}", "--max-concurrent-streams=1"),
            *(f"--duration={round(1000 * seconds)}ms", f"--data={data}", f"--log-file={log}"),
            *(f"--header={key}: {value}" for key, value in GRPC_HEADERS.items()),
            *("--no-tls-proto=h2c", f"http://{url}{_METHOD}"),
        ]
        output, cpu_s = run_command(command, seconds)
        rows = list(parse_log(log.read_text().splitlines()))
    latencies = [latency_ms for status, latency_ms in rows if status == 200]
    if not latencies:
        raise RuntimeError(f"nothing was answered: {output[-1000:]}")
    received = parse_received(output)
    if not received >= expected_bytes * len(latencies):
        raise RuntimeError(f"calls failed: {received} bytes in {len(latencies)} answers are too few")
    return result_of(
        latencies,
        generator="h2load",
        connections=connections,
        seconds=seconds,
        failed=len(rows) - len(latencies),
        generator_cpu_s=cpu_s,
    )


def parse_log(lines: Iterable[str]) -> Iterator[tuple[int, float]]:
    """Status and latency in milliseconds of each request in h2load's log."""
    for line in lines:
        _, status, microseconds = line.split("\t")[:3]
        yield int(status), int(microseconds) / 1e3


def parse_received(output: str) -> float:
    """Bytes of bodies that h2load received, from its line `traffic: 1.2MB (…) total, …, 1.1MB (1153434) data`."""
    for line in output.splitlines():
        if line.startswith("traffic:"):
            part = line.rpartition(", ")[2]
            return float(part[part.index("(") + 1 : part.index(")")])
    return math.nan
