"""Metrics as JSON for people and scripts, and as Prometheus text for scrapers."""

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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

_TEXT: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
_PROMETHEUS: dict[int | str, dict[str, Any]] = {200: {"content": _TEXT, "description": "Prometheus' text"}}
_EITHER: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"application/json": {"schema": {"type": "object"}}} | _TEXT,
        "description": "JSON, or Prometheus' text by `Accept`",
    }
}


@root_router.get("/metrics", responses=_PROMETHEUS, response_class=Response)
async def prometheus(request: Request) -> Response:
    """Prometheus' text format, summed over the workers."""
    resources = resources_of(request)
    await _refresh(resources)
    return Response(_exposition(resources).text(), media_type=Exposition.content_type)


@router.get("/metrics", responses=_EITHER, response_class=Response)
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


def _measure(state_file: Path) -> None:
    measure_memory(_pids(state_file))
    measure_gpus()


class _Process(msgspec.Struct):
    pid: int | None = None


class _State(msgspec.Struct):
    processes: dict[str, _Process]


def _pids(state_file: Path) -> dict[str, int]:
    """From the supervisor's state file; this process alone where there is none."""
    try:
        state = msgspec.json.decode(state_file.read_bytes(), type=_State)
    except (OSError, msgspec.MsgspecError):
        return {"api": os.getpid()}
    return {name: process.pid for name, process in state.processes.items() if process.pid is not None}
