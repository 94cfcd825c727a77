"""More than fits: bounded queues, clear 503s, priorities, and no stall."""

import asyncio
import time
from pathlib import Path

import httpx

from tests.support.repository import write_identity_like_model
from tests.support.server import Server, running_server
from tests.support.traffic import Target, drive

STALL_S = 0.45


def test_thousand_at_once_on_a_queue_of_hundred_give_only_200_and_503(folder: Path) -> None:
    (folder / "model_repository").mkdir()
    write_identity_like_model(folder / "model_repository", "busy", "v1", work=200, max_batch_size=8)
    with running_server(folder, {"MODEL_SERVING__BATCH_PROCESSING__MAX_QUEUE_SIZE": "100"}) as server:

        async def scenario() -> list[httpx.Response]:
            limits = httpx.Limits(max_connections=1000)
            async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
                body = Target("busy", "v1").body()
                assert (await client.post("/api/v1/predict", json=body)).status_code == 200
                return await asyncio.gather(*(client.post("/api/v1/predict", json=body) for _ in range(1000)))

        responses = asyncio.run(scenario())
        statuses = {response.status_code for response in responses}
        assert statuses <= {200, 503}
        assert sum(response.status_code == 200 for response in responses) >= 100
        refused = [response for response in responses if response.status_code == 503]
        assert all(response.headers["retry-after"] for response in refused)
        assert all(response.json()["type"].endswith("queue-full") for response in refused)


def test_no_request_of_twenty_thousand_stalls(server: Server) -> None:
    """The 500 ms stall of Triton's queue policies must not appear with our own queue (decision 002)."""
    write_identity_like_model(server.repository, "steady", "v1")
    slowest = 0.0

    async def scenario() -> None:
        nonlocal slowest
        body = Target("steady", "v1").body()
        left = 20_000

        async def caller(client: httpx.AsyncClient) -> None:
            nonlocal left, slowest
            while left > 0:
                left -= 1
                response = await client.post("/api/v1/predict", json=body)
                assert response.status_code == 200
                # The server's own figure: this process shares two cores with the server.
                slowest = max(slowest, response.json()["processing_time_ms"] / 1000)

        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            deadline = time.monotonic() + 30
            while (await client.post("/api/v1/predict", json=body)).status_code != 200:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(caller(client))

    asyncio.run(scenario())
    assert slowest < STALL_S


def test_client_that_leaves_does_not_disturb_the_others(server: Server) -> None:
    write_identity_like_model(server.repository, "leaver", "v1", work=500)

    async def scenario() -> tuple[int, list[int]]:
        body = Target("leaver", "v1").body()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            deadline = time.monotonic() + 30
            while (await client.post("/api/v1/predict", json=body)).status_code != 200:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
            staying = [asyncio.create_task(client.post("/api/v1/predict", json=body)) for _ in range(20)]
            leaving = [asyncio.create_task(client.post("/api/v1/predict", json=body)) for _ in range(20)]
            await asyncio.sleep(0.02)
            left = sum(task.cancel() for task in leaving)
            return left, [response.status_code for response in await asyncio.gather(*staying)]

    left, statuses = asyncio.run(scenario())
    assert left > 0
    assert set(statuses) == {200}
    tally = asyncio.run(drive(server.url, [Target("leaver", "v1")], callers=4, count=50))
    assert dict(tally.statuses) == {200: 50}
    assert tally.wrong == []
