"""The full-size hybrid (about 120 million multiply-adds, T = 100, all uncertainty): how much time isn't Triton's.

    python -m benchmarks.full_size

8 callers ask for one row each. Three views of "outside Triton", all in the results:

- of a request: the mean latency at the caller, less the mean time that Triton has a request in hand, over the former.
  Waiting in our dispatcher counts as outside; our merged requests count once at Triton.
- of the model: the share of the wall time in which Triton's one instance executes nothing.
- against Triton asked directly with the same rows: how much longer a request takes through us (8 callers in a closed
  loop: latency is 8 over throughput). Below 0 where merging ahead of Triton gains more than the API costs.
"""

import tempfile
from pathlib import Path

from benchmarks import bodies, deployment, results, triton_statistics
from benchmarks.arguments import no_options
from benchmarks.deployment import GRPC, PYTHON_GRPC, REST_JSON, ask_once, publish_full_size
from benchmarks.measure import Measurement, Spread, measure, progress, ratio, select, spread, summary
from benchmarks.results import Figure
from benchmarks.triton_statistics import TritonStatistics

VERSION = "v-full"
CALLERS = 8
ROUNDS = 3
WINDOW_S = 4


def main() -> int:
    """Measures, writes results/full_size.json, prints."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        deployment.deployment(
            Path(name), prepare=lambda repository: publish_full_size(repository, VERSION)
        ) as server,
    ):
        windows = bodies.random_windows(32, 50, 60)
        ask_once(server, bodies.json_bodies(windows[:1], VERSION)[0])
        card = bodies.card_of(server.repository, VERSION)
        direct = deployment.grpc_system(server, card, windows)
        systems = [
            deployment.rest_system(server, windows, VERSION),
            direct or deployment.python_grpc_system(server, card, windows),
        ]
        measured: list[Measurement] = []
        counted: list[TritonStatistics] = []
        with progress() as bar:
            task = bar.add_task("full-size hybrid", total=ROUNDS * len(systems))
            for system in systems:
                system.drive(CALLERS, 1)
            for repeat in range(ROUNDS):
                for system in systems:
                    before = triton_statistics.read(deployment.triton_http_url(server), card.triton_model)
                    measured.append(measure(system, CALLERS, seconds=WINDOW_S, repeat=repeat))
                    after = triton_statistics.read(deployment.triton_http_url(server), card.triton_model)
                    if system.name == REST_JSON:
                        counted.append(after.since(before))
                    bar.advance(task)
    ours = select(measured, REST_JSON, CALLERS)
    theirs = select(measured, GRPC if direct else PYTHON_GRPC, CALLERS)
    slower = ratio(theirs, ours, lambda load: load.requests_per_s)
    results.write(
        "full_size",
        what="full-size hybrid (50 channels, 60 steps, T = 100), 8 callers, one row a request, all uncertainty",
        figures=[
            Figure(
                key="outside_request",
                text="Full-size hybrid, 8 callers: share of a request's time outside Triton",
                value=spread(map(outside_request, ours, counted)),
                sense="<=",
                target=0.1,
            ),
            Figure(
                key="outside_model",
                text="Full-size hybrid, 8 callers: share of the wall time in which the model executes nothing",
                value=spread(map(outside_model, ours, counted)),
                sense="<=",
                target=0.1,
            ),
            Figure(
                key="outside_direct",
                text="Full-size hybrid, 8 callers: how much longer a request takes than asked of Triton directly",
                value=Spread(median=slower.median - 1, low=slower.low - 1, high=slower.high - 1),
            ),
        ],
        summaries=summary(measured),
        settings={"rounds": ROUNDS, "window_s": WINDOW_S, "callers": CALLERS},
        details={
            "rows_per_execution": spread(row.rows / row.executions for row in counted).median,
            "execution_ms": spread(1e3 * row.busy_s / row.executions for row in counted).median,
        },
    )
    return 0


def outside_request(row: Measurement, triton: TritonStatistics) -> float:
    """See the module's docstring, the first view."""
    latency_s = row.load.connections / row.load.requests_per_s
    return 1 - triton.request_s / triton.requests / latency_s


def outside_model(row: Measurement, triton: TritonStatistics) -> float:
    """See the module's docstring, the second view."""
    # The requests at Triton's count and at the caller's differ by those under way at the ends; busy time a row doesn't.
    return 1 - triton.busy_s / triton.rows * row.load.requests_per_s


if __name__ == "__main__":
    no_options(__doc__)
    raise SystemExit(main())
