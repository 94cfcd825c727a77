"""One write an answer, and refusals of what can't be begun in time."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from uvicorn.server import ServerState

from control_plane.api import http_protocol
from control_plane.api.draining import Draining
from control_plane.api.http_protocol import ServingProtocol, timeout_s_of, whole_prediction
from control_plane.api.intake import Intake
from control_plane.settings import Settings
from tests.unit.inference.virtual_time import run


class Wire(asyncio.Transport):
    """A transport that notes what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.writes: list[bytes] = []
        self.closed = False
        self.reading = True

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


async def converse(
    app: Any, *parts: bytes, intake: Intake | None = None, is_draining: bool = False, wire: Wire | None = None
) -> Wire:
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", http=ServingProtocol)
    config.load()
    wire, state = wire or Wire(), ServerState()
    resources = SimpleNamespace(intake=intake, settings=Settings(), draining=Draining(started=is_draining))
    app_state = {} if intake is None else {"resources": resources}
    protocol = ServingProtocol(config=config, server_state=state, app_state=app_state)
    protocol.connection_made(wire)
    for part in parts:
        protocol.data_received(part)
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


async def test_head_of_a_connection_that_was_lost_is_not_written() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        wire.closed = True
        await asyncio.sleep(0.001)

    wire = Wire()
    await converse(app, GET, wire=wire)
    assert wire.writes == []


async def test_body_that_looks_like_a_head_is_not_lost() -> None:
    wire = await converse(answering(b"HTTP/1.1 ", b"HTTP/1.1 200 OK", b"end"), GET)
    assert b"".join(wire.writes).endswith(b"\r\n\r\nHTTP/1.1 HTTP/1.1 200 OKend")


def post(body: bytes, *headers: bytes, path: bytes = b"/api/v1/predict") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def crowded(waiting: int = 100) -> Intake:
    """A hundred wait: at the first guess of 0.3 ms a turn, a deadline of 50 ms can't be kept."""
    intake = Intake(max_waiting=1_000)
    for _ in range(waiting):
        intake.arrived()
    return intake


SOON = b'{"data": [], "timeout_ms": 50}'


async def test_prediction_that_would_begin_too_late_is_refused_before_it_is_parsed() -> None:
    wire = await converse(answering(b"served"), post(SOON, b"X-Request-ID: me-1"), intake=crowded())
    (answer,) = wire.writes
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nretry-after: 1\r\n" in head + b"\r\n"
    assert b"\r\nx-request-id: me-1\r\n" in head + b"\r\n"
    assert b"\r\ncontent-length: %d" % len(body) in head
    problem = json.loads(body)
    assert problem["status"] == 503
    assert problem["request_id"] == "me-1"
    assert problem["type"].endswith("#queue-full")
    assert not wire.closed
    assert not wire.reading


async def test_refused_without_an_id_gets_one() -> None:
    wire = await converse(answering(b"served"), post(SOON), intake=crowded())
    head, _, body = wire.writes[0].partition(b"\r\n\r\n")
    assert b"x-request-id: " + json.loads(body)["request_id"].encode() in head


@pytest.mark.parametrize(
    "parts",
    [
        (post(b'{"timeout_ms": 5000}'),),
        (post(b"{}"),),
        (post(b'{"timeout_ms": 5e4}'),),
        (post(SOON, path=b"/api/v1/models/load"),),
        (post(SOON, path=b"/api/v1/predictions"),),
        (post(SOON, path=b"/api/v1/predict/batches"),),
        (
            b"POST /api/v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 000000000000000%d\r\n\r\n%b"
            % (len(SOON), SOON),
        ),
        (GET,),
        (post(SOON)[:40], post(SOON)[40:]),
        (post(SOON, b"Connection: close"),),
        (post(SOON).replace(b"HTTP/1.1", b"HTTP/1.0"),),
        (post(SOON) + post(SOON),),
        (post(SOON)[:-5], post(SOON)[-5:]),
    ],
)
async def test_all_else_is_served_in_a_crowd(parts: tuple[bytes, ...]) -> None:
    wire = await converse(answering(b"served"), *parts, intake=crowded())
    assert b"".join(wire.writes).startswith(b"HTTP/1.1 200 OK")


