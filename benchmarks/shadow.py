"""What a shadow experiment costs the callers of its control.

    python -m benchmarks.shadow

The control is the demo v1.0, the shadow v1.1, which is about four times as dear. In turns within one run, requests take
part in the experiment or opt out of it: in an open loop at a quarter of the capacity (p50), and from 32 callers in a
closed loop (throughput), where shadow calls are shed.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path

import httpx

from benchmarks import bodies, deployment, results
from benchmarks.arguments import no_options
from benchmarks.bodies import JSON_TYPE, TYPE
from benchmarks.deployment import PREDICT
from benchmarks.load import LoadResult, run_http, run_open_http
from benchmarks.measure import progress, spread
from benchmarks.results import Figure

ROUNDS, SECONDS = 6, 3
CALLERS, CONNECTIONS = 32, 64
EXPERIMENT = "shadow"


def main() -> None:
    """Measures, writes results/shadow.json, prints."""
    no_options(__doc__)
    kinds = {"none": "none", "shadow": EXPERIMENT}
    quarter: dict[str, list[LoadResult]] = {kind: [] for kind in kinds}
    full: dict[str, list[LoadResult]] = {kind: [] for kind in kinds}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        deployment.deployment(Path(name)) as server,
        httpx.Client(base_url=server.url, timeout=60) as api,
        progress() as bar,
    ):
        windows = bodies.demo_windows()
        for version in ("v1.0", "v1.1"):
            deployment.ask_once(server, bodies.json_bodies(windows, version)[0])
        created = api.post(
            "/api/v1/experiments/create",
            json={
                "experiment_id": EXPERIMENT,
                "mode": "shadow",
                "model_variants": {
                    "control": {"model_type": TYPE, "version": "v1.0"},
                    "treatment": {"model_type": TYPE, "version": "v1.1"},
                },
                "traffic_split": {"control": 0.5, "treatment": 0.5},
            },
        )
        created.raise_for_status()
        content = {
            kind: bodies.json_bodies(windows, "v1.0", experiment_id=experiment)
            for kind, experiment in kinds.items()
        }
        closed = {"connections": CALLERS, "seconds": SECONDS}
        capacity = run_http(server.url, PREDICT, content["none"], JSON_TYPE, **closed).requests_per_s
        task = bar.add_task("shadow", total=ROUNDS * 4)
        for round_number in range(ROUNDS):
            for kind in list(kinds)[:: 1 if round_number % 2 else -1]:
                quarter[kind].append(
                    run_open_http(
                        server.url,
                        PREDICT,
                        content[kind],
                        JSON_TYPE,
                        rate_per_s=capacity / 4,
                        connections=CONNECTIONS,
                        seconds=SECONDS,
                        deadline_ms=None,
                    )
                )
                bar.advance(task)
                full[kind].append(run_http(server.url, PREDICT, content[kind], JSON_TYPE, **closed))
                bar.advance(task)
        found = api.get(f"/api/v1/experiments/{EXPERIMENT}/results").json()["variants"]
    asked, shed = found["treatment"]["requests"], found["treatment"]["shed"]
    figures = [
        Figure(
            key="p50_quarter",
            text="Shadow at a quarter of capacity: p50 over that without",
            value=spread(
                a.p50_ms / b.p50_ms for a, b in zip(quarter["shadow"], quarter["none"], strict=True)
            ),
            sense="<=",
            target=1.05,
        ),
        Figure(
            key="throughput_full",
            text="Shadow at full load, 32 callers: throughput over that without",
            value=spread(
                a.requests_per_s / b.requests_per_s for a, b in zip(full["shadow"], full["none"], strict=True)
            ),
            sense=">=",
            target=0.95,
        ),
        Figure(
            key="shed",
            text="Share of shadow calls that were left out, over all rounds",
            value=spread([shed / (asked + shed)]),
        ),
    ]
    results.write(
        "shadow",
        what="a shadow experiment's cost to its callers: demo v1.0 with v1.1 behind it, JSON, all uncertainty",
        figures=figures,
        settings={"rounds": ROUNDS, "seconds": SECONDS, "rate_per_s": capacity / 4},
        details={
            f"{load}_{kind}": [asdict(one) for one in done]
            for load, kinds_of in (("quarter", quarter), ("full", full))
            for kind, done in kinds_of.items()
        },
    )


if __name__ == "__main__":
    main()
