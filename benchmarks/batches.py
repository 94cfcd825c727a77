"""POST /predict/batch with 100 requests over three versions, against three direct calls with the same rows.

    python -m benchmarks.batches

A direct call is one gRPC call of `tritonclient` with all rows of a version (34, 33, 33), one after the other, since the
target names their sum. Both are asked by one caller in one process, in turns.
"""

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import tritonclient.grpc
from rich.progress import track

from benchmarks import bodies, deployment, results
from benchmarks.arguments import no_options
from benchmarks.bodies import Window
from benchmarks.measure import Spread, spread
from benchmarks.results import Figure
from control_plane.models.card import ModelCard
from tests.support.server import ROOT, Server

VERSIONS = ("v1.0", "v1.1", "v1.2")
REQUESTS = 100
ROUNDS = 3
CALLS = 40


def main() -> int:
    """Measures, writes results/batches.json, prints."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        deployment.deployment(Path(name), prepare=publish_third) as server,
    ):
        batch_ms, direct_ms = measure(server)
    over = spread(
        statistics.median(ours) / sum(statistics.median(calls) for calls in theirs)
        for ours, theirs in zip(batch_ms, direct_ms, strict=True)
    )
    results.write(
        "batches",
        what="100 requests of one row over three versions in one batch; demo models, all uncertainty, JSON",
        figures=[
            Figure(
                key="batch",
                text="100-request batch over three versions: time over the sum of direct calls with the same rows",
                value=over,
                sense="<=",
                target=1.3,
            )
        ],
        settings={"rounds": ROUNDS, "calls_each": CALLS},
        details={
            "batch_ms": str(medians(batch_ms)),
            "direct_ms": {
                version: str(medians([calls[index] for calls in direct_ms]))
                for index, version in enumerate(VERSIONS)
            },
        },
    )
    return 0


def publish_third(repository: Path) -> None:
    """Publishes v1.0's checkpoint once more as v1.2."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / f"{bodies.TYPE}-v1.2.pth"
        shutil.copy(ROOT / "checkpoints" / f"{bodies.TYPE}-v1.0.pth", copy)
        deployment.publish(copy, "v1.2", repository)


def measure(server: Server) -> tuple[list[list[float]], list[list[list[float]]]]:
    """Latencies in milliseconds: of the batch by round; of the direct calls by round and version."""
    windows = [window for window in bodies.demo_windows() for _ in range(2)][:REQUESTS]
    by_version = [windows[index :: len(VERSIONS)] for index in range(len(VERSIONS))]
    requests = [
        bodies.json_bodies([window], VERSIONS[index % len(VERSIONS)])[0]
        for index, window in enumerate(windows)
    ]
    body = bodies.batch_body(requests)
    cards = [bodies.card_of(server.repository, version) for version in VERSIONS]
    with server.client() as api, tritonclient.grpc.InferenceServerClient(server.grpc_url) as triton:
        ask_batch(api, body)
        batch_ms: list[list[float]] = []
        direct_ms: list[list[list[float]]] = []
        for _ in track(range(ROUNDS), description="batches"):
            batch_ms.append([])
            direct_ms.append([[] for _ in VERSIONS])
            for _ in range(CALLS):
                batch_ms[-1].append(ask_batch(api, body))
                for latencies, card, rows in zip(direct_ms[-1], cards, by_version, strict=True):
                    latencies.append(ask_triton(triton, card, np.stack(rows)))
    return batch_ms, direct_ms


def ask_batch(api: httpx.Client, body: bytes) -> float:
    """One batch; milliseconds until its answer is there.

    Raises:
        RuntimeError: a request in it failed.
    """
    started = time.perf_counter()
    answer = api.post(
        "/api/v1/predict/batch", content=body, headers={"Content-Type": bodies.JSON_TYPE}
    ).raise_for_status()
    took_ms = 1e3 * (time.perf_counter() - started)
    said = json.loads(answer.content)
    if said["successful_predictions"] != REQUESTS:
        raise RuntimeError(f"a batch failed: {said}")
    return took_ms


def ask_triton(triton: tritonclient.grpc.InferenceServerClient, card: ModelCard, rows: Window) -> float:
    """One direct call with all rows; milliseconds until every output is an array."""
    names = bodies.outputs_of(card)
    started = time.perf_counter()
    tensor = tritonclient.grpc.InferInput(card.inputs[0].triton_name, list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    wanted = [tritonclient.grpc.InferRequestedOutput(name) for name in names]
    answer = triton.infer(card.triton_model, [tensor], outputs=wanted)
    for name in names:
        answer.as_numpy(name)
    return 1e3 * (time.perf_counter() - started)


def medians(rounds: list[list[float]]) -> Spread:
    """The rounds' medians and their spread."""
    return spread(statistics.median(latencies) for latencies in rounds)


if __name__ == "__main__":
    no_options(__doc__)
    raise SystemExit(main())