async def test_without_a_crowd_nobody_is_refused() -> None:
    intake = crowded(7)
    wire = await converse(answering(b"served"), post(b'{"timeout_ms": 0.001}'), intake=intake)
    assert wire.writes[0].startswith(b"HTTP/1.1 200 OK")


async def test_answer_after_a_refusal_comes_on_the_same_connection() -> None:
    wire = await converse(answering(b"served"), post(SOON), post(SOON), post(b"{}"), intake=crowded())
    assert [write[9:12] for write in wire.writes] == [b"503", b"503", b"200"]


@pytest.mark.parametrize("value", [b"keep-alive", b"Keep-Alive", b" keep-alive "])
async def test_header_that_most_clients_send_changes_nothing(value: bytes) -> None:
    request = post(SOON, b"Connection:" + value)
    wire = await converse(answering(b"served"), request, intake=crowded())
    assert wire.writes[0].startswith(b"HTTP/1.1 503")


async def test_last_refusal_of_a_stopping_worker_ends_the_connection() -> None:
    wire = await converse(answering(b"served"), post(SOON), intake=crowded(), is_draining=True)
    (answer,) = wire.writes
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"\r\nconnection: close\r\n" in answer
    assert wire.closed


@pytest.mark.parametrize("target", ["/api/v1/predict?model_type=m", "/api/v1/predict/batch"])
def test_refusal_names_and_counts_its_own_path(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        http_protocol, "_refusals", http_protocol._Refusals()
    )  # those of other loops never end
    path = target.partition("?")[0]
    labels = {"method": "POST", "route": path, "status": "503"}

    async def scenario() -> None:
        before = REGISTRY.get_sample_value("http_requests_total", labels) or 0
        request = post(SOON, path=target.encode())
        wire = await converse(answering(b"served"), request, request, intake=crowded())
        for answer in wire.writes:
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["instance"] == path
        await asyncio.sleep(1)  # they are counted several at once
        assert REGISTRY.get_sample_value("http_requests_total", labels) == before + 2

    run(scenario())


lines = st.sampled_from(
    [b"Connection: keep-alive", b"Connection: close", b"Expect: 100-continue", b"content-length:", b"Host: x"]
)
lengths = st.one_of(st.integers(0, 300).map(str), st.integers(4_290, 5_000).map("1".__mul__), st.just("0x1"))
heads = st.tuples(st.binary(max_size=20), st.lists(lines, max_size=3), lengths).map(
    lambda parts: b"\r\n".join(
        [parts[0] + b" HTTP/1.1", *parts[1], b"Content-Length: " + parts[2].encode(), b"", b""]
    )
)


@given(st.one_of(st.binary(max_size=200), st.tuples(heads, st.binary(max_size=300)).map(b"".join)))
def test_any_bytes_are_looked_at_without_harm(data: bytes) -> None:
    whole_prediction(b"POST /api/v1/predict" + data)
    assert timeout_s_of(data, 7.0) == 7.0 or b"timeout_ms" in data


@given(
    st.floats(0.001, 600_000),
    st.sampled_from(["{:.3f}", "{!r}", "{:g}", "{:e}", "{:E}", "{:.0f}", "{:+.1f}"]),
)
def test_timeout_is_read_right_or_not_at_all(timeout_ms: float, form: str) -> None:
    text = form.format(timeout_ms)
    wanted = float(text) / 1e3
    for data in (
        b'{"a": 1, "timeout_ms" : %b}' % text.encode(),
        b'{"timeout_ms":%b,"a": 1}' % text.encode(),
        b"POST /api/v1/predict?timeout_ms=%b&x=1 HTTP/1.1" % text.encode(),
        b"POST /api/v1/predict?timeout_ms=%b HTTP/1.1" % text.encode(),
    ):
        expected = 30 if set("eE+") & set(text) else wanted
        assert timeout_s_of(data, 30) == pytest.approx(expected)
