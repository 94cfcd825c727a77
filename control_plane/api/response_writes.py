"""One write for an answer's head and body: uvicorn writes them apart, and each is a system call and a wake-up."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_STATUS_LINE = b"HTTP/1.1 "


class JoinedWrites(HttpToolsProtocol):
    """uvicorn's protocol, over a transport that keeps an answer's head until its body comes.

    A head without a body goes out by itself, in the next turn of the event loop.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Puts the joining transport before the connection's own."""
        super().connection_made(_JoiningTransport(transport))  # type: ignore[arg-type]


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
