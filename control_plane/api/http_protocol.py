"""uvicorn's HTTP/1.1 protocol, with two things that the load of many small requests asks for.

An answer's head and body are one write: uvicorn writes them apart, and each write is a system call and a wake-up. And a
prediction that comes when the worker can't begin it in time (`intake.py`) is refused at once, before it is parsed.
"""

import asyncio
import re
import time
from functools import lru_cache
from typing import Any

import orjson
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from control_plane.api.intake import ARRIVAL, RECEIVED, Arrival, Intake, kind_before_data
from control_plane.api.middleware import REQUEST_ID
from control_plane.api.problem import PROBLEM_JSON, problem_document
from control_plane.errors import QueueFull, problem_of
from control_plane.inference.accounts import UNKNOWN
from control_plane.inference.identifiers import uuid7
from control_plane.telemetry import metrics
from control_plane.telemetry.logs import PREDICTION_FAILED

_STATUS_LINE = b"HTTP/1.1 "
_PREDICT = b"POST /api/v1/predict"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n")
_REQUEST_ID = re.compile(rb"\r\nx-request-id:[ \t]*(" + REQUEST_ID + rb")[ \t]*\r\n", re.IGNORECASE)
_TIMEOUT_MS = re.compile(rb'timeout_ms(?:"[ \t\r\n]*:[ \t\r\n]*|=)(\d+(?:\.\d+)?)')
_UNUSUAL = re.compile(rb"\r\n(?:expect|transfer-encoding|connection|upgrade):")
_TELLING = (b'"model_type"', b'"model_version"', b'"priority"', b'"on_overload"', b'"experiment_id"')
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
            and (intake.is_crowded or intake.remembers)
            and self._is_between_requests
            and (self.cycle is None or self.cycle.response_complete)
            and data.startswith(_PREDICT)
            and (head := whole_request_head(data)) is not None
        ):
            timeout_s = timeout_s_of(data, self._timeout_s)
            kind = kind_of(data) if intake.remembers else None
            if intake.refuses(timeout_s) or (
                kind is not None and intake.would_be_refused(kind, timeout_s=timeout_s, now=time.monotonic())
            ):
                self._refuse(head)
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

    def _refuse(self, head: bytes) -> None:
        named = _REQUEST_ID.search(head)
        request_id = named.group(1) if named else uuid7().encode()
        start, rest, body = _refusal()
        body = body.replace(_PLACEHOLDER, request_id)
        default = b"".join(b"%b: %b\r\n" % pair for pair in self.server_state.default_headers)
        self.transport.write_whole(  # type: ignore[attr-defined]  # of the joining transport
            b"%b%bx-request-id: %b\r\n%bcontent-length: %d\r\n\r\n%b"
            % (start, default, request_id, rest, len(body), body)
        )
        _refusals.count(self.loop)
        # libuv reads on while many sockets have something, and does nothing else: those refused have to pause.
        self.flow.pause_reading()
        self.loop.call_later(_PAUSE_S, self.flow.resume_reading)
        # As after any answer.
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )


def whole_request_head(data: bytes) -> bytes | None:
    """The head of the one plain HTTP/1.1 request that `data` holds, in lower case but for the request's line; None
    where it isn't sure to hold just that.
    """
    end = data.find(b"\r\n\r\n")
    line_end = data.find(b"\r\n")
    if end < 0 or not data.endswith(b" HTTP/1.1", 0, line_end):
        return None
    head = data[line_end : end + 2]
    lowered = head.lower()
    length = _LENGTH.search(lowered)
    if length is None or _UNUSUAL.search(lowered) or len(data) != end + 4 + int(length.group(1)):
        return None
    return head


def kind_of(data: bytes) -> bytes | None:
    """What a whole request has in common with others to the same model: its target, and its body up to the data.

    None where it isn't sure that this tells the version, or where the request may go before others.
    """
    line_end, start = data.find(b"\r\n"), data.find(b"\r\n\r\n") + 4
    target = data[len(b"POST ") : line_end - len(b" HTTP/1.1")]
    kind = kind_before_data(target, data, start)
    if kind is None:
        return None
    place = start + len(kind) - len(target)
    return None if any(data.find(name, place) >= 0 for name in _TELLING) else kind


def timeout_s_of(data: bytes, default_s: float) -> float:
    """The deadline that a request names, in seconds, without parsing it: what looks like `timeout_ms`.

    Args:
        data: The whole request. A batch's first member stands for all.
        default_s: Where it names none.
    """
    place = data.find(b"timeout_ms")
    found = _TIMEOUT_MS.match(data, place) if place >= 0 else None
    return float(found.group(1)) / 1000 if found else default_s


@lru_cache(maxsize=1)
def _refusal() -> tuple[bytes, bytes, bytes]:
    """The answer to a refused request: status line, headers, and the body with a placeholder for the id."""
    error = QueueFull(
        "The server has more requests than it can begin in time.",
        expected="a turn before the request's deadline",
        got="too many requests before this one",
        remedy="Try again after Retry-After, raise timeout_ms, or send several rows in one request.",
    )
    document = problem_document(error, request_id=_PLACEHOLDER.decode(), instance="/api/v1/predict")
    headers = f"content-type: {PROBLEM_JSON}\r\nretry-after: 1\r\n"
    return b"HTTP/1.1 503 Service Unavailable\r\n", headers.encode(), orjson.dumps(document)


class _Refusals:
    """Counts and logs refusals, several at once: each by itself would cost as much as the refusal."""

    def __init__(self) -> None:
        self._uncounted = 0

    def count(self, loop: asyncio.AbstractEventLoop) -> None:
        """One more."""
        if self._uncounted == 0:
            loop.call_later(_FLUSH_S, self._flush)
        self._uncounted += 1

    def _flush(self) -> None:
        refused, self._uncounted = self._uncounted, 0
        slug = problem_of(QueueFull("")).slug
        metrics.HTTP_REQUESTS.labels("POST", "/api/v1/predict", "503").inc(refused)
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
        if self._head is not None:
            data, self._head = self._head, None
            self._transport.write(data)
