"""The documentation's pages."""

import asyncio

import httpx
import pytest

from control_plane.app import create_app
from control_plane.settings import Settings


@pytest.mark.parametrize(
    ("page", "status"), [("/docs", 200), ("/redoc", 200), ("/docs/errors", 200), ("/", 307)]
)
def test_page_answers_get_and_head_alike(page: str, status: int) -> None:
    async def ask(method: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(Settings()))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, page)

    head, got = asyncio.run(ask("HEAD")), asyncio.run(ask("GET"))
    assert head.status_code == got.status_code == status
    assert head.headers["content-length"] == got.headers["content-length"]
