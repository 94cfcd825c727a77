"""POST /predict and /predict/batch.

The raw request in, bytes out, past FastAPI's routing (`direct.py`). Dependency solving and response models would cost
more than the rest of the handler; `describe` puts both routes into the OpenAPI document.
"""

import time
from collections.abc import Iterable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from control_plane.api.body import media_type_of, read_body, read_json_body, unless_client_leaves
from control_plane.api.direct import Handler
from control_plane.api.intake import RECEIVED
from control_plane.api.problem import problem_document
from control_plane.api.resources import request_id_of, resources_of
from control_plane.api.schemas.predict import describe_paths
from control_plane.errors import ServingError
from control_plane.inference.answers import BatchAnswer, FailedPrediction, to_json
from control_plane.inference.arrow import ARROW_STREAM, is_available, read_arrow, write_arrow
from control_plane.inference.batch import predict_batch
from control_plane.inference.npy import NPY, read_npy
from control_plane.inference.query_options import request_of
from control_plane.inference.requests import AnyPredictRequest, decode_batch, decode_predict

_CLIENT_CLOSED_REQUEST = 499
_JSON = "application/json"
_ARROW = ARROW_STREAM.encode()


async def predict(request: Request) -> Response:
    """One prediction of one to 1,000 rows."""
    resources = resources_of(request)
    request_id = request_id_of(request)
    predictor = resources.predictor
    try:
        try:
            media_type = media_type_of(request, (ARROW_STREAM, NPY))
            body = await read_body(request)
            received = request.scope.get(RECEIVED) or time.monotonic()
            prediction = _decode(body, media_type, request.scope["query_string"])
        except ServingError as error:
            predictor.refused(error, request_id=request_id)
            raise
        del body
        answer = await unless_client_leaves(
            request, lambda: predictor.predict(prediction, received=received, request_id=request_id)
        )
    except ClientDisconnect:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    if _prefers_arrow(request.scope["headers"]):
        return Response(write_arrow(answer), headers={"Content-Type": ARROW_STREAM, "Vary": "Accept"})
    return Response(to_json(answer), media_type=_JSON)


async def predict_many(request: Request) -> Response:
    """Up to 100 predictions at once, each failing alone."""
    resources = resources_of(request)
    predictor = resources.predictor
    try:
        try:
            body = await read_json_body(request)
            received = request.scope.get(RECEIVED) or time.monotonic()
            batch = decode_batch(body)
        except ServingError as error:
            predictor.refused(error, request_id=request_id_of(request))
            raise
        del body
        answer = await unless_client_leaves(
            request, lambda: predict_batch(predictor, batch, received=received, clock=time.monotonic)
        )
    except ClientDisconnect:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    return Response(to_json(_batch_document(answer, instance=request.url.path)), media_type=_JSON)


def handlers(prefix: str = "/api/v1") -> dict[str, Handler]:
    """The handlers by path, for `direct.py`."""
    return {f"{prefix}/predict": predict, f"{prefix}/predict/batch": predict_many}


def routes(prefix: str = "/api/v1") -> list[Route]:
    """The routes, for `app.router.routes`: so that other methods are refused as everywhere."""
    return [
        Route(path, handler, methods=["POST"], include_in_schema=False)
        for path, handler in handlers(prefix).items()
    ]


def describe(document: dict[str, Any], prefix: str = "/api/v1") -> None:
    """Adds both routes to an OpenAPI document, in place."""
    describe_paths(document, prefix)


def _decode(body: bytes, media_type: str, query: bytes) -> AnyPredictRequest:
    if media_type == _JSON:
        return decode_predict(body)
    prediction = request_of(query, None)
    prediction.data = read_npy(body) if media_type == NPY else read_arrow(body)
    return prediction


def _prefers_arrow(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the answer is to be Arrow: named in Accept, with at least the weight of JSON, and pyarrow is there."""
    for name, value in headers:
        if name == b"accept" and _ARROW in value.lower():
            weights = dict(_weighted(part) for part in value.decode("latin-1").lower().split(","))
            asked = weights.get(ARROW_STREAM, 0.0)
            json_weight = max(weights.get(kind, 0.0) for kind in (_JSON, "application/*", "*/*"))
            return asked > 0 and asked >= json_weight and is_available()
    return False


def _weighted(part: str) -> tuple[str, float]:
    """A part of Accept as its media type and weight (RFC 9110, 12.4.2)."""
    kind, *parameters = (piece.strip() for piece in part.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return kind, float(parameter[2:])
            except ValueError:
                return kind, 0.0
    return kind, 1.0


def _batch_document(answer: BatchAnswer, *, instance: str) -> dict[str, Any]:
    failed = sum(isinstance(result, FailedPrediction) for result in answer.results)
    return {
        "batch_id": answer.batch_id,
        "total_requests": len(answer.results),
        "successful_predictions": len(answer.results) - failed,
        "failed_predictions": failed,
        "results": [
            {
                "request_id": result.request_id,
                "error": problem_document(result.error, request_id=result.request_id, instance=instance),
            }
            if isinstance(result, FailedPrediction)
            else result
            for result in answer.results
        ],
        "total_processing_time_ms": answer.total_processing_time_ms,
        "timestamp": answer.timestamp,
    }
