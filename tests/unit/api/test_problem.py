"""Problem documents of what never gets to a handler, from the application itself."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from control_plane.api.problem import FRAMEWORK_SLUGS, OTHER_SLUG
from control_plane.api.schemas.serving import ServingBody
from control_plane.api.v2_errors import response_outside_routes
from control_plane.app import create_app
from control_plane.errors import DeadlineExceeded, InvalidInput
from control_plane.inference.admission import too_late
from control_plane.settings import Settings

PAGE = Path(__file__).parent.parent.parent.parent / "docs/errors.md"
SERVING = "/api/v1/models/m/v1/serving"
WARMUP = "/api/v1/models/warmup"


def ask(method: str, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
    async def sent() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(Settings()))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.request(method, path, content=body, headers=named)

    return asyncio.run(sent())


@pytest.mark.parametrize("slug", sorted({*FRAMEWORK_SLUGS.values(), OTHER_SLUG}))
def test_slug_of_the_frameworks_own_errors_has_its_entry(slug: str) -> None:
    assert f"## {slug}\n" in PAGE.read_text()


def test_method_that_is_not_allowed_is_said_by_its_slug() -> None:
    response = ask("DELETE", "/version")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")
    assert response.json()["type"] == "/docs/errors#method-not-allowed"
    assert response.json()["title"] == "Method not allowed"


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b'{"fallback": "v1",}', 400, "byte 18 (line 1, column 19)"), (b'{"fallback"', 400, "byte 11"),
        (b"", 400, "The body is empty"), (b"null", 422, "body"), (b'{"fallback": "\xff"}', 400, "body"),
        (b'{"colour": 1}', 422, "colour"),
    ],
)  # fmt: skip
def test_body_that_cannot_be_read_is_refused_as_by_predict(body: bytes, status: int, told: str) -> None:
    response = ask("PUT", SERVING, body, content_type="application/json")
    assert response.status_code == status
    assert told in response.json()["detail"]
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("body", "path"),
    [({}, "models"), ([{}], "models[0].model_type"), ({"models": [5]}, "models[0]"), (5, "body")],
)
def test_warm_up_names_fields_and_no_classes(body: Any, path: str) -> None:
    response = ask("POST", WARMUP, json.dumps(body).encode(), content_type="application/json")
    assert response.status_code == 422
    assert [one["path"] for one in response.json()["errors"]] == [path]
    assert "Body" not in response.text


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity"])
@pytest.mark.parametrize("path", ["/api/v1/predict", "/api/v1/feedback", SERVING])
def test_compressed_body_is_415_and_named(path: str, encoding: str) -> None:
    method = "PUT" if path == SERVING else "POST"
    response = ask(method, path, b"x", content_type="application/json", content_encoding=encoding)
    assert response.status_code == 415
    assert f"Content-Encoding {encoding}" in response.json()["detail"]
    assert response.json()["type"].endswith("#unsupported-media-type")


def test_plain_body_may_say_so() -> None:
    assert ask("PUT", SERVING, b"", content_encoding="identity").status_code == 400


def test_tuning_that_was_never_measured_cannot_be_set() -> None:
    with pytest.raises(InvalidInput) as raised:
        ServingBody(tuning={"rows_per_call": 3}).given_tuning()
    (error,) = raised.value.errors
    assert (error.path, "can't be set" in error.message) == ("tuning", True)


@pytest.mark.parametrize(
    "error",
    [
        DeadlineExceeded("Late.", remedy="Raise timeout_ms, or try again."),
        too_late("m", expected_s=1, left_s=0.5),
    ],
)
def test_remedy_names_what_the_protocol_calls_it(error: Any) -> None:
    before = error.remedy
    for _ in range(2):
        answer = response_outside_routes(error, request_id="r", path="/v2/models/m/infer")
        text = json.loads(bytes(answer.body))["error"]
        assert "parameters.timeout (in microseconds)" in text
        assert "timeout_ms" not in text
        assert ("parameters.on_overload: degrade" in text) is ("on_overload" in before)
        assert "parameters.parameters" not in text
    assert (
        "timeout_ms"
        in json.loads(bytes(response_outside_routes(error, request_id="r", path="/x").body))["detail"]
    )
