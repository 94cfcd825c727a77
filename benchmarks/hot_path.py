"""What each stage of a prediction costs in the API process: CPU microseconds for one request of 50 x 60 floats.

    python benchmarks/hot_path.py [--rows 1] [--profile]

CPU time of the thread, and the least of several runs: what else runs on the machine hardly shows. No Triton and no
network: the calls are answered in memory with outputs of the hybrid's shapes (T = 100, 5 members).
"""

import argparse
import asyncio
import cProfile
import io
import json
import pstats
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import structlog
import uvloop

from control_plane.api import predict
from control_plane.api.body_limit import BodyLimit
from control_plane.api.direct import DirectRoutes, ServingApp
from control_plane.api.draining import Draining
from control_plane.api.middleware import RequestEnvelope
from control_plane.inference import uncertainty
from control_plane.inference.answers import to_json
from control_plane.inference.arrow import read_arrow, write_arrow
from control_plane.inference.dispatcher import Dispatcher, DispatcherLimits
from control_plane.inference.hybrid import HybridModel
from control_plane.inference.merged import MergedOutputs, OutputRows
from control_plane.inference.npy import read_npy
from control_plane.inference.predictor import Predictor
from control_plane.inference.query_options import request_of
from control_plane.inference.requests import decode_predict
from control_plane.models.card import ModelCard
from control_plane.models.registry import ModelVersion
from control_plane.settings import Settings
from control_plane.triton.http_connection import Response
from control_plane.triton.http_inference import infer_request, read_tensors

CHANNELS, LENGTH, CLASSES, TARGETS, MEMBERS, SAMPLES = 50, 60, 3, 1, 5, 100
SHAPES: dict[str, tuple[int, ...]] = {
    "classification_probs": (CLASSES,),
    "regression_pred": (TARGETS,),
    "mc_regression": (SAMPLES, TARGETS),
    "mc_probs": (SAMPLES, CLASSES),
    "member_probs": (MEMBERS, CLASSES),
    "member_regression": (MEMBERS, TARGETS),
    "ensemble_weights": (MEMBERS,),
    "attention_weights": (LENGTH,),
}
MERGED = 8
REPEATS, SECONDS_EACH = 7, 0.15


class OneModel:
    """A registry and a cache that hold one loaded version, so that only the data plane is measured."""

    def __init__(self, card: ModelCard) -> None:
        self.version = ModelVersion(
            model_type=card.model_type, version=card.version, card=card, folder=Path(), registered_at=0.0
        )

    def resolve(self, model_type: str, version: str = "latest") -> ModelVersion:
        del model_type, version
        return self.version

    async def resolve_fresh(self, model_type: str, version: str = "latest") -> ModelVersion:
        return self.resolve(model_type, version)

    def get(self, key: str) -> ModelVersion:
        del key
        return self.version

    def try_use(self, model: ModelVersion) -> bool:
        del model
        return True

    def done(self, model: ModelVersion) -> None:
        del model


