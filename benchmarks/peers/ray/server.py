"""Ray Serve.

python -m benchmarks.peers.ray.server --model model.onnx --port 8000
"""

import argparse
import signal
import threading
import time

import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.answer import Fields, Floats, answer, window
from benchmarks.peers.graph import Graph


class Hybrid:
    """The hybrid."""

    def __init__(self, model: str, batch: int, wait_ms: float) -> None:
        self._graph = Graph(model)
        self._is_batching = batch > 1
        if self._is_batching:
            self._run.set_max_batch_size(batch)
            self._run.set_batch_wait_timeout_s(wait_ms / 1000)

    async def __call__(self, request: Request) -> Response:
        """One request."""
        began = time.perf_counter()
        array = window(orjson.loads(await request.body())["data"])
        fields = await self._run(array) if self._is_batching else self._graph.run(array)
        body = orjson.dumps(answer(fields, began), option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, media_type="application/json")

    @serve.batch
    async def _run(self, windows: list[Floats]) -> list[Fields]:
        """A merged call."""
        return self._graph.run_merged(windows)


def main() -> None:
    """Serves until stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--wait-ms", type=float, default=1.0)
    parser.add_argument("--replicas", type=int, default=1)
    options = parser.parse_args()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(
        http_options={"host": "127.0.0.1", "port": options.port},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    deployment = serve.deployment(
        Hybrid, num_replicas=options.replicas, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1}
    )
    serve.run(deployment.bind(options.model, options.batch, options.wait_ms), route_prefix="/api/v1/predict")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
