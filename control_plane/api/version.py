"""Which releases answer here."""

import platform

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request

from control_plane import __version__
from control_plane.api.resources import resources_of
from control_plane.errors import ServingError

router = APIRouter(tags=["version"])


class VersionAnswer(BaseModel):
    """Releases of the parts."""

    version: str
    api: str
    python: str
    triton: str | None


@router.get("/version", response_model=VersionAnswer)
async def version(request: Request) -> VersionAnswer:
    """The control plane's release, the API's, Python's, and Triton's (null while it doesn't answer)."""
    try:
        triton = await resources_of(request).triton.server_version()
    except ServingError:
        triton = None
    return VersionAnswer(version=__version__, api="v1", python=platform.python_version(), triton=triton)
