"""Inference by HTTP: the same answers and errors as by gRPC, and whatever the connection does."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from control_plane.embedded.triton import TritonServer
from control_plane.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    ModelNotReady,
    ServingError,
    TritonUnavailable,
)
from control_plane.triton.client import TritonClient, connect
from control_plane.triton.http_inference import HttpInference, connect_http
from tests.integration.inference.graphs import write_lookup_model
from tests.support.repository import FEATURES, marker_of, write_identity_like_model

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GOOD_HEAD = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}'


@asynccontextmanager
async def both_ways(server: TritonServer) -> AsyncIterator[tuple[HttpInference, TritonClient]]:
    async with connect(server.grpc_url) as client, connect_http(server.http_url) as inference:
        yield inference, client


async def outcome(call: Awaitable[object]) -> object:
    try:
        return await call
    except ServingError as error:
        return type(error), error.detail


async def test_answers_equal_those_of_grpc(triton_server: TritonServer, model_repository: Path) -> None:
    kind = f"t{uuid.uuid4().hex[:10]}"
    write_identity_like_model(model_repository, kind, "v1")
    random = np.random.default_rng(0)
    async with both_ways(triton_server) as (inference, client):
        await client.load(f"{kind}-v1", timeout_s=60)
        for rows in (1, 2, 3, 64, 1, 33):
            array = random.normal(size=(rows, FEATURES)).astype(np.float32)
            # A view with another memory order is sent as the numbers it shows.
            for tensor in (array, np.asfortranarray(array)):
                by_http = await inference.infer(f"{kind}-v1", {"x": tensor}, ["y"], timeout_s=10)
                by_grpc = await client.infer(f"{kind}-v1", {"x": array}, ["y"], timeout_s=10)
                assert by_http["y"].dtype == np.float32
                assert not by_http["y"].flags.writeable
                np.testing.assert_array_equal(by_http["y"], by_grpc["y"])
                np.testing.assert_allclose(by_http["y"], array + marker_of(kind, "v1"), rtol=1e-6)
        await client.unload(f"{kind}-v1")


async def test_many_calls_at_once_each_get_their_own_answer(
    triton_server: TritonServer, model_repository: Path
) -> None:
    kind = f"t{uuid.uuid4().hex[:10]}"
    write_identity_like_model(model_repository, kind, "v1")
    async with both_ways(triton_server) as (inference, client):
        await client.load(f"{kind}-v1", timeout_s=60)

        async def one(value: int) -> None:
            array = np.full((1 + value % 3, FEATURES), value, dtype=np.float32)
            answer = await inference.infer(f"{kind}-v1", {"x": array}, ["y"], timeout_s=20)
            np.testing.assert_allclose(answer["y"], array + marker_of(kind, "v1"), rtol=1e-6)

        await asyncio.gather(*(one(value) for value in range(200)))
        await client.unload(f"{kind}-v1")


async def test_errors_are_those_of_grpc(triton_server: TritonServer, model_repository: Path) -> None:
    kind = f"t{uuid.uuid4().hex[:10]}"
    model = write_lookup_model(model_repository, kind, "v1")
    async with both_ways(triton_server) as (inference, client):
        await client.load(model, timeout_s=60)
        cases = {
            "unknown model": ("nobody-v1", {"x": np.zeros((1, FEATURES), np.float32)}, ["y"]),
            "odd model name": ("a b/../ü?x=1", {"x": np.zeros((1, FEATURES), np.float32)}, ["y"]),
            "wrong datatype": (model, {"x": np.zeros((1, 1), np.float64)}, ["y"]),
            "wrong shape": (model, {"x": np.zeros((1, 2, 3), np.int64)}, ["y"]),
            "unknown input": (model, {"z": np.zeros((1, 1), np.int64)}, ["y"]),
            "unknown output": (model, {"x": np.zeros((1, 1), np.int64)}, ["nothing"]),
            "model fails": (model, {"x": np.array([[99]])}, ["y"]),
        }
        kinds: dict[str, type[ServingError]] = {
            "unknown model": ModelNotReady,
            "odd model name": ModelNotReady,
            "model fails": InferenceFailed,
        }
        for name, (asked, inputs, outputs) in cases.items():
            by_http = await outcome(inference.infer(asked, inputs, outputs, timeout_s=10))
            by_grpc = await outcome(client.infer(asked, inputs, outputs, timeout_s=10))
            assert isinstance(by_http, tuple), name
            assert isinstance(by_grpc, tuple), name
            assert by_http[0] is by_grpc[0] is kinds.get(name, InvalidInput), (name, by_http, by_grpc)
        await client.unload(model)


async def test_late_answer_is_a_deadline_and_spoils_no_later_call(
    triton_server: TritonServer, model_repository: Path
) -> None:
    kind = f"t{uuid.uuid4().hex[:10]}"
    write_identity_like_model(model_repository, kind, "v1", work=20_000)
    first, second = (np.full((1, FEATURES), value, dtype=np.float32) for value in (1.0, 2.0))
    async with both_ways(triton_server) as (inference, client):
        await client.load(f"{kind}-v1", timeout_s=60)
        with pytest.raises(DeadlineExceeded):
            await inference.infer(f"{kind}-v1", {"x": first}, ["y"], timeout_s=0.02)
        cancelled = asyncio.create_task(inference.infer(f"{kind}-v1", {"x": first}, ["y"], timeout_s=10))
        await asyncio.sleep(0.02)
        cancelled.cancel()
        answer = await inference.infer(f"{kind}-v1", {"x": second}, ["y"], timeout_s=30)
        np.testing.assert_allclose(answer["y"], second + marker_of(kind, "v1"), rtol=1e-6)
        await client.unload(f"{kind}-v1")


@asynccontextmanager
async def talking(talk: Talk) -> AsyncIterator[HttpInference]:
    """A client of a server that says what Triton never does, or only as it dies."""
    conversations: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.add(asyncio.ensure_future(talk(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        async with connect_http(f"http://127.0.0.1:{port}") as inference:
            yield inference
        async with asyncio.timeout(10):
            await asyncio.gather(*conversations)


async def ask(inference: HttpInference, timeout_s: float = 5.0) -> dict[str, np.ndarray]:
    return await inference.infer("m", {"x": np.zeros((1, 2), np.float32)}, ["y"], timeout_s=timeout_s)


def response(head: bytes, data: bytes, *, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n%b\r\n%b%b" % (
        len(head),
        len(head) + len(data),
        more,
        head,
        data,
    )


async def read_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
    await reader.readexactly(length)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", TritonUnavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf", TritonUnavailable),
        (b"\x00\x01 no HTTP at all\r\n\r\n", TritonUnavailable),
        (response(GOOD_HEAD, b"12345"), InferenceFailed),
        (response(GOOD_HEAD.replace(b"FP32", b"WHAT"), b"12345678"), InferenceFailed),
        (response(b"no json", b"12345678"), InferenceFailed),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", InferenceFailed),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 5\r\n\r\nhello", InferenceFailed),
    ],
)
async def test_broken_answer_is_an_error_of_ours(answer: bytes, expected: type[ServingError]) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        writer.close()

    async with talking(talk) as inference:
        with pytest.raises(expected):
            await ask(inference)


async def test_idle_connection_that_was_closed_is_replaced() -> None:
    """Also where the event loop hasn't had a turn to see its end."""
    writers: list[asyncio.StreamWriter] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(response(GOOD_HEAD, np.array([1, 2], np.float32).tobytes()))
        writers.append(writer)

    async with talking(talk) as inference:
        for _ in range(3):
            np.testing.assert_array_equal((await ask(inference))["y"], [[1, 2]])
            writers[-1].get_extra_info("socket").shutdown(socket.SHUT_WR)
    assert len(writers) == 3
    for writer in writers:
        writer.close()


