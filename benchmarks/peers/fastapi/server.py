"""Plain FastAPI with pydantic and ONNX Runtime.

PEER_MODEL=model.onnx uvicorn --factory benchmarks.peers.fastapi.server:create_app
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
from fastapi import FastAPI, Response

from benchmarks.peers.answer import answer, lists, window
from benchmarks.peers.graph import Graph
from benchmarks.peers.schema import Answer, Request
from benchmarks.peers.variables import variable


def create_app() -> FastAPI:
    """The application; PEER_STYLE says how its handler is written.

    threads: a plain function, which FastAPI runs in its thread pool;
    executor: a coroutine that awaits an executor of PEER_THREADS threads;
    inline: a coroutine that computes on the event loop.
    All of them answer with a response model, which pydantic writes; with `-orjson` at the end orjson writes instead.
    """
    app = FastAPI()
    graph = Graph(variable("model"))
    executor = ThreadPoolExecutor(int(variable("threads", "1")))

    def predict(request: Request) -> dict[str, Any]:
        began = time.perf_counter()
        return answer(lists(graph.run(window(request.data))), began)

    def predict_orjson(request: Request) -> Response:
        began = time.perf_counter()
        fields = graph.run(window(request.data))
        body = orjson.dumps(answer(fields, began), option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, media_type="application/json")

    async def predict_in_executor(request: Request) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(executor, predict, request)

    async def predict_inline(request: Request) -> dict[str, Any]:
        return predict(request)

    async def predict_inline_orjson(request: Request) -> Response:
        return predict_orjson(request)

    styles: dict[str, Callable[[Request], Any]] = {
        "threads": predict,
        "threads-orjson": predict_orjson,
        "executor": predict_in_executor,
        "inline": predict_inline,
        "inline-orjson": predict_inline_orjson,
    }
    style = variable("style", "inline")
    model = None if style.endswith("orjson") else Answer
    app.post("/api/v1/predict", response_model=model)(styles[style])
    return app
