"""Whether the API worker's memory grows: after 100,000 requests over after 20,000.

    python -m benchmarks.memory

32 callers with JSON bodies, one worker. Counted is the worker's proportional set size, a second after each stop of the
load.
"""

import math
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks import bodies, deployment, results
from benchmarks.arguments import no_options
from benchmarks.measure import progress, spread
from benchmarks.results import Figure
from benchmarks.system import System, memory_bytes
from tests.support.server import Server

STOPS = (20_000, 40_000, 60_000, 80_000, 100_000)
CALLERS = 32


def main() -> int:
    """Measures, writes results/memory.json, prints."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, deployment.deployment(Path(name)) as server:
        windows = bodies.demo_windows()
        idle_bytes = worker_memory(server)
        deployment.ask_once(server, bodies.json_bodies(windows[:1])[0])
        points = run(server, deployment.rest_system(server, windows, "v1.0"))
    first, last = points[0], points[-1]
    results.write(
        "memory",
        what="proportional set size of the API worker under load, demo v1.0, JSON, 32 callers",
        figures=[
            Figure(
                key="memory",
                text=f"API worker's memory after {last[0]:,} requests over after {first[0]:,}",
                value=spread([last[1] / first[1]]),
                sense="<=",
                target=1.05,
            )
        ],
        details={
            "after_start_bytes": idle_bytes,
            "points": [{"requests": count, "bytes": size} for count, size in points],
        },
    )
    return 0


def run(server: Server, system: System) -> list[tuple[int, int]]:
    """Requests so far and the worker's memory in bytes, at each stop."""
    points: list[tuple[int, int]] = []
    total, rate = 0, 2500.0
    with progress() as bar:
        task = bar.add_task("memory", total=STOPS[-1])
        for stop in STOPS:
            while total < stop:
                seconds = min(20, max(1, math.ceil((stop - total) / rate)))
                load = system.drive(CALLERS, seconds)
                total += load.answered
                rate = load.requests_per_s
                bar.update(task, completed=total)
            time.sleep(1)
            points.append((total, worker_memory(server)))
    return points


def worker_memory(server: Server) -> int:
    """Of the first worker, in bytes."""
    return memory_bytes([psutil.Process(server.pid("worker-0"))])


if __name__ == "__main__":
    no_options(__doc__)
    raise SystemExit(main())
