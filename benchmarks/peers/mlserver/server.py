"""MLServer with a runtime of its own.

    python -m benchmarks.peers.mlserver.server --model model.onnx --port 8000

The endpoint takes and gives our JSON: a custom handler, which hands the window to `predict`, so that MLServer's
adaptive batching merges as it does for its own protocol. Windows and answers cross the batcher as bytes, which it
joins and cuts faster than lists of numbers.
"""

import argparse
import asyncio
import time
from typing import Any

import numpy as np
import orjson
import uvloop
from fastapi import Request, Response
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.context import model_context
from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput, ResponseOutput, TensorData

from benchmarks.peers.answer import MODEL_TYPE, answer, window
from benchmarks.peers.graph import Graph


class Hybrid(MLModel):  # type: ignore[misc]
    """The hybrid."""

    async def load(self) -> bool:
        """Opens the graph."""
        self.graph = Graph(self.settings.parameters.uri)
        self._is_batching = self.settings.max_batch_size > 1
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The rows of one call, merged or not: an answer's fields for each, as an object."""
        (tensor,) = payload.inputs
        raw = tensor.data.root
        array = np.frombuffer(raw, dtype=np.float32).reshape(tensor.shape)
        fields = await asyncio.get_running_loop().run_in_executor(
            None, self.graph.run_merged, np.split(array, len(array))
        )
        output = ResponseOutput.model_construct(
            name="fields", shape=[len(array), 1], datatype="BYTES", data=TensorData(root=fields)
        )
        return InferenceResponse.model_construct(model_name=self.name, outputs=[output])

    @custom_handler(rest_path="/api/v1/predict")
    async def answer(self, request: Request) -> Response:
        """Our JSON in and out."""
        began = time.perf_counter()
        array = window(orjson.loads(await request.body())["data"])
        if self._is_batching:
            tensor = RequestInput.model_construct(
                name="x", shape=list(array.shape), datatype="FP32", data=TensorData(root=array.tobytes())
            )
            with model_context(self.settings):
                merged = await self.predict(InferenceRequest.model_construct(inputs=[tensor]))
            (fields,) = merged.outputs[0].data.root
        else:
            fields = self.graph.run(array)
        body = orjson.dumps(answer(fields, began), option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, media_type="application/json")


async def serve(options: argparse.Namespace) -> None:
    """Serves until stopped."""
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=options.port,
        grpc_port=options.port + 1,
        metrics_port=options.port + 2,
        metrics_endpoint=None,
        parallel_workers=0,
        gzip_enabled=False,
        load_models_at_startup=False,
    )
    parameters: dict[str, Any] = {"uri": options.model, "version": "v1.0"}
    model = ModelSettings(
        name=MODEL_TYPE,
        implementation=Hybrid,
        parameters=parameters,
        max_batch_size=options.batch,
        max_batch_time=options.wait_ms / 1000,
    )
    await MLServer(settings).start([model])


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--wait-ms", type=float, default=1.0)
    options = parser.parse_args()
    uvloop.run(serve(options))


if __name__ == "__main__":
    main()
