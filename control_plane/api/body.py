"""Reads request bodies, and notices clients that leave while they wait. `body_limit.py` bounds what is read."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from control_plane.errors import UnsupportedMediaType

Result = TypeVar("Result")

JSON = "application/json"
_JSON = JSON.encode()
PATIENCE_S = 0.05
"""How long a prediction waits before its client is watched: most are done by then, and watching costs a task."""


async def read_json_body(request: Request) -> bytes:
    """The whole body of a JSON request.

    Raises:
        UnsupportedMediaType: the content type is given and isn't JSON.
        PayloadTooLarge: over the limit; the rest isn't read.
        ClientDisconnect: the client left before the body's end.
    """
    media_type_of(request)
    return await read_body(request)


def media_type_of(request: Request, others: tuple[str, ...] = ()) -> str:
    """The body's media type, without parameters: JSON where none is given.

    Args:
        request: The request.
        others: The media types that are read besides JSON.

    Raises:
        UnsupportedMediaType: it is neither.
    """
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            return JSON if value == _JSON else _essence(value, others)
    return JSON


async def read_body(request: Request) -> bytes:
    """The whole body.

    Raises:
        PayloadTooLarge: over the limit; the rest isn't read.
        ClientDisconnect: the client left before the body's end.
    """
    message = await _next_part(request.receive)
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return body
    parts = [body]
    while message.get("more_body", False):
        message = await _next_part(request.receive)
        parts.append(message.get("body", b""))
    return b"".join(parts)


async def unless_client_leaves(request: Request, work: Callable[[], Awaitable[Result]]) -> Result:
    """Runs the work in this task, and cancels it when the client disconnects.

    The body must have been read. For the first `PATIENCE_S` seconds nobody watches, so fast answers pay only for a
    timer.

    Raises:
        ClientDisconnect: the client left first.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  coroutines run in tasks
    watch = _Watch(request.receive, task)
    timer = asyncio.get_running_loop().call_later(PATIENCE_S, watch.start)
    try:
        return await work()
    except asyncio.CancelledError:
        if not watch.has_left:
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        timer.cancel()
        watch.stop()


class _Watch:
    """Waits for the disconnection of one client, and then cancels the task that works for it."""

    def __init__(self, receive: Receive, worker: "asyncio.Task[object]") -> None:
        self.has_left = False
        self._receive = receive
        self._worker = worker
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts watching."""
        self._task = asyncio.get_running_loop().create_task(self._wait())

    def stop(self) -> None:
        """Ends watching, if it was started."""
        if self._task is not None:
            self._task.cancel()

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.has_left = True
        self._worker.cancel()


async def _next_part(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


def _essence(value: bytes, others: tuple[str, ...]) -> str:
    essence = value.partition(b";")[0].strip().lower().decode("latin-1")
    if essence in others:
        return essence
    if essence in (JSON, "") or (essence.startswith("application/") and essence.endswith("+json")):
        return JSON
    raise UnsupportedMediaType(
        "The body's content type is not read here.",
        expected=" or ".join((JSON, *others)),
        got=value.decode("latin-1")[:100],
        remedy=f"Send JSON, with Content-Type: {JSON}.",
    )
