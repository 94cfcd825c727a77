"""How a version is served: read and changed while it serves. Decides nothing: `models/operations.py` does."""

from datetime import UTC, datetime
from http import HTTPStatus

from fastapi import APIRouter
from starlette.requests import Request

from control_plane.api.models import problems
from control_plane.api.resources import resources_of
from control_plane.api.schemas.serving import ServingAnswer, ServingBody, serving_answer
from control_plane.models.serving import ServingState

router = APIRouter(prefix="/models", tags=["models"])

_MISSING = HTTPStatus.NOT_FOUND
_INVALID = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
_DOWN = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)


@router.get(
    "/{model_type}/{version}/serving",
    response_model=ServingAnswer,
    responses=problems(_MISSING, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def get_serving(request: Request, model_type: str, version: str) -> ServingAnswer:
    """How a version is served. `version` may be `latest` or an alias."""
    return _answer(await resources_of(request).operations.serving(model_type, version))


@router.put(
    "/{model_type}/{version}/serving",
    response_model=ServingAnswer,
    responses=problems(*_INVALID, _MISSING, *_DOWN),
)
async def put_serving(request: Request, model_type: str, version: str, body: ServingBody) -> ServingAnswer:
    """Replaces how a version is served, for all workers and without a reload; only `tuning` stays where it is left out.

    `version` is the version's own name.
    """
    state = await resources_of(request).operations.change_serving(
        model_type, version, body.options(), tuning=body.given_tuning()
    )
    return _answer(state)


def _answer(state: ServingState) -> ServingAnswer:
    return ServingAnswer(
        model_type=state.model.model_type,
        version=state.model.version,
        serving=serving_answer(state.serving),
        warnings=list(state.warnings),
        timestamp=datetime.now(UTC),
    )
