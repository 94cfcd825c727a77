"""uvicorn's HTTP/1.1 protocol, with two things that the load of many small requests asks for.

An answer's head and body are one write: uvicorn writes them apart, and each write is a system call and a wake-up. And a
prediction that comes when the worker can't begin it in time (`intake.py`) is refused at once, before it is parsed.
"""

import asyncio
import re
import time
from collections import Counter
from functools import lru_cache
from typing import Any

import orjson
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from control_plane.api.draining import Draining
from control_plane.api.intake import ARRIVAL, RECEIVED, Arrival, Intake
from control_plane.api.middleware import REQUEST_ID
from control_plane.api.problem import PROBLEM_JSON, problem_document
from control_plane.errors import QueueFull, problem_of
from control_plane.inference.accounts import UNKNOWN
from control_plane.inference.identifiers import uuid7
from control_plane.telemetry import metrics
from control_plane.telemetry.logs import PREDICTION_FAILED

_STATUS_LINE = b"HTTP/1.1 "
_LINE = re.compile(rb"POST (/api/v1/predict(?:/batch)?)(?:\?\S*)? HTTP/1\.1\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,12})[ \t]*\r\n")
_REQUEST_ID = re.compile(rb"\r\nx-request-id:[ \t]*(" + REQUEST_ID + rb")[ \t]*\r\n", re.IGNORECASE)
_TIMEOUT_MS = re.compile(rb'timeout_ms(?:"[ \t\r\n]*:[ \t\r\n]*|=)(\d+(?:\.\d+)?)(?=[,}&\s])')
_UNUSUAL = re.compile(
    rb"\r\n(?:expect:|transfer-encoding:|upgrade:|connection:(?![ \t]*keep-alive[ \t]*\r\n))"
)
_FLUSH_S = 0.25
_PAUSE_S = 0.02
_PLACEHOLDER = b"the-request-id"

log = structlog.get_logger()


class ServingProtocol(HttpToolsProtocol):
    """One connection of a client. The worker's `Intake` is in the application's state."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        resources = self.app_state.get("resources")
        self._intake: Intake | None = None if resources is None else resources.intake
        self._draining: Draining | None = None if resources is None else resources.draining
        self._timeout_s = 0.0 if resources is None else resources.settings.api.request_timeout_s
        self._is_between_requests = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Puts the joining transport before the connection's own."""
        super().connection_made(_JoiningTransport(transport))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        """Refuses a whole prediction that can't be begun in time; all else goes the usual way."""
        intake = self._intake
        if (
            intake is not None
            and intake.is_crowded
            and self._is_between_requests
            and (self.cycle is None or self.cycle.response_complete)
            and (found := whole_prediction(data)) is not None
            and intake.refuses(timeout_s_of(data, self._timeout_s))
        ):
            self._refuse(*found)
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._is_between_requests = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """A request has been received."""
        self._is_between_requests = True
        self.scope[RECEIVED] = time.monotonic()  # type: ignore[literal-required]  # an extension
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._intake is not None:
            place = self._intake.arrived()
            cycle.scope[ARRIVAL] = Arrival(self._intake, place, time.monotonic())  # type: ignore[literal-required]
        super()._start_asgi_task(cycle, app)

    def _refuse(self, path: str, head: bytes) -> None:
        named = _REQUEST_ID.search(head)
        request_id = named.group(1) if named else uuid7().encode()
        start, rest, body = _refusal(path)
        body = body.replace(_PLACEHOLDER, request_id)
        default = b"".join(b"%b: %b\r\n" % pair for pair in self.server_state.default_headers)
        is_last = self._draining is not None and self._draining.started
        if is_last:
            rest += b"connection: close\r\n"
        self.transport.write_whole(  # type: ignore[attr-defined]  # of the joining transport
            b"%b%bx-request-id: %b\r\n%bcontent-length: %d\r\n\r\n%b"
            % (start, default, request_id, rest, len(body), body)
        )
        _refusals.count(self.loop, path)
        self._unset_keepalive_if_required()
        if is_last:
            self.transport.close()
            return
        # libuv reads on while many sockets have something, and does nothing else: those refused have to pause.
        self.flow.pause_reading()
        self.loop.call_later(_PAUSE_S, self.flow.resume_reading)
        # As after any answer.
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )


