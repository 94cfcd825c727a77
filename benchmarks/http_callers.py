"""A small load generator for HTTP/1.1: for where wrk is absent, and for open loops.

    python -m benchmarks.http_callers '{"url": …, "path": …, "headers": {…}, "folder": …, "count": …, "seconds": …}'

Posts the files 0 … count-1 of `folder` in turn. With `connections` callers, each with one request at a time; or, with
`rate_per_s`, at random times (a Poisson process) whatever comes back, on at most `connections` connections: latency
counts from the time at which a request was due. In a body, `distinct` (a text as long as a number) is replaced by
another number each time. Prints the result as JSON.
"""

import asyncio
import itertools
import json
import random
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.load import LoadResult, result_of

_TICK_S = 0.001
_DRAIN_S = 10.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass
class Tally:
    """What came back."""

    latencies_ms: list[float] = field(default_factory=list)
    refused: int = 0
    timed_out: int = 0
    failed: int = 0

    def add(self, status: int, latency_s: float) -> None:
        """Notes an answer; status 0 is a broken connection."""
        if status == 200:
            self.latencies_ms.append(1e3 * latency_s)
        elif status == 503:
            self.refused += 1
        elif status == 504:
            self.timed_out += 1
        else:
            self.failed += 1


def whole_answer(data: bytes) -> int | None:
    """The status of an HTTP/1.1 answer when all of it is there, else None.

    Raises:
        ValueError: it has no Content-Length.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    length = _LENGTH.search(data, 0, end)
    if length is None:
        raise ValueError("an answer without Content-Length")
    return int(data[9:12]) if len(data) - end - 4 >= int(length[1]) else None


def requests_of(options: dict[str, Any]) -> Iterator[bytes]:
    """The requests as bytes, without end."""
    host = urlsplit(options["url"]).netloc
    given = "".join(f"{name}: {value}\r\n" for name, value in options["headers"].items())
    whole = []
    for index in range(options["count"]):
        body = (Path(options["folder"]) / str(index)).read_bytes()
        line = f"POST {options['path']} HTTP/1.1\r\nHost: {host}\r\n"
        whole.append(f"{line}{given}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    mark = options.get("distinct", "").encode()
    for number in itertools.count():
        request = whole[number % len(whole)]
        yield request.replace(mark, distinct_number(number, len(mark)), 1) if mark else request


def distinct_number(number: int, length: int) -> bytes:
    """A decimal fraction of `length` characters that is another one for each whole number."""
    return b"0." + str(number).zfill(length - 2).encode()


class Generator:
    """All connections and what they do; in callbacks, since a task for each request would cost more than it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.tally = Tally()
        self.offered = 0
        self._options = options
        self._requests = requests_of(options)
        self._is_open_loop = "rate_per_s" in options
        self._free: list[Connection] = []
        self._overdue: deque[float] = deque()
        self._under_way = 0
        self._until = 0.0
        self._last_good = 0.0
        self._drained = asyncio.Event()

    async def run(self) -> float:
        """Runs the load; returns the time until its end, or until the last answer with status 200, in seconds."""
        for _ in range(self._options["connections"]):
            await self._connect()
        started = time.perf_counter()
        self._until = started + self._options["seconds"]
        if self._is_open_loop:
            await self._open_loop(started)
        else:
            connections, self._free = self._free, []
            for connection in connections:
                self.is_free(connection)
            await asyncio.sleep(self._options["seconds"])
        if self._under_way or self._overdue:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), _DRAIN_S)
        self.tally.failed += self._under_way + len(self._overdue)
        return max(self._options["seconds"], self._last_good - started)

    async def _open_loop(self, started: float) -> None:
        chance = random.Random(0)
        rate_per_s = self._options["rate_per_s"]
        due = started + chance.expovariate(rate_per_s)
        while due < self._until:
            now = time.perf_counter()
            while due <= min(now, self._until):
                self.offered += 1
                if self._free:
                    self._send(self._free.pop(), due)
                else:
                    self._overdue.append(due)
                due += chance.expovariate(rate_per_s)
            await asyncio.sleep(max(0.0, min(due - time.perf_counter(), _TICK_S)))

    def is_free(self, connection: "Connection") -> None:
        """Gives a connection its next request, if one is due."""
        if self._overdue:
            self._send(connection, self._overdue.popleft())
        elif not self._is_open_loop and time.perf_counter() < self._until:
            self.offered += 1
            self._send(connection, time.perf_counter())
        else:
            self._free.append(connection)

    def answered(self, connection: "Connection", status: int, due: float) -> None:
        """Notes an answer; the connection is free, or broken and replaced."""
        self._under_way -= 1
        now = time.perf_counter()
        self.tally.add(status, now - due)
        if status == 200:
            self._last_good = now
        if connection.is_open:
            self.is_free(connection)
        if now >= self._until and not self._under_way and not self._overdue:
            self._drained.set()

    def lost(self, connection: "Connection") -> None:
        """Replaces a connection that the server closed."""
        if connection in self._free:
            self._free.remove(connection)
        if time.perf_counter() < self._until or self._overdue:
            self._reconnecting = asyncio.ensure_future(self._connect(is_new=True))

    def _send(self, connection: "Connection", due: float) -> None:
        self._under_way += 1
        connection.send(next(self._requests), due)

    async def _connect(self, *, is_new: bool = False) -> None:
        parts = urlsplit(self._options["url"])
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self), parts.hostname, parts.port
        )
        if is_new:
            self.is_free(connection)
        else:
            self._free.append(connection)


class Connection(asyncio.Protocol):
    """A kept-alive connection with one request at a time; answers must have a Content-Length."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._transport: asyncio.Transport | None = None
        self._due: float | None = None
        self._buffer = b""

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, due: float) -> None:
        """Sends a request that was due at that time."""
        self._due = due
        if self._transport is None:
            self._end(0)
        else:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Collects until the answer is whole."""
        self._buffer = self._buffer + data if self._buffer else data
        status = whole_answer(self._buffer)
        if status is not None:
            self._buffer = b""
            self._end(status)

    def connection_lost(self, _: Exception | None) -> None:
        """Ends the request under way with status 0."""
        self._transport = None
        self._buffer = b""
        if self._due is not None:
            self._end(0)
        self._generator.lost(self)

    def _end(self, status: int) -> None:
        if self._due is not None:
            due, self._due = self._due, None
            self._generator.answered(self, status, due)


async def run(options: dict[str, Any]) -> LoadResult:
    """Runs the load."""
    generator = Generator(options)
    began_s = time.process_time()
    took_s = await generator.run()
    is_open_loop = "rate_per_s" in options
    return result_of(
        generator.tally.latencies_ms,
        generator="python",
        connections=options["connections"],
        # What of an open loop was still on its way at the end is waited for, so that no slow answer is overlooked.
        seconds=took_s,
        refused=generator.tally.refused,
        timed_out=generator.tally.timed_out,
        failed=generator.tally.failed,
        generator_cpu_s=time.process_time() - began_s,
        deadline_ms=options.get("deadline_ms"),
        offered=generator.offered if is_open_loop else None,
    )


def main() -> None:
    """Reads the options and prints the result."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(asdict(runner.run(run(json.loads(sys.argv[1]))))))


if __name__ == "__main__":
    main()
