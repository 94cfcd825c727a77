"""The hot routes' short way: from the server to the handler past the framework's routing and middleware.

For a prediction these cost as much as checking its input. What they would do for it is done here: the request's id and
its count (`middleware.py`), the bound of its body (`body_limit.py`), problem documents for our errors.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from control_plane.api.problem import serving_error_response
from control_plane.errors import ServingError

Handler = Callable[[Request], Awaitable[Response]]


class DirectRoutes:
    """POSTs to exact paths, each to its handler; the caller sends no others here."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        handler = self._handlers[scope["path"]]
        scope["endpoint"] = handler
        request = Request(scope, receive, send)
        try:
            response = await handler(request)
        except ServingError as error:
            response = serving_error_response(request, error)
        await response(scope, receive, send)


class ServingApp(FastAPI):
    """FastAPI, but for the direct routes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._direct: ASGIApp | None = None
        self._direct_paths: frozenset[str] = frozenset()

    def add_direct(self, paths: frozenset[str], app: ASGIApp) -> None:
        """Sends POSTs to these paths to `app`; other methods go the usual way, which refuses them."""
        self._direct, self._direct_paths = app, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if (
            self._direct is not None
            and scope["type"] == "http"
            and scope["path"] in self._direct_paths
            and scope["method"] == "POST"
        ):
            await self._direct(scope, receive, send)
            return
        await super().__call__(scope, receive, send)
