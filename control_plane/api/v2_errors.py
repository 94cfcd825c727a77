"""The Open Inference Protocol's error answers: `{"error": "…"}`, with the status that the same error has elsewhere."""

import functools
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus

import orjson
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from control_plane.api.problem import problem_document, problem_response, unexpected_response
from control_plane.api.resources import request_id_of
from control_plane.errors import ServingError

log = structlog.get_logger()

Handler = Callable[[Request], Awaitable[Response]]

_CLIENT_CLOSED_REQUEST = 499
_ROOT = "/v2"
_OPTION = re.compile(r"\b(?:timeout_ms|on_overload)\b")
_PROTOCOLS = {
    "timeout_ms": "parameters.timeout (in microseconds)",
    "on_overload": "parameters.on_overload",
}
"""What remedies call by the names of `POST /predict`."""


def protocol_errors(handler: Handler) -> Handler:
    """The handler, with what it raises told in the protocol's shape."""

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ServingError as error:
            log.debug(
                "request_refused", path=request.url.path, error=type(error).__name__, detail=error.detail
            )
            return _response_of(error, request_id=request_id_of(request), path=request.url.path)
        except ClientDisconnect:
            return Response(status_code=_CLIENT_CLOSED_REQUEST)

    return answer


def error_response(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """An error answer of the protocol."""
    return Response(
        orjson.dumps({"error": text}), status_code=status, media_type="application/json", headers=headers
    )


def is_protocol(path: str) -> bool:
    """Whether the path is one of the protocol's."""
    return path == _ROOT or path.startswith(f"{_ROOT}/")


def response_outside_routes(error: ServingError | None, *, request_id: str, path: str) -> Response:
    """The answer for an error that no route has seen, in the shape of its path: the protocol's, or a problem document.

    Args:
        error: The error; None for one that nobody expected.
        request_id: The request's id.
        path: The request's path.
    """
    if error is None:
        answer = unexpected_response(request_id, path)
        if not is_protocol(path):
            return answer
        return error_response(answer.status_code, str(orjson.loads(answer.body)["detail"]))
    if is_protocol(path):
        return _response_of(error, request_id=request_id, path=path)
    return problem_response(error, request_id=request_id, instance=path)


class NoSuchRoute:
    """Answers what none of `routes` takes: 405 where one has the path, else 404.

    An application of its own and no function, so that the count of answers has one label for all these paths.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = tuple(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        allowed = sorted(
            method
            for route in self._routes
            if route.path_regex.match(scope["path"])
            for method in route.methods or ()
        )
        if allowed:
            answer = error_response(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{scope['method']} is not allowed at {scope['path']}.",
                {"Allow": ", ".join(allowed)},
            )
        else:
            answer = error_response(
                HTTPStatus.NOT_FOUND, f"There is nothing at {scope['path']}. /docs lists the endpoints."
            )
        await answer(scope, receive, send)


def _response_of(error: ServingError, *, request_id: str, path: str) -> Response:
    document = problem_document(error, request_id=request_id, instance=path)
    text = str(document["detail"])
    # Not in the error itself: requests of both kinds may have it in common.
    if error.remedy is not None and text.endswith(error.remedy):
        remedy = _OPTION.sub(lambda found: _PROTOCOLS[found.group()], error.remedy)
        text = text.removesuffix(error.remedy) + remedy
    retry_after_s = getattr(error, "retry_after_s", None)
    headers = None if retry_after_s is None else {"Retry-After": str(max(1, math.ceil(retry_after_s)))}
    return error_response(document["status"], text, headers)
