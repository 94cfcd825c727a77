"""A bounded queue in Triton against ours: what its queue policy costs those who are served.

    python -m benchmarks.queue_bound

The same small graph twice: once with `max_queue_size` in its config.pbtxt, asked directly; once plain, through our REST
API, whose dispatcher has the same bound. 8 callers, one row each, in turns. Triton's policy turns prefetching off, and
then single requests wait half a second (docs/decisions/002-no-queue-policy-in-triton.md).
"""

import tempfile
from pathlib import Path

import httpx
import numpy as np
import orjson
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks import bodies, deployment, results
from benchmarks.arguments import no_options
from benchmarks.load import LoadResult, run_python
from benchmarks.measure import compare, ratio, select, summary
from benchmarks.results import Figure
from benchmarks.system import System, http_system
from tests.support.repository import FEATURES, write_identity_like_model
from tests.support.server import Server

BOUND, CALLERS = 100, 8
ROUNDS, SECONDS = 3, 4
IN_TRITON, IN_OURS = "bound in Triton", "bound in our dispatcher"


def main() -> int:
    """Measures, writes results/queue_bound.json, prints."""
    settings = {"MODEL_SERVING__BATCH_PROCESSING__MAX_QUEUE_SIZE": str(BOUND)}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        deployment.deployment(Path(name), settings, prepare=publish) as server,
    ):
        httpx.post(
            f"{server.url}/api/v1/models/warmup",
            json=[{"model_type": "bound", "version": version} for version in ("triton", "ours")],
            timeout=60,
        ).raise_for_status()
        systems = [in_triton(server), in_ours(server)]
        measured = compare(systems, (CALLERS,), repeats=ROUNDS, seconds=SECONDS)
    of = {name: select(measured, name, CALLERS) for name in (IN_TRITON, IN_OURS)}
    results.write(
        "queue_bound",
        what=f"{BOUND} waiting at most, {CALLERS} callers, one row each",
        figures=[
            Figure(
                key="stall",
                text="A queue's bound set in Triton over ours, 8 callers: p99",
                value=ratio(of[IN_TRITON], of[IN_OURS], lambda load: load.p99_ms),
            ),
            Figure(
                key="stall_worst",
                text="A queue's bound set in Triton over ours, 8 callers: slowest",
                value=ratio(of[IN_TRITON], of[IN_OURS], lambda load: load.max_ms),
            ),
            Figure(
                key="stall_throughput",
                text="A queue's bound set in Triton over ours, 8 callers: throughput",
                value=ratio(of[IN_TRITON], of[IN_OURS], lambda load: load.requests_per_s),
            ),
        ],
        summaries=summary(measured),
        settings={"rounds": ROUNDS, "window_s": SECONDS},
    )
    return 0


def publish(repository: Path) -> None:
    """The graph with the bound in Triton, and without."""
    write_identity_like_model(repository, "bound", "ours")
    folder = write_identity_like_model(repository, "bound", "triton")
    config = model_config_pb2.ModelConfig()
    text_format.Parse((folder / "config.pbtxt").read_text(), config)
    config.dynamic_batching.default_queue_policy.max_queue_size = BOUND
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))


def in_triton(server: Server) -> System:
    """Triton's gRPC port, asked by `tritonclient`."""
    rows = bodies.npy_bodies([np.full((1, FEATURES), value, dtype=np.float32) for value in range(8)])

    def drive(connections: int, seconds: float) -> LoadResult:
        return run_python(
            "benchmarks.grpc_callers",
            {
                "url": server.grpc_url,
                "model": "bound-triton",
                "input": "x",
                "outputs": ["y"],
                "connections": connections,
                "seconds": seconds,
            },
            rows,
        )

    return System(name=IN_TRITON, drive=drive, processes=lambda: deployment.triton_processes(server))


def in_ours(server: Server) -> System:
    """Our REST API."""
    return http_system(
        IN_OURS,
        url=server.url,
        path=deployment.PREDICT,
        bodies=[
            orjson.dumps(
                {"model_type": "bound", "model_version": "ours", "data": [[float(value)] * FEATURES]}
            )
            for value in range(8)
        ],
        content_type="application/json",
        processes=lambda: deployment.processes(server),
    )


if __name__ == "__main__":
    no_options(__doc__)
    raise SystemExit(main())
