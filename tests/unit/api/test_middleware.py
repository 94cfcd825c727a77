"""The envelope: route templates, ids, the last resort, the drain; and the body's limit."""

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import Message, Scope

from control_plane.api.body_limit import BodyLimit
from control_plane.api.draining import Draining
from control_plane.api.middleware import RequestEnvelope, route_template
from control_plane.errors import PayloadTooLarge


def scope_of(path: str, headers: list[tuple[bytes, bytes]] | None = None, **more: Any) -> Scope:
    return {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"",
        "headers": headers or [], "state": {}, **more,
    }  # fmt: skip


async def answer_of(
    app: Any, scope: Scope, chunks: list[bytes] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an application's answer."""
    parts = [*(chunks or []), b""]
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


async def fine(_: Request) -> Response:
    return PlainTextResponse("fine")


async def failing(_: Request) -> Response:
    raise RuntimeError("secret reason")


async def reading(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


ROUTES = Router([Route("/fine", fine, methods=["POST"]), Route("/failing", failing, methods=["POST"]),
                 Route("/reading", reading, methods=["POST"])])  # fmt: skip


def test_route_template_puts_names_back() -> None:
    scope = scope_of(
        "/api/v1/models/abc/v1.0", endpoint=fine, path_params={"model_type": "abc", "version": "v1.0"}
    )
    assert route_template(scope) == "/api/v1/models/{model_type}/{version}"


def test_route_template_of_the_unknown_and_the_mounted_is_bounded() -> None:
    assert route_template(scope_of("/random/17")) == "unmatched"
    mounted = scope_of("/static/docs/x/y", root_path="/static/docs", endpoint=Router())
    assert route_template(mounted) == "/static/docs/*"


def test_unexpected_error_is_a_fixed_500_with_the_id() -> None:
    app = RequestEnvelope(ROUTES, draining=Draining())
    status, headers, body = asyncio.run(answer_of(app, scope_of("/failing", [(b"x-request-id", b"mine")])))
    assert status == 500
    assert headers["x-request-id"] == "mine"
    assert headers["content-type"] == "application/problem+json"
    assert b"secret" not in body


@pytest.mark.parametrize("sent", [b"", b"a b", b"x" * 129, b"\xff"])
def test_invalid_request_id_is_replaced(sent: bytes) -> None:
    app = RequestEnvelope(ROUTES, draining=Draining())
    _, headers, _ = asyncio.run(answer_of(app, scope_of("/fine", [(b"x-request-id", sent)])))
    assert len(headers["x-request-id"]) == 36


def test_draining_worker_asks_clients_to_leave() -> None:
    draining = Draining()
    app = RequestEnvelope(ROUTES, draining=draining)
    assert "connection" not in asyncio.run(answer_of(app, scope_of("/fine")))[1]
    draining.started = True
    assert asyncio.run(answer_of(app, scope_of("/fine")))[1]["connection"] == "close"


def test_body_within_the_limit_is_read() -> None:
    app = BodyLimit(ROUTES, max_bytes=10)
    assert asyncio.run(answer_of(app, scope_of("/reading"), [b"12345", b"67890"]))[2] == b"10"


def test_announced_body_beyond_the_limit_is_refused_unread() -> None:
    app = BodyLimit(ROUTES, max_bytes=10)
    scope = scope_of("/reading", [(b"content-length", b"11")], state={"request_id": "r"})
    status, headers, _ = asyncio.run(answer_of(app, scope))
    assert (status, headers["connection"]) == (413, "close")


def test_unannounced_body_beyond_the_limit_is_refused_while_read() -> None:
    app = BodyLimit(ROUTES, max_bytes=10)
    with pytest.raises(PayloadTooLarge) as caught:
        asyncio.run(answer_of(app, scope_of("/reading"), [b"12345", b"678901"]))
    assert caught.value.expected == "at most 10 bytes"


@pytest.mark.parametrize("path", ["/v2", "/v2/failing"])
def test_unexpected_error_under_the_protocol_has_its_shape(path: str) -> None:
    app = RequestEnvelope(Router([Route(path, failing, methods=["POST"])]), draining=Draining())
    status, headers, body = asyncio.run(answer_of(app, scope_of(path)))
    assert (status, headers["content-type"]) == (500, "application/json")
    (text,) = json.loads(body).values()
    assert json.loads(body).keys() == {"error"}
    assert "secret" not in text
    assert headers["x-request-id"]


@pytest.mark.parametrize(("path", "is_protocol"), [("/v2/models/m/infer", True), ("/v20", False)])
def test_announced_body_beyond_the_limit_is_refused_in_the_paths_shape(path: str, is_protocol: bool) -> None:
    app = BodyLimit(ROUTES, max_bytes=10)
    scope = scope_of(path, [(b"content-length", b"11")], state={"request_id": "r"})
    status, headers, body = asyncio.run(answer_of(app, scope))
    assert (status, headers["connection"]) == (413, "close")
    assert (json.loads(body).keys() == {"error"}) is is_protocol
    assert ("type" in json.loads(body)) is not is_protocol
