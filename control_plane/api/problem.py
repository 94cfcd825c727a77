"""RFC 9457 problem documents: the one shape of every error answer.

Source: RFC 9457, sections 3.1 and 3.2. `request_id`, `errors`, `expected`, `got` and `remedy` are extension members.
"""

import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from control_plane.errors import FieldError, MalformedRequest, ServingError, problem_of
from control_plane.inference.explanations import syntax_fault

log = structlog.get_logger()

PROBLEM_JSON = "application/problem+json"
_TYPE_BASE = "/docs/errors#"
_LONGEST_TEXT = 2_000
FRAMEWORK_SLUGS = {
    HTTPStatus.BAD_REQUEST: "malformed-request",
    HTTPStatus.UNAUTHORIZED: "unauthorized",
    HTTPStatus.NOT_FOUND: "not-found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method-not-allowed",
}
"""Of the answers that the web framework gives itself."""
OTHER_SLUG = "refused"
"""Of those that it might yet give."""


def problem_document(error: ServingError, *, request_id: str, instance: str) -> dict[str, Any]:
    """The problem document of one of our errors; the facts of its class decide type, title and status."""
    row = problem_of(error)
    document: dict[str, Any] = {
        "type": _TYPE_BASE + row.slug,
        "title": row.title,
        "status": row.status,
        "detail": _detail(error),
        "instance": instance,
        "request_id": request_id,
    }
    for name in ("expected", "got", "remedy"):
        if (text := getattr(error, name)) is not None:
            document[name] = text[:_LONGEST_TEXT]
    if error.errors:
        document["errors"] = [{"path": field.path, "message": field.message} for field in error.errors]
    return document | {key: value for key, value in error.facts.items() if key not in document}


def problem_response(error: ServingError, *, request_id: str, instance: str) -> Response:
    """The answer for one of our errors, with Retry-After where trying again helps."""
    headers = {"X-Request-ID": request_id}
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    return Response(
        orjson.dumps(problem_document(error, request_id=request_id, instance=instance), default=str),
        status_code=problem_of(error).status,
        media_type=PROBLEM_JSON,
        headers=headers,
    )


def install_handlers(app: FastAPI) -> None:
    """Registers the four handlers: our root, request validation, the framework's own errors, and everything else."""
    app.add_exception_handler(ServingError, _on_serving_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


def unexpected_response(request_id: str, instance: str) -> Response:
    """The fixed answer to an error nobody expected; what happened is in the log under the request's id."""
    return _plain(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        slug="internal",
        title="Internal error",
        detail="The server failed on this request. The log has the reason under this request_id.",
        request_id=request_id,
        instance=instance,
    )


def _detail(error: ServingError) -> str:
    text = error.detail
    if error.expected is not None and error.got is not None:
        text = f"{text} Expected {error.expected}; got {error.got}."
    if error.remedy is not None:
        text = f"{text} {error.remedy}"
    return text[:_LONGEST_TEXT]


async def _on_serving_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServingError)  # noqa: S101  registered for this class only
    return serving_error_response(request, error)


def serving_error_response(request: Request, error: ServingError) -> Response:
    """The answer for one of our errors that a handler raised."""
    # Only for debugging: who raises an error that operators must see has logged it, once.
    log.debug("request_refused", path=request.url.path, error=type(error).__name__, detail=error.detail)
    return problem_response(error, request_id=request.state.request_id, instance=request.url.path)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  registered for this class only
    entries = error.errors()
    if any(entry["type"] == "json_invalid" for entry in entries):
        return serving_error_response(request, _malformed(str(error.body), entries[0]))
    is_missing = any(entry["type"] == "missing" and entry["loc"] == ("body",) for entry in entries)
    if is_missing and _is_empty(request) and (fault := syntax_fault(b"")) is not None:
        return serving_error_response(request, fault)
    fields = [FieldError(path=_path(entry["loc"]), message=_message(entry)) for entry in entries]
    return _plain(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        slug="invalid-input",
        title="Invalid input",
        detail="; ".join(f"{field.path}: {field.message}" for field in fields[:5]),
        request_id=request.state.request_id,
        instance=request.url.path,
        errors=fields,
    )


def _is_empty(request: Request) -> bool:
    """Whether the request came without a body: `null` is one, though FastAPI takes both for none."""
    return request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers


def _malformed(body: str, entry: dict[str, Any]) -> ServingError:
    """What `/predict` says of the same text. Where only Python's own parser finds a fault, what that says."""
    fault = syntax_fault(body.encode("utf-8", "surrogatepass"))
    reason = entry.get("ctx", {}).get("error", "syntax error")
    return fault or MalformedRequest(
        f"The body is not valid JSON: {reason}.",
        expected="JSON in UTF-8 (RFC 8259)",
        got=f"a fault at character {entry['loc'][-1]}",
        remedy="Check the text there.",
    )


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  registered for this class only
    status = HTTPStatus(error.status_code)
    detail = {
        HTTPStatus.NOT_FOUND: f"There is nothing at {request.url.path}. /docs lists the endpoints.",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{request.method} is not allowed at {request.url.path}.",
    }.get(status, str(error.detail))
    slug = FRAMEWORK_SLUGS.get(status)
    response = _plain(
        status,
        slug=slug or OTHER_SLUG,
        title=slug.replace("-", " ").capitalize() if slug else status.phrase,
        detail=detail,
        request_id=request.state.request_id,
        instance=request.url.path,
    )
    response.headers.update(error.headers or {})
    return response


def _plain(
    status: HTTPStatus,
    *,
    slug: str,
    title: str,
    detail: str,
    request_id: str,
    instance: str,
    errors: Sequence[FieldError] = (),
) -> Response:
    document: dict[str, Any] = {
        "type": _TYPE_BASE + slug,
        "title": title,
        "status": int(status),
        "detail": detail[:_LONGEST_TEXT],
        "instance": instance,
        "request_id": request_id,
    }
    if errors:
        document["errors"] = [{"path": field.path, "message": field.message} for field in errors]
    return Response(
        orjson.dumps(document),
        status_code=status,
        media_type=PROBLEM_JSON,
        headers={"X-Request-ID": request_id},
    )


def _path(location: Sequence[int | str]) -> str:
    parts = list(
        location[1:] if location and location[0] in ("body", "query", "path", "header") else location
    )
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    return text or "body"


def _message(entry: dict[str, Any]) -> str:
    if entry["type"] == "extra_forbidden":
        return "unknown field; remove it, or see /docs for the fields that are allowed"
    got = entry.get("input")
    shown = "" if isinstance(got, (dict, list)) or entry["type"] == "missing" else f", got {str(got)[:80]!r}"
    return f"{entry['msg']}{shown}"
