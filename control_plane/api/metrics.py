"""Metrics as JSON for people and scripts, and as Prometheus text for scrapers."""

import asyncio
import os
from datetime import UTC, datetime

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from control_plane.api.resources import Resources, resources_of
from control_plane.telemetry.exposition import Exposition
from control_plane.telemetry.metrics import TRITON_UP
from control_plane.telemetry.processes import measure_gpus, measure_memory

router = APIRouter(tags=["metrics"])
root_router = APIRouter(tags=["metrics"])

_PROMETHEUS = {200: {"content": {"text/plain": {}}, "description": "Prometheus text, or JSON by `Accept`"}}


@root_router.get("/metrics", responses=_PROMETHEUS, response_class=Response)
async def prometheus(request: Request) -> Response:
    """Prometheus' text format, summed over the workers."""
    resources = resources_of(request)
    await _refresh(resources)
    return Response(_exposition(resources).text(), media_type=Exposition.content_type)


@router.get("/metrics", responses=_PROMETHEUS, response_class=Response)
async def metrics(request: Request) -> Response:
    """`{metrics: {name: [{labels, value}]}, timestamp}`; Prometheus' text where `Accept` asks for text/plain."""
    resources = resources_of(request)
    await _refresh(resources)
    if "text/plain" in request.headers.get("accept", "") or "openmetrics" in request.headers.get(
        "accept", ""
    ):
        return Response(_exposition(resources).text(), media_type=Exposition.content_type)
    return JSONResponse(
        {"metrics": _exposition(resources).json(), "timestamp": datetime.now(UTC).isoformat()}
    )


def _exposition(resources: Resources) -> Exposition:
    directory = resources.settings.api.metrics_dir
    return Exposition(str(directory) if directory is not None else None)


async def _refresh(resources: Resources) -> None:
    TRITON_UP.set(await resources.triton.is_live())
    state_file = resources.settings.embedded.data_dir / "state.json"
    await asyncio.to_thread(_measure, state_file)


def _measure(state_file: os.PathLike[str]) -> None:
    processes = {"api": os.getpid()}
    try:
        with open(state_file, "rb") as file:  # noqa: PTH123
            state = msgspec.json.decode(file.read(), type=dict[str, object])
    except (OSError, msgspec.MsgspecError):
        state = {}
    for name, entry in state.items():
        pid = entry.get("pid") if isinstance(entry, dict) else None
        if isinstance(pid, int):
            processes[name] = pid
    measure_memory(processes)
    measure_gpus()
