"""POST /predict and /predict/batch.

Plain Starlette routes: the raw request in, bytes out. FastAPI's dependency solving and response models would cost more
than the rest of the handler; `describe` puts both routes into the OpenAPI document.
"""

import time
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from control_plane.api.body import read_json_body, unless_client_leaves
from control_plane.api.problem import problem_document
from control_plane.api.resources import request_id_of, resources_of
from control_plane.api.schemas.predict import describe_paths
from control_plane.errors import ServingError
from control_plane.inference.answers import BatchAnswer, FailedPrediction, to_json
from control_plane.inference.batch import predict_batch
from control_plane.inference.predictor import Predictor
from control_plane.inference.requests import decode_batch, decode_predict

_CLIENT_CLOSED_REQUEST = 499
_JSON = "application/json"


async def predict(request: Request) -> Response:
    """One prediction of one to 1,000 rows."""
    resources = resources_of(request)
    request_id = request_id_of(request)
    predictor = resources.predictor
    try:
        body = await _read(request, predictor, resources.settings.limits.max_body_bytes)
        received = time.monotonic()
        try:
            prediction = decode_predict(body)
        except ServingError as error:
            predictor.refused(error, request_id=request_id)
            raise
        del body
        answer = await unless_client_leaves(
            request, lambda: predictor.predict(prediction, received=received, request_id=request_id)
        )
    except ClientDisconnect:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    return Response(to_json(answer), media_type=_JSON)


async def predict_many(request: Request) -> Response:
    """Up to 100 predictions at once, each failing alone."""
    resources = resources_of(request)
    predictor = resources.predictor
    try:
        body = await _read(request, predictor, resources.settings.limits.max_body_bytes)
        received = time.monotonic()
        try:
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


def routes(prefix: str = "/api/v1") -> list[Route]:
    """The routes, for `app.router.routes`: before all others, since they are the most used."""
    return [
        Route(f"{prefix}/predict", predict, methods=["POST"], include_in_schema=False),
        Route(f"{prefix}/predict/batch", predict_many, methods=["POST"], include_in_schema=False),
    ]


def describe(document: dict[str, Any], prefix: str = "/api/v1") -> None:
    """Adds both routes to an OpenAPI document, in place."""
    describe_paths(document, prefix)


async def _read(request: Request, predictor: Predictor, max_bytes: int) -> bytes:
    try:
        return await read_json_body(request, max_bytes=max_bytes)
    except ServingError as error:
        predictor.refused(error, request_id=request_id_of(request))
        raise


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
