"""The outermost layer: request ids, the last resort for unexpected errors, and the count of answers.

Plain ASGI, since Starlette's BaseHTTPMiddleware costs a task and a queue for every request.
"""

import inspect
import re
import time
from functools import lru_cache

import structlog
from prometheus_client import Counter
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.api.draining import Draining
from control_plane.api.intake import ARRIVAL
from control_plane.api.v2_errors import response_outside_routes
from control_plane.inference.identifiers import uuid7
from control_plane.telemetry.metrics import HTTP_REQUESTS

log = structlog.get_logger()

_UNMATCHED = "unmatched"
REQUEST_ID = rb"[A-Za-z0-9._:/+=@-]{1,128}"
"""What a caller may name a request."""
_VALID_ID = re.compile(REQUEST_ID)


class RequestEnvelope:
    """Gives each request its id, and each answer `X-Request-ID`; turns what nobody caught into a fixed 500.

    While `draining`, answers also say `Connection: close`, so that clients leave before the sockets do.
    """

    def __init__(self, app: ASGIApp, *, draining: Draining) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection; anything other than HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (arrival := scope.get(ARRIVAL)) is not None:
            arrival.intake.started(place=arrival.place, delay_s=time.monotonic() - arrival.at)
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                if not any(name == b"x-request-id" for name, _ in headers):
                    headers.append((b"x-request-id", request_id.encode("ascii")))
                if self._draining.started:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception(
                "unexpected_error", request_id=request_id, path=scope["path"], method=scope["method"]
            )
            if status == 0:
                answer = response_outside_routes(None, request_id=request_id, path=scope["path"])
                await answer(scope, receive, send_with_id)
        finally:
            route = route_template(scope)
            # Methods of unmatched paths come from anyone, and would be labels without bound.
            _answers(scope["method"] if route != _UNMATCHED else "ANY", route, status).inc()


@lru_cache(maxsize=1024)
def _answers(method: str, route: str, status: int) -> Counter:
    """The counter of these labels: finding it costs more than counting."""
    return HTTP_REQUESTS.labels(method, route, str(status))


def route_template(scope: Scope) -> str:
    """The path with its parameters' values put back to their names: a label of bounded many values.

    Not the route's own `path`: FastAPI leaves out the prefix under which its router was included, and a plain route
    isn't in the scope at all.
    """
    if "endpoint" not in scope:
        return _UNMATCHED
    if not inspect.isroutine(scope["endpoint"]):
        return f"{scope['root_path']}/*"  # a mounted application, such as the static files
    names = {str(value): name for name, value in scope.get("path_params", {}).items()}
    if not names:
        return str(scope["path"])
    return "/".join(f"{{{names[part]}}}" if part in names else part for part in scope["path"].split("/"))


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode("ascii") if _VALID_ID.fullmatch(value) else uuid7()
    return uuid7()
