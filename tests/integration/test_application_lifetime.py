"""The application opens and closes all it holds."""

import gc
import threading
from pathlib import Path

import psutil

from control_plane.app import create_app
from control_plane.embedded.redis import RedisServer
from control_plane.embedded.triton import TritonServer
from control_plane.settings import Settings

STARTS = 20


def held() -> tuple[int, int, int]:
    """Open files and sockets, threads other than the loop's executor's, and children of this process."""
    gc.collect()
    files = len(list(Path("/proc/self/fd").iterdir()))
    # The executor's threads and gRPC's pollers are bounded, and end with the process.
    threads = sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate())
    return files, threads, len(psutil.Process().children())


async def test_twenty_starts_of_the_application_leave_nothing(
    triton_server: TritonServer, redis_server: RedisServer, model_repository: Path, redis_key_prefix: str
) -> None:
    settings = Settings(
        triton={"grpc_url": triton_server.grpc_url, "model_repository": model_repository},
        redis={"url": redis_server.url, "key_prefix": redis_key_prefix},
    )

    async def once() -> None:
        app = create_app(settings)
        async with app.router.lifespan_context(app) as state:
            assert await state["resources"].redis.ping()
            assert await state["resources"].triton.is_live()

    for _ in range(2):  # what is made once, such as gRPC's own threads
        await once()
    before = held()
    for _ in range(STARTS):
        await once()
    after = held()
    assert after[1:] == before[1:]
    assert after[0] <= before[0] + 1
