"""/docs and /redoc without the internet, and /docs/errors, where every problem's `type` leads."""

import html
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from control_plane.errors import PROBLEMS

_STATIC = "/static/docs"
_READ = ["GET", "HEAD"]


def mount_docs(app: FastAPI) -> None:
    """Mounts the two pages and the files that they need."""
    router = APIRouter(include_in_schema=False)

    @router.api_route("/docs", methods=_READ)
    async def swagger_ui() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url=f"{_STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{_STATIC}/swagger-ui.css",
            swagger_favicon_url=f"{_STATIC}/favicon.png",
        )

    @router.api_route("/redoc", methods=_READ)
    async def redoc() -> HTMLResponse:
        return get_redoc_html(
            openapi_url="/openapi.json",
            title=app.title,
            redoc_js_url=f"{_STATIC}/redoc.standalone.js",
            redoc_favicon_url=f"{_STATIC}/favicon.png",
            with_google_fonts=False,
        )

    @router.api_route("/docs/errors", methods=_READ)
    async def errors() -> HTMLResponse:
        return HTMLResponse(errors_page())

    @router.api_route("/", methods=_READ)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    app.mount(_STATIC, StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"))
    app.include_router(router)


def errors_page() -> str:
    """The problem types as a page: an anchor for each, its status, title and meaning."""
    rows = "".join(
        f'<h2 id="{problem.slug}">{problem.slug}</h2><p>{problem.status}, {html.escape(problem.title)}. '
        f"{html.escape((cls.__doc__ or '').partition('Args:')[0].strip())}</p>"
        for cls, problem in PROBLEMS.items()
    )
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Errors</title><h1>Errors</h1>{rows}</html>'
