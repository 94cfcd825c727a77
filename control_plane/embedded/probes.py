"""Readiness of local servers over raw sockets: one short exchange, a deadline, no client library."""

import asyncio

_PROBE_TIMEOUT_S = 2.0
_NETWORK_ERRORS = (OSError, TimeoutError, EOFError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)


async def http_ok(host: str, port: int, path: str, *, timeout_s: float = _PROBE_TIMEOUT_S) -> bool:
    """Whether `GET path` answers with status 200 in time."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    line = await _first_line(host, port, request.encode("ascii"), timeout_s)
    return line.split(b" ")[1:2] == [b"200"]


async def redis_answers(host: str, port: int, *, timeout_s: float = _PROBE_TIMEOUT_S) -> bool:
    """Whether a Redis answers PING in time; one that still loads its data doesn't count."""
    return await _first_line(host, port, b"PING\r\n", timeout_s) == b"+PONG"


async def _first_line(host: str, port: int, request: bytes, timeout_s: float) -> bytes:
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request)
                await writer.drain()
                return (await reader.readuntil(b"\n")).strip()
            finally:
                writer.close()
                await writer.wait_closed()
    except _NETWORK_ERRORS:
        return b""
