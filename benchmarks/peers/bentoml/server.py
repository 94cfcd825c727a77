"""BentoML.

    PEER_MODEL=model.onnx bentoml serve benchmarks.peers.bentoml.server:Inline --port 8000

Three ways to write the same service; README.md says which is measured. BentoML's workers import this file by name and
take no arguments of ours, so the graph's path and the settings come from the environment.
"""

import time
from typing import Annotated, Any

import bentoml
import numpy as np
import orjson
from bentoml.validators import DType
from starlette.responses import Response

from benchmarks.peers.answer import Fields, answer, lists
from benchmarks.peers.graph import Graph
from benchmarks.peers.schema import Answer
from benchmarks.peers.variables import variable

MODEL = variable("model")
WORKERS = int(variable("workers", "1"))
BATCH_ROWS = int(variable("batch", "32"))
LATENCY_MS = int(variable("latency_ms", "1000"))
QUIET: dict[str, Any] = {"access": {"enabled": False}}
Window = Annotated[np.ndarray, DType("float32")]


def written(fields: Fields, began: float) -> Response:
    """The answer, written by orjson; a service may answer with a response of its own."""
    body = orjson.dumps(answer(fields, began), option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")


@bentoml.service(workers=WORKERS, threads=2, logging=QUIET, metrics={"enabled": False})
class Threads:
    """A plain method, which BentoML runs in its threads, with a pydantic answer."""

    def __init__(self) -> None:
        self.graph = Graph(MODEL)

    @bentoml.api(route="/api/v1/predict")
    def predict(self, model_type: str, data: Window, model_version: str = "latest") -> Answer:
        """One request."""
        del model_type, model_version
        began = time.perf_counter()
        return Answer(**answer(lists(self.graph.run(data)), began))


@bentoml.service(workers=WORKERS, logging=QUIET, metrics={"enabled": False})
class Inline:
    """A coroutine that computes on the event loop, written by orjson."""

    def __init__(self) -> None:
        self.graph = Graph(MODEL)

    @bentoml.api(route="/api/v1/predict")
    async def predict(self, model_type: str, data: Window, model_version: str = "latest") -> Any:
        """One request."""
        del model_type, model_version
        began = time.perf_counter()
        return written(self.graph.run(data), began)


@bentoml.service(logging=QUIET, metrics={"enabled": False})
class Batched:
    """The graph alone, in a process of its own, with adaptive batching."""

    def __init__(self) -> None:
        self.graph = Graph(MODEL)

    @bentoml.api(batchable=True, max_batch_size=BATCH_ROWS, max_latency_ms=LATENCY_MS)
    def run(self, windows: Window) -> list[Fields]:
        """Fields for each row of the merged batch."""
        return self.graph.run_merged(np.split(windows, len(windows)))


@bentoml.service(workers=WORKERS, logging=QUIET, metrics={"enabled": False})
class Split:
    """Takes requests, asks `Batched`, writes answers: how BentoML documents batching with several inputs."""

    model = bentoml.depends(Batched)

    @bentoml.api(route="/api/v1/predict")
    async def predict(self, model_type: str, data: Window, model_version: str = "latest") -> Any:
        """One request of one row."""
        del model_type, model_version
        began = time.perf_counter()
        (fields,) = await self.model.to_async.run(data)
        return written(fields, began)
