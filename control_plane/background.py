"""Background tasks that outlive their errors: logged, counted, restarted with back-off, cancelled at exit."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import structlog

from control_plane.telemetry.metrics import BACKGROUND_RESTARTS

log = structlog.get_logger()

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
_STABLE_AFTER_S = 60.0


@asynccontextmanager
async def background_tasks(coroutines: Mapping[str, Callable[[], Awaitable[None]]]) -> AsyncIterator[None]:
    """Runs each named coroutine function for as long as the context lasts."""
    tasks = [
        asyncio.create_task(_keep_running(name, function), name=name) for name, function in coroutines.items()
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def _keep_running(name: str, function: Callable[[], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    pause_s = _FIRST_PAUSE_S
    while True:
        started = loop.time()
        try:
            await function()
        except Exception:
            log.exception("background_task_failed", task=name, restart_in_s=pause_s)
        else:
            log.warning("background_task_ended", task=name, restart_in_s=pause_s)
        BACKGROUND_RESTARTS.labels(name).inc()
        if loop.time() - started > _STABLE_AFTER_S:
            pause_s = _FIRST_PAUSE_S
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