async def test_request_that_its_server_died_of_is_not_sent_to_the_next() -> None:
    read = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal read
        await read_request(reader)
        read += 1
        writer.write(response(GOOD_HEAD, bytes(8)))
        await read_request(reader)
        read += 1
        writer.close()

    async with talking(talk) as inference:
        await ask(inference)
        with pytest.raises(TritonUnavailable):
            await ask(inference)
    assert read == 2


@pytest.mark.parametrize("status", [b"100 Continue", b"102 Processing"])
async def test_interim_answer_is_not_the_answer(status: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await read_request(reader)
            writer.write(b"HTTP/1.1 " + status + b"\r\nX-Interim: 1\r\n\r\n")
            await asyncio.sleep(0.01)
            writer.write(response(GOOD_HEAD, np.array([1, 2], np.float32).tobytes()))
        writer.close()

    async with talking(talk) as inference:
        for _ in range(2):
            np.testing.assert_array_equal((await ask(inference))["y"], [[1, 2]])


async def test_second_answer_ends_the_connection_and_leaves_the_first_alone() -> None:
    connections = 0
    wrong = b"HTTP/1.1 500 Oh\r\nInference-Header-Content-Length: 1\r\nContent-Length: 5\r\n\r\nwrong"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_request(reader)
        writer.write(response(GOOD_HEAD, np.array([1, 2], np.float32).tobytes()) + wrong)
        await reader.read(1)
        writer.close()

    async with talking(talk) as inference:
        for _ in range(3):
            np.testing.assert_array_equal((await ask(inference))["y"], [[1, 2]])
    assert connections == 3


async def test_connection_that_announces_its_end_is_not_reused() -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_request(reader)
        writer.write(response(GOOD_HEAD, bytes(8), more=b"Connection: close\r\n"))
        writer.close()

    async with talking(talk) as inference:
        for _ in range(3):
            await ask(inference)
    assert connections == 3


async def test_nobody_there_is_unavailable() -> None:
    async with connect_http("http://127.0.0.1:9") as inference:
        with pytest.raises(TritonUnavailable):
            await ask(inference)
