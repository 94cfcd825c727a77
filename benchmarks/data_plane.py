"""One prediction at a time through our REST API, against Triton asked directly: latency, throughput, processor time.

    python -m benchmarks.data_plane [--quick]

Starts the installed command with the demo models. REST with JSON, `.npy` and Arrow bodies, Triton's HTTP port, Triton's
gRPC port under h2load, and the same under `tritonclient` in Python take turns. All ask for the same outputs. `--quick`
takes a minute and writes to results/tmp, which isn't committed.
"""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import bodies, deployment, results
from benchmarks.deployment import (
    GRPC,
    PYTHON_GRPC,
    REST_JSON,
    REST_NPY,
    ask_once,
    grpc_system,
    python_grpc_system,
    rest_system,
    triton_http_system,
)
from benchmarks.measure import Measurement, Spread, compare, measure, ratio, select, spread, summary
from benchmarks.results import Figure
from benchmarks.system import System
from tests.support.server import Server

VERSION = "v1.0"
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
QUICK_CONCURRENCIES = (1, 8, 32)
TAIL_REQUESTS = 20_000


def main() -> int:
    """Measures, writes results/data_plane.json, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1, 8 and 32 callers, two rounds of one second")
    parser.add_argument("--repeats", type=int, help="rounds; default 3, quick 2")
    parser.add_argument("--seconds", type=int, default=1, help="length of a window")
    arguments = parser.parse_args()
    repeats = arguments.repeats or (2 if arguments.quick else 3)
    concurrencies = QUICK_CONCURRENCIES if arguments.quick else CONCURRENCIES
    with tempfile.TemporaryDirectory(prefix="bench-") as name, deployment.deployment(Path(name)) as server:
        systems = systems_of(server, is_quick=arguments.quick)
        measured = compare(systems, concurrencies, repeats=repeats, seconds=arguments.seconds)
        tail = slowest(next(system for system in systems if system.name == REST_JSON), measured)
    results.write(
        "data_plane",
        what="demo v1.0, one row a request, all uncertainty; REST against Triton asked directly",
        figures=figures_of(measured, tail),
        summaries=summary(measured),
        settings={"repeats": repeats, "window_s": arguments.seconds, "tail_requests": tail.load.answered},
        folder=results.FOLDER / "tmp" if arguments.quick else results.FOLDER,
    )
    return 0


def systems_of(server: Server, *, is_quick: bool) -> list[System]:
    """What takes turns."""
    windows = bodies.demo_windows()
    ask_once(server, bodies.json_bodies(windows[:1], VERSION)[0])
    card = bodies.card_of(server.repository, VERSION)
    kinds = [REST_JSON, REST_NPY] if is_quick else [REST_JSON, REST_NPY, deployment.REST_ARROW]
    systems = [rest_system(server, windows, VERSION, kind) for kind in kinds]
    systems.append(triton_http_system(server, card, windows))
    systems.append(python_grpc_system(server, card, windows))
    direct = grpc_system(server, card, windows)
    return systems if direct is None else [*systems, direct]


def slowest(system: System, measured: list[Measurement]) -> Measurement:
    """At least 20,000 requests from 32 callers in one go, on the warm server."""
    rate = spread(row.load.requests_per_s for row in select(measured, system.name, 32)).median
    return measure(system, 32, seconds=math.ceil(1.15 * TAIL_REQUESTS / rate))


def figures_of(measured: list[Measurement], tail: Measurement) -> list[Figure]:
    """The figures with a target, and the same against Triton asked in other ways."""

    def versus(ours: str, theirs: str, callers: int, field: str) -> Spread:
        return ratio(
            select(measured, ours, callers),
            select(measured, theirs, callers),
            lambda load: float(getattr(load, field)),
        )

    at_8 = select(measured, REST_JSON, 8)
    known = {row.system for row in measured}
    rows: list[tuple[str, str, Spread, dict[str, Any]]] = [
        (
            "one_caller",
            "REST JSON, 1 caller: p50 over direct Python gRPC's p50",
            versus(REST_JSON, PYTHON_GRPC, 1, "p50_ms"),
            {"sense": "<=", "target": 1.4},
        ),
        (
            "json_throughput",
            "REST JSON, 32 callers: throughput over direct Python gRPC's",
            versus(REST_JSON, PYTHON_GRPC, 32, "requests_per_s"),
            {"sense": ">=", "target": 0.8},
        ),
        (
            "npy_throughput",
            "REST .npy, 32 callers: throughput over direct Python gRPC's",
            versus(REST_NPY, PYTHON_GRPC, 32, "requests_per_s"),
            {"sense": ">=", "target": 1.0},
        ),
        (
            "tail_ratio",
            "REST JSON, 8 callers: p99 over p50",
            spread(row.load.p99_ms / row.load.p50_ms for row in at_8),
            {"sense": "<=", "target": 4},
        ),
        (
            "slowest",
            f"REST JSON, 32 callers: slowest of {tail.load.answered:,}",
            spread([tail.load.max_ms]),
            {"sense": "<=", "target": 150, "unit": "ms"},
        ),
    ]
    if GRPC in known:
        rows += [
            (
                "json_throughput_h2load",
                "REST JSON, 32 callers: throughput over that of gRPC driven by h2load",
                versus(REST_JSON, GRPC, 32, "requests_per_s"),
                {"sense": ">=", "target": 0.8},
            ),
            (
                "npy_throughput_h2load",
                "REST .npy, 32 callers: throughput over that of gRPC driven by h2load",
                versus(REST_NPY, GRPC, 32, "requests_per_s"),
                {"sense": ">=", "target": 1.0},
            ),
            (
                "one_caller_h2load",
                "REST JSON, 1 caller: p50 over that of gRPC driven by h2load",
                versus(REST_JSON, GRPC, 1, "p50_ms"),
                {},
            ),
        ]
    rows.append(
        (
            "json_throughput_http",
            "REST JSON, 32 callers: throughput over that of Triton's HTTP port, binary",
            versus(REST_JSON, deployment.TRITON_HTTP, 32, "requests_per_s"),
            {},
        )
    )
    return [Figure(key=key, text=text, value=value, **more) for key, text, value, more in rows]


if __name__ == "__main__":
    raise SystemExit(main())
