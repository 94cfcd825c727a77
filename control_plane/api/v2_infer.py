"""POST /v2/models/{name}/infer: the Open Inference Protocol's inference, in JSON or with binary tensor data."""

import time

from starlette.requests import Request
from starlette.responses import Response

from control_plane.api.body import unless_client_leaves
from control_plane.api.resources import Resources, request_id_of, resources_of
from control_plane.api.v2_body import read_body
from control_plane.api.v2_errors import protocol_errors
from control_plane.errors import MalformedRequest, ServingError
from control_plane.inference.open_inference import InferRequest, decode_infer
from control_plane.inference.open_inference_answers import encode_infer

HEADER_LENGTH = "Inference-Header-Content-Length"
_JSON = "application/json"
_BINARY = "application/octet-stream"


@protocol_errors
async def infer(request: Request) -> Response:
    """Raw tensors in, raw tensors out, through the same queue, cache and limits as `POST /predict`."""
    resources = resources_of(request)
    predictor = resources.predictor
    request_id = request_id_of(request)
    try:
        decoded = await _read(request, resources)
    except ServingError as error:
        predictor.refused(error, request_id=request_id)
        raise
    received = time.monotonic()
    answer = await unless_client_leaves(
        request, lambda: predictor.infer(decoded, received=received, request_id=request_id)
    )
    encoded = encode_infer(decoded, answer)
    if encoded.header_length is None:
        return Response(encoded.body, media_type=_JSON)
    return Response(encoded.body, media_type=_BINARY, headers={HEADER_LENGTH: str(encoded.header_length)})


async def _read(request: Request, resources: Resources) -> InferRequest:
    body = await read_body(request, max_bytes=resources.settings.limits.max_body_bytes)
    return decode_infer(
        body,
        header_length=_header_length(request),
        name=request.path_params["name"],
        version=request.path_params.get("version"),
    )


def _header_length(request: Request) -> int | None:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise MalformedRequest(
            f"{HEADER_LENGTH} is no length.", expected="a whole number of bytes", got=text[:100]
        )
    return int(text)
