"""POST /feedback: what came of predictions. Decides nothing: `feedback/desk.py` does."""

import re
from http import HTTPStatus

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from control_plane.api.body import read_json_body
from control_plane.api.models import problems
from control_plane.api.resources import resources_of
from control_plane.api.schemas.feedback import (
    MOST_FEEDBACK,
    FeedbackBody,
    FeedbackEntry,
    FeedbackListAnswer,
    decode_feedback,
)
from control_plane.errors import (
    FeedbackConflict,
    FeedbackExpired,
    FieldError,
    InvalidInput,
    ServingError,
    UnknownRequest,
)
from control_plane.inference.feedback import FeedbackResult, FeedbackStatus

router = APIRouter(tags=["feedback"])

_REASON = re.compile(r"([^:]+): expected (.+), got (.+)", re.DOTALL)

_ONE = FeedbackBody.model_json_schema()
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "anyOf": [_ONE, {"type": "array", "items": _ONE, "minItems": 1, "maxItems": MOST_FEEDBACK}]
            }
        }
    },
}


@router.post(
    "/feedback",
    status_code=HTTPStatus.ACCEPTED,
    response_model=FeedbackEntry | FeedbackListAnswer,
    responses=problems(
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.CONFLICT,
        HTTPStatus.GONE,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
    openapi_extra={"requestBody": _BODY},
)
async def give_feedback(request: Request) -> Response:
    """Takes the realised reward of a prediction, or a list of up to 1,000; each counts once, however often it comes.

    A list that can be read is answered with 202, and a status for each entry; a single one with 409 (other feedback was
    given before), 404 (unknown request), 410 (too old) or 422 where it isn't taken. Where an entry of a list can't be
    read, the whole is refused (422), and nothing of it is counted.
    """
    feedback, is_list = decode_feedback(await read_json_body(request))
    results = await resources_of(request).feedback.take(feedback)
    if is_list:
        answer = FeedbackListAnswer(results=[_entry(result) for result in results])
        return JSONResponse(answer.model_dump(exclude_none=True), status_code=HTTPStatus.ACCEPTED)
    if (error := _refusal(results[0])) is not None:
        raise error
    return JSONResponse(_entry(results[0]).model_dump(exclude_none=True), status_code=HTTPStatus.ACCEPTED)


def _entry(result: FeedbackResult) -> FeedbackEntry:
    return FeedbackEntry(request_id=result.request_id, status=result.status.value, reason=result.reason)


def _refusal(result: FeedbackResult) -> ServingError | None:
    match result.status:
        case FeedbackStatus.CONFLICT:
            return FeedbackConflict(
                f"Other feedback was given to {result.request_id} before.",
                expected="the same values as then, or none",
                remedy="Feedback can't be taken back; reset the ensemble where much of it was wrong.",
            )
        case FeedbackStatus.UNKNOWN:
            return UnknownRequest(
                f"There is no request {result.request_id} that takes feedback: {result.reason}.",
                remedy="Send the request_id of the prediction's answer.",
            )
        case FeedbackStatus.EXPIRED:
            return FeedbackExpired(
                f"{result.request_id} is too old: {result.reason}.",
                remedy="Raise feedback.retention_s where rewards come later.",
            )
        case FeedbackStatus.INVALID:
            return _misfit(result.reason or "")
    return None


def _misfit(reason: str) -> InvalidInput:
    detail = "The feedback doesn't fit its request"
    if (parts := _REASON.fullmatch(reason)) is None:
        return InvalidInput(f"{detail}. {reason}.")
    path, expected, got = parts.groups()
    return InvalidInput(
        f"{detail}: {path} is wrong.",
        expected=expected,
        got=got,
        errors=[FieldError(path=path, message=f"expected {expected}, got {got}")],
    )
