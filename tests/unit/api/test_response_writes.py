"""The head and the body of an answer go out in one write."""

import asyncio
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from control_plane.api.response_writes import JoinedWrites


class Wire(asyncio.Transport):
    """A transport that notes what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


async def converse(app: Any, request: bytes) -> Wire:
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", http=JoinedWrites)
    config.load()
    wire, state = Wire(), ServerState()
    protocol = JoinedWrites(config=config, server_state=state, app_state={})
    protocol.connection_made(wire)
    protocol.data_received(request)
    async with asyncio.timeout(5):
        while state.tasks:  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    return wire


def answering(*bodies: bytes, pause: bool = False) -> Any:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        length = str(sum(map(len, bodies))).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        for index, body in enumerate(bodies):
            if pause:
                await asyncio.sleep(0.01)
            await send({"type": "http.response.body", "body": body, "more_body": index < len(bodies) - 1})

    return app


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_answer_is_one_write() -> None:
    wire = await converse(answering(b"hello"), GET)
    (only,) = wire.writes
    assert only.startswith(b"HTTP/1.1 200 OK\r\n")
    assert only.endswith(b"\r\n\r\nhello")
    assert not wire.closed


async def test_slow_body_does_not_hold_up_the_head() -> None:
    wire = await converse(answering(b"one", b"two", pause=True), GET)
    assert [write[-3:] for write in wire.writes] == [b"\n\r\n", b"one", b"two"]


async def test_closing_writes_all_first() -> None:
    wire = await converse(answering(b""), GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert wire.closed
    assert b"".join(wire.writes).endswith(b"\r\n\r\n")


async def test_body_that_looks_like_a_head_is_not_lost() -> None:
    wire = await converse(answering(b"HTTP/1.1 ", b"HTTP/1.1 200 OK", b"end"), GET)
    assert b"".join(wire.writes).endswith(b"\r\n\r\nHTTP/1.1 HTTP/1.1 200 OKend")
