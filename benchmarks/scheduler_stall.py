"""The 500 ms stall of Triton's queue policies, for trying a later Triton.

docs/decisions/002-no-queue-policy-in-triton.md has the reason for it.

    python -m benchmarks.scheduler_stall

Serves the same small model with plain `dynamic_batching {}` and with each of the four keys that turn prefetching off,
on the embedded Triton, and asks each from 8 callers over gRPC. Writes benchmarks/results/scheduler_stall.json.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from rich.progress import track
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.aio import InferenceServerClient, InferInput

from benchmarks.arguments import no_options
from control_plane.embedded.triton import TritonOptions, TritonServer
from tests.support.repository import FEATURES, write_identity_like_model

CALLERS = 8
REQUESTS = 3000
RESULT = Path(__file__).parent / "results/scheduler_stall.json"
POLICIES = {
    "plain": "dynamic_batching {}",
    "max_queue_size": "dynamic_batching { default_queue_policy { max_queue_size: 100 } }",
    "default_timeout_microseconds": (
        "dynamic_batching { default_queue_policy { default_timeout_microseconds: 10000000 } }"
    ),
    "allow_timeout_override": "dynamic_batching { default_queue_policy { allow_timeout_override: true } }",
    "priority_levels": "dynamic_batching { priority_levels: 5 default_priority_level: 3 }",
}


async def main() -> int:
    """Measures each policy in turn."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for policy, text in POLICIES.items():
            _publish(folder / "models", policy, text)
        options = TritonOptions(model_repository=folder / "models")
        async with (
            TritonServer(options, data_dir=folder / "data") as server,
            InferenceServerClient(server.grpc_url) as client,
        ):
            for policy in track(POLICIES, description="policies"):
                await client.load_model(f"stall-{policy}")
                rows.append({"policy": policy, **await _ask(client, f"stall-{policy}")})
                await client.unload_model(f"stall-{policy}")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"callers": CALLERS, "requests": REQUESTS, "rows": rows}, indent=2) + "\n")
    print("| policy | requests/s | p50, ms | p99, ms | worst, ms |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            "| "
            + " | ".join(f"{value:.4g}" if not isinstance(value, str) else value for value in row.values())
            + " |"
        )
    return 0


def _publish(repository: Path, policy: str, text: str) -> None:
    folder = write_identity_like_model(repository, "stall", policy)
    config = model_config_pb2.ModelConfig()
    text_format.Parse((folder / "config.pbtxt").read_text(), config)
    config.ClearField("dynamic_batching")
    text_format.Merge(text, config)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))


async def _ask(client: InferenceServerClient, model: str) -> dict[str, float]:
    tensor = InferInput("x", [1, FEATURES], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, FEATURES), np.float32))
    left, times = REQUESTS, []

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            started = time.perf_counter()
            await client.infer(model, [tensor])
            times.append((time.perf_counter() - started) * 1000)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    took_s = time.perf_counter() - started
    cuts = statistics.quantiles(times, n=100)
    return {"per_s": len(times) / took_s, "p50_ms": cuts[49], "p99_ms": cuts[98], "worst_ms": max(times)}


if __name__ == "__main__":
    no_options(__doc__)
    sys.exit(asyncio.run(main()))