def hybrid_card() -> ModelCard:
    """The card of a hybrid of the default size."""

    def tensor(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
        return {"name": name, "triton_name": name, "datatype": "FP32", "shape": shape}

    return msgspec.convert(
        {
            "schema_version": 1, "model_type": "cnn_lstm_hybrid", "version": "v1.0",
            "triton_model": "cnn_lstm_hybrid-v1.0", "description": "", "format": "onnx",
            "created_at": "2026-01-02T03:04:05Z", "source": {"file_name": "a", "sha256": "", "size_bytes": 1},
            "content_digest": "", "inputs": [tensor("x", (CHANNELS, -1))],
            "outputs": [tensor(name, shape) for name, shape in SHAPES.items()], "max_batch_size": 64,
            "device": "cpu", "instance_count": 1, "config": {"input_dim": CHANNELS, "sequence_length": LENGTH},
            "normalization": None, "mc_dropout": {"samples": SAMPLES, "seed": 1}, "class_names": None,
            "feature_names": None, "metrics": {}, "calibration": None, "checksums": {}, "size_bytes": 1,
            "verification": {}, "versions": {}, "warnings": [],
        },
        ModelCard,
    )  # fmt: skip


def outputs_of(rows: int) -> dict[str, Any]:
    """Outputs as Triton would give them."""
    random = np.random.default_rng(1)
    arrays = {}
    for name, shape in SHAPES.items():
        array = random.random((rows, *shape)) + 0.1
        if "probs" in name or "weights" in name:
            array /= array.sum(axis=-1, keepdims=True)
        arrays[name] = array.astype(np.float32)
    return arrays


def response_of(outputs: Mapping[str, Any]) -> Response:
    """Triton's response with these outputs, by the binary tensor extension."""
    head = msgspec.json.encode(
        {
            "outputs": [
                {
                    "name": name,
                    "datatype": "FP32",
                    "shape": array.shape,
                    "parameters": {"binary_data_size": array.nbytes},
                }
                for name, array in outputs.items()
            ]
        }
    )
    data = b"".join(array.tobytes() for array in outputs.values())
    return Response(200, {b"inference-header-content-length": str(len(head)).encode()}, head + data)


QUERY = b"model_type=cnn_lstm_hybrid"


def binary(read: Callable[[bytes], Any], body: bytes) -> Any:
    """A binary body and its query parameters, as the route reads them."""
    return request_of(QUERY, read(body))


def write_stream(window: Any) -> bytes:
    """A window as an Arrow stream of fixed-shape tensors."""
    table = pa.table({"data": pa.FixedShapeTensorArray.from_numpy_ndarray(window)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def application(predictor: Any, body: bytes) -> Callable[[], Awaitable[None]]:
    """One request through the middleware, the routing and the handler, over bare ASGI."""
    settings = Settings()
    app = ServingApp()
    direct = predict.handlers()
    limited = BodyLimit(DirectRoutes(direct), max_bytes=settings.limits.max_body_bytes)
    app.add_direct(frozenset(direct), RequestEnvelope(limited, draining=Draining()))
    state = {"resources": SimpleNamespace(settings=settings, predictor=predictor)}
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        del message

    async def one() -> None:
        scope = {
            "type": "http", "method": "POST", "path": "/api/v1/predict", "raw_path": b"/api/v1/predict",
            "query_string": b"", "headers": [*headers], "root_path": "", "http_version": "1.1", "scheme": "http",
            "state": dict(state),
        }  # fmt: skip
        await app(scope, receive, send)

    return one


def per_call_us(work: Callable[[], object]) -> float:
    """Least CPU time of one call, in microseconds."""
    work()
    began = time.thread_time()
    work()
    calls = max(1, int(SECONDS_EACH / max(time.thread_time() - began, 1e-6)))
    figures = []
    for _ in range(REPEATS):
        began = time.thread_time()
        for _ in range(calls):
            work()
        figures.append((time.thread_time() - began) / calls * 1e6)
    return min(figures)


async def per_await_us(work: Callable[[], Awaitable[object]], calls: int = 400) -> float:
    """Least CPU time of one awaited call, in microseconds."""
    figures = []
    for _ in range(REPEATS):
        began = time.thread_time()
        for _ in range(calls):
            await work()
        figures.append((time.thread_time() - began) / calls * 1e6)
    return min(figures)


async def measure(rows: int, *, profile: bool) -> None:
    """Measures all stages and prints them."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    card = hybrid_card()
    kind = HybridModel(card)
    window = np.random.default_rng(0).normal(size=(rows, CHANNELS, LENGTH)).round(6)
    body = json.dumps({"model_type": "cnn_lstm_hybrid", "data": window.tolist()}).encode()
    request = decode_predict(body)
    plan = kind.plan(request, max_rows=1000)
    outputs = outputs_of(rows)
    file = io.BytesIO()
    np.save(file, window.astype(np.float32), allow_pickle=False)
    npy = file.getvalue()
    arrow = write_stream(window.astype(np.float32))
    response = response_of(outputs)
    together = outputs_of(rows * MERGED)

    async def infer(
        model: str, inputs: Mapping[str, Any], names: Sequence[str], *, timeout_s: float
    ) -> Mapping[str, Any]:
        del model, inputs, names, timeout_s
        return outputs

    dispatcher = Dispatcher(
        model="bench",
        infer=infer,
        limits=DispatcherLimits(max_rows=64, calls_in_flight=2, max_queue_size=100),
    )
    one = OneModel(card)
    predictor = Predictor(registry=one, cache=one, infer=infer, settings=Settings())  # type: ignore[arg-type]
    answer = await predictor.predict(request, received=time.monotonic())

    def build() -> bytes:
        return infer_request("127.0.0.1:8000", "cnn_lstm_hybrid-v1.0", plan.inputs, plan.outputs)

    def interpret_merged() -> None:
        merged = MergedOutputs(together)
        for member in range(MERGED):
            kind.interpret(request, OutputRows(merged, slice(member * rows, (member + 1) * rows)))

    async def whole() -> bytes:
        received = time.monotonic()
        return to_json(await predictor.predict(decode_predict(body), received=received))

    print(f"{rows} x {CHANNELS} x {LENGTH} floats, {len(body):,} bytes of JSON; CPU microseconds a request\n")
    for name, figure in [
        ("parse the JSON", per_call_us(lambda: decode_predict(body))),
        ("  or .npy with its options", per_call_us(lambda: binary(read_npy, npy))),
        ("  or Arrow with its options", per_call_us(lambda: binary(read_arrow, arrow))),
        ("check the shape, make the tensor", per_call_us(lambda: kind.plan(request, max_rows=1000))),
        (
            "queue, call task, timers, metrics",
            await per_await_us(
                lambda: dispatcher.submit(
                    plan.inputs, plan.outputs, lane=plan.lane, deadline=time.monotonic() + 30
                )
            ),
        ),
        ("build the request to Triton", per_call_us(build)),
        ("read Triton's response", per_call_us(lambda: read_tensors(response))),
        ("uncertainty: entropies", per_call_us(lambda: uncertainty.split_entropy(outputs["mc_probs"]))),
        (
            "uncertainty: interval, deviation",
            per_call_us(
                lambda: (
                    uncertainty.quantile_interval(outputs["mc_regression"], outputs["regression_pred"], 0.9),
                    uncertainty.standard_deviation(outputs["mc_regression"]),
                )
            ),
        ),
        ("interpret, all of it", per_call_us(lambda: kind.interpret(request, outputs))),
        (f"  a share, {MERGED} in the call", per_call_us(interpret_merged) / MERGED),
        ("write the JSON", per_call_us(lambda: to_json(answer))),
        ("  or Arrow", per_call_us(lambda: write_arrow(answer))),
        ("bytes to bytes, without Triton", await per_await_us(whole)),
        ("the whole ASGI application", await per_await_us(application(predictor, body), 2000)),
    ]:
        print(f"  {name:36s} {figure:9.1f}")
    if profile:
        with tempfile.NamedTemporaryFile(suffix=".prof") as file, cProfile.Profile() as profiler:
            for _ in range(2000):
                await whole()
            profiler.dump_stats(file.name)
            pstats.Stats(file.name).sort_stats("tottime").print_stats(30)


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1, help="rows of the request")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(arguments.rows, profile=arguments.profile))


if __name__ == "__main__":
    main()
