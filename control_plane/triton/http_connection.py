"""Keep-alive HTTP/1.1 connections to one server, for one request at a time each.

A client for many small requests on a trusted link, and no more: httptools parses, connections are reused, nothing is
followed, decompressed or sent twice. docs/decisions/008 says why not a general client.
"""

import asyncio
import select
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import httptools


class ConnectionLost(Exception):
    """The server can't be reached, or closed the connection before its answer's end."""


@dataclass(slots=True)
class Response:
    """A whole response; header names are in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection. httptools calls the `on_…` methods."""

    def __init__(self) -> None:
        self.is_usable = True
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Response] | None = None
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._readable = select.poll()

    def is_quiet(self) -> bool:
        """Whether nothing has come since the last answer: neither the connection's end, even if the event loop hasn't
        seen it yet, nor what nobody asked for.
        """
        return self.is_usable and not self._readable.poll(0)

    async def ask(self, request: bytes) -> Response:
        """Sends one request and waits for its response; a caller who is cancelled closes the connection.

        Raises:
            ConnectionLost: see there.
        """
        transport = self._transport
        if transport is None or not self.is_usable:
            raise ConnectionLost
        self._answer = asyncio.get_running_loop().create_future()
        transport.write(request)
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._answer = None

    def close(self) -> None:
        """Closes it at once."""
        self.is_usable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's doesn't derive from it
        self._readable.register(transport.get_extra_info("socket"), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.close()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()

    def eof_received(self) -> None:
        self.is_usable = False  # asyncio closes the transport

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.is_usable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionLost())

    def on_message_begin(self) -> None:
        self._headers, self._parts = {}, []
        if self._answer is None or self._answer.done():
            self.close()  # a second answer

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < HTTPStatus.OK:
            return  # the answer is still to come
        if not self._parser.should_keep_alive():
            self.is_usable = False
        if self._answer is not None and not self._answer.done():
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._answer.set_result(Response(status, self._headers, body))


class HttpConnections:
    """The connections to one server, made as they are needed: as many as there are requests at once."""

    def __init__(self, *, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._idle: list[_Connection] = []

    async def ask(self, request: bytes, *, timeout_s: float) -> Response:
        """Sends a request, whole with its head, and waits for the response.

        It is sent once: a server that dies of a request looks like one that closes an idle connection at this moment,
        and the next should not die, too. What was closed before is seen before, and replaced by a new connection.

        Raises:
            ConnectionLost: see there.
            TimeoutError: no response in time.
        """
        async with asyncio.timeout(timeout_s):
            connection = self._take_idle() or await self._connect()
            response = await connection.ask(request)
        if connection.is_usable:
            self._idle.append(connection)
        else:
            connection.close()
        return response

    def close(self) -> None:
        """Closes all idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_quiet():
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, self._host, self._port
            )
        except OSError as error:
            raise ConnectionLost from error
        return connection
