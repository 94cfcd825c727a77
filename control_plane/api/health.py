"""Health for people and load balancers, and probes for orchestrators."""

import asyncio
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from control_plane import __version__
from control_plane.api.resources import Resources, resources_of
from control_plane.telemetry.metrics import TRITON_UP

router = APIRouter(tags=["health"])


class Health(StrEnum):
    """Of the whole: `degraded` still predicts, `unhealthy` doesn't."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class HealthAnswer(BaseModel):
    """State of the service and of its parts."""

    status: Health
    components: dict[str, dict[str, Any]] = Field(
        description="triton, redis, model_cache, batch_processor; each with a `status` and its figures"
    )
    cache: dict[str, Any]
    version: str
    timestamp: datetime


class ProbeAnswer(BaseModel):
    """A probe's answer."""

    status: str


def judge(*, triton_up: bool, redis_up: bool) -> Health:
    """Without Triton nothing is predicted; without Redis predictions go on with the last known state."""
    if not triton_up:
        return Health.UNHEALTHY
    return Health.HEALTHY if redis_up else Health.DEGRADED


@router.get(
    "/health",
    response_model=HealthAnswer,
    responses={503: {"model": HealthAnswer, "description": "unhealthy: Triton doesn't answer"}},
)
async def health(request: Request) -> Response:
    """State of Triton, Redis, the model cache and the dispatchers. 503 when unhealthy."""
    resources = resources_of(request)
    triton_up, redis_up = await asyncio.gather(resources.triton.is_live(), resources.redis.ping())
    TRITON_UP.set(triton_up)
    status = judge(triton_up=triton_up, redis_up=redis_up)
    answer = HealthAnswer(
        status=status,
        components=_components(resources, triton_up=triton_up, redis_up=redis_up),
        cache=resources.cache.summary(),
        version=__version__,
        timestamp=datetime.now(UTC),
    )
    code = HTTPStatus.SERVICE_UNAVAILABLE if status is Health.UNHEALTHY else HTTPStatus.OK
    return JSONResponse(answer.model_dump(mode="json"), status_code=code)


@router.get("/health/live", response_model=ProbeAnswer)
async def live() -> ProbeAnswer:
    """The process runs its event loop."""
    return ProbeAnswer(status="alive")


@router.get(
    "/health/ready",
    response_model=ProbeAnswer,
    responses={
        503: {"model": ProbeAnswer, "description": "Triton doesn't answer, or this worker is stopping"}
    },
)
async def ready(request: Request) -> Response:
    """Whether predictions can be answered."""
    resources = resources_of(request)
    is_ready = not resources.draining.started and await resources.triton.is_live()
    return JSONResponse(
        {"status": "ready" if is_ready else "not_ready"},
        status_code=HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE,
    )


def _components(resources: Resources, *, triton_up: bool, redis_up: bool) -> dict[str, dict[str, Any]]:
    def state(*, up: bool) -> str:
        return "healthy" if up else "unhealthy"

    return {
        "triton": {"status": state(up=triton_up), "url": resources.triton.url},
        "redis": {"status": state(up=redis_up)},
        "model_cache": {"status": state(up=triton_up), "loaded": resources.cache.loaded_keys()},
        "batch_processor": {"status": state(up=triton_up), **resources.predictor.queue_figures()},
    }