def whole_prediction(data: bytes) -> tuple[str, bytes] | None:
    """The path and the header lines, as they were sent, of the one plain prediction that `data` holds; None where it
    isn't sure to hold just that.
    """
    line = _LINE.match(data)
    end = data.find(b"\r\n\r\n")
    if line is None or end < 0:
        return None
    head = data[line.end() - 2 : end + 2]
    lowered = head.lower()
    length = _LENGTH.search(lowered)
    if length is None or _UNUSUAL.search(lowered) or len(data) != end + 4 + int(length.group(1)):
        return None
    return line.group(1).decode(), head


def timeout_s_of(data: bytes, default_s: float) -> float:
    """The deadline that a request names, in seconds, without parsing it: what looks like `timeout_ms`, where it is a
    plain number.

    Args:
        data: The whole request. A batch's first member stands for all.
        default_s: Where it names none, or writes it in another way.
    """
    place = data.find(b"timeout_ms")
    found = _TIMEOUT_MS.match(data, place) if place >= 0 else None
    return float(found.group(1)) / 1000 if found else default_s


@lru_cache(maxsize=2)
def _refusal(path: str) -> tuple[bytes, bytes, bytes]:
    """The answer to a refused request: status line, headers, and the body with a placeholder for the id."""
    error = QueueFull(
        "The server has more requests than it can begin in time.",
        expected="a turn before the request's deadline",
        got="too many requests before this one",
        remedy="Try again after Retry-After, raise timeout_ms, or send several rows in one request.",
    )
    document = problem_document(error, request_id=_PLACEHOLDER.decode(), instance=path)
    headers = f"content-type: {PROBLEM_JSON}\r\nretry-after: 1\r\n"
    return b"HTTP/1.1 503 Service Unavailable\r\n", headers.encode(), orjson.dumps(document)


class _Refusals:
    """Counts and logs refusals, several at once: each by itself would cost as much as the refusal."""

    def __init__(self) -> None:
        self._uncounted: Counter[str] = Counter()

    def count(self, loop: asyncio.AbstractEventLoop, path: str) -> None:
        """One more."""
        if not self._uncounted:
            loop.call_later(_FLUSH_S, self._flush)
        self._uncounted[path] += 1

    def _flush(self) -> None:
        for path, refused in self._uncounted.items():
            metrics.HTTP_REQUESTS.labels("POST", path, "503").inc(refused)
        refused = self._uncounted.total()
        self._uncounted.clear()
        slug = problem_of(QueueFull("")).slug
        metrics.PREDICTION_REQUESTS.labels(UNKNOWN, UNKNOWN, "overloaded").inc(refused)
        metrics.PREDICTION_ERRORS.labels(UNKNOWN, UNKNOWN, slug).inc(refused)
        log.warning(
            PREDICTION_FAILED, error=slug, refused=refused, detail="too many requests to begin in time"
        )


_refusals = _Refusals()


class _JoiningTransport:
    """What uvicorn uses of a transport. It isn't one by inheritance: all but writing and closing is the real one's."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        """Writes, with the head that was kept; keeps what begins like a head."""
        if self._head is not None:
            data, self._head = self._head + data, None
        elif data.startswith(_STATUS_LINE):
            self._head = data
            asyncio.get_running_loop().call_soon(self._flush)
            return
        self._transport.write(data)

    def write_whole(self, data: bytes) -> None:
        """Writes a head with its body at once."""
        self._flush()
        self._transport.write(data)

    def close(self) -> None:
        """Writes what was kept, and closes."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        head, self._head = self._head, None
        if head is not None and not self._transport.is_closing():
            self._transport.write(head)
