"""LitServe.

python -m benchmarks.peers.litserve.server --model model.onnx --port 8000
"""

import argparse
import time
from typing import Any

import litserve
import orjson
from fastapi import Response

from benchmarks.peers.answer import Fields, Floats, answer, window
from benchmarks.peers.graph import Graph


class Hybrid(litserve.LitAPI):  # type: ignore[misc]
    """The hybrid."""

    def __init__(self, model: str, **settings: Any) -> None:
        super().__init__(api_path="/api/v1/predict", **settings)
        self._model = model

    def setup(self, device: str) -> None:
        """Opens the graph, in each worker."""
        del device
        self.graph = Graph(self._model)

    def decode_request(self, request: dict[str, Any]) -> Floats:
        """A body to a window."""
        return window(request["data"])

    def batch(self, inputs: list[Floats]) -> list[Floats]:
        """Merging is done by `predict`, which knows the sizes."""
        return inputs

    def predict(self, x: Any) -> Any:
        """One window, or with batching a list of them."""
        began = time.perf_counter()
        if not isinstance(x, list):
            return self.graph.run(x), began
        return [(fields, began) for fields in self.graph.run_merged(x)]

    def unbatch(self, output: list[tuple[Fields, float]]) -> list[tuple[Fields, float]]:
        """One for each request already."""
        return output

    def encode_response(self, output: tuple[Fields, float]) -> Response:
        """Written here, in the worker, so that the API process only passes it on."""
        body = orjson.dumps(answer(*output), option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, media_type="application/json")


def main() -> None:
    """Serves until stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--wait-ms", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--api-servers", type=int, default=1)
    parser.add_argument("--fast-queue", type=int, default=0)
    options = parser.parse_args()
    api = Hybrid(options.model, max_batch_size=options.batch, batch_timeout=options.wait_ms / 1000)
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        devices=1,
        workers_per_device=options.workers,
        fast_queue=bool(options.fast_queue),
    )
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=options.api_servers,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
        loop="uvloop",
        http="httptools",
    )


if __name__ == "__main__":
    main()
