"""Keep-alive HTTP/1.1 connections to one server, for one request at a time each.

A client for many small requests on a trusted link, and no more: httptools parses, connections are reused, nothing is
followed, decompressed or retried, but for a reused connection that turns out to be closed. docs/decisions/008 says why
not a general client.
"""

import asyncio
from dataclasses import dataclass
from typing import cast

import httptools


class ConnectionLost(Exception):
    """The server can't be reached, or closed the connection before its answer's end."""

    def __init__(self, *, is_answered: bool) -> None:
        super().__init__("the connection was lost")
        self.is_answered = is_answered
        """Whether the server had begun to answer."""


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
        self._has_begun = False

    async def ask(self, request: bytes) -> Response:
        """Sends one request and waits for its response; a caller who is cancelled closes the connection.

        Raises:
            ConnectionLost: see there.
        """
        transport = self._transport
        if transport is None or not self.is_usable:
            raise ConnectionLost(is_answered=False)
        self._headers, self._parts, self._has_begun = {}, [], False
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

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.close()  # nobody asked
            return
        self._has_begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.is_usable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionLost(is_answered=self._has_begun))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.is_usable = False
        if self._answer is not None and not self._answer.done():
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._answer.set_result(Response(self._parser.get_status_code(), self._headers, body))


class HttpConnections:
    """The connections to one server, made as they are needed: as many as there are requests at once."""

    def __init__(self, *, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._idle: list[_Connection] = []

    async def ask(self, request: bytes, *, timeout_s: float) -> Response:
        """Sends a request, whole with its head, and waits for the response.

        A connection that the server closed while it was idle is replaced by a new one, once.

        Raises:
            ConnectionLost: see there.
            TimeoutError: no response in time.
        """
        async with asyncio.timeout(timeout_s):
            connection = self._take_idle()
            if connection is not None:
                try:
                    return await self._ask(connection, request)
                except ConnectionLost as error:
                    if error.is_answered:
                        raise
            return await self._ask(await self._connect(), request)

    def close(self) -> None:
        """Closes all idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def _ask(self, connection: _Connection, request: bytes) -> Response:
        response = await connection.ask(request)
        if connection.is_usable:
            self._idle.append(connection)
        else:
            connection.close()
        return response

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
        return None

    async def _connect(self) -> _Connection:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, self._host, self._port
            )
        except OSError as error:
            raise ConnectionLost(is_answered=False) from error
        return connection
