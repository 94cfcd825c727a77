"""Locks and events on a real Redis."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control_plane.background import background_tasks
from control_plane.embedded.redis import RedisServer
from control_plane.errors import DeadlineExceeded, RedisUnavailable
from control_plane.settings import RedisSettings
from control_plane.store.lock import Locks
from control_plane.store.redis import RedisStore, open_store
from tests.support.embedded import running_redis
from tests.support.model_worker import eventually


@pytest.fixture
async def store(redis_server: RedisServer, redis_key_prefix: str) -> AsyncIterator[RedisStore]:
    """A store whose listener runs."""
    redis = RedisSettings(host="127.0.0.1", port=redis_server.port, key_prefix=redis_key_prefix)
    async with open_store(redis) as opened, background_tasks({"listener": opened.run_listener}):
        yield opened


def soon(seconds: float) -> float:
    """A deadline."""
    return time.monotonic() + seconds


async def test_lock_excludes_others_and_fences_rise(store: RedisStore) -> None:
    locks = Locks(store)
    fences = []
    inside = 0

    async def work() -> None:
        nonlocal inside
        async with locks.hold("a", deadline=soon(20)) as held:
            inside += 1
            assert inside == 1
            fences.append(held.fence)
            await asyncio.sleep(0.005)
            inside -= 1

    await asyncio.gather(*(work() for _ in range(20)))
    assert fences == sorted(set(fences))
    async with locks.hold("b", deadline=soon(1)) as held:
        assert held.fence > fences[-1]


async def test_lock_wait_ends_at_its_deadline(store: RedisStore) -> None:
    locks = Locks(store)
    async with locks.hold("a", deadline=soon(1)):
        with pytest.raises(DeadlineExceeded):
            async with locks.hold("a", deadline=soon(0.2)):
                pass
        async with locks.try_hold("a") as held:
            assert held is None
    async with locks.try_hold("a") as held:
        assert held is not None


async def test_lock_is_renewed_while_held(store: RedisStore) -> None:
    locks = Locks(store, ttl_s=0.3)
    async with locks.hold("a", deadline=soon(1)) as held:
        await asyncio.sleep(1.0)
        assert not held.lost
        async with locks.try_hold("a") as other:
            assert other is None


async def test_lock_of_a_dead_holder_expires(store: RedisStore) -> None:
    locks = Locks(store, ttl_s=0.5)
    held = await locks._acquire("a", "dead")
    assert held is not None
    assert await locks._acquire("a", "dead") is not None  # asking again is no second holder
    started = time.monotonic()
    async with locks.hold("a", deadline=soon(5)) as next_held:
        assert next_held.fence > held.fence
    assert 0.2 < time.monotonic() - started < 2.0


async def test_events_reach_every_listener(
    store: RedisStore, redis_server: RedisServer, redis_key_prefix: str
) -> None:
    heard: list[str] = []
    store.on("thing", heard.append)
    redis = RedisSettings(host="127.0.0.1", port=redis_server.port, key_prefix=redis_key_prefix)
    async with open_store(redis) as other:
        await eventually(lambda: _is(store.listening), timeout_s=5, what="the listener listens")
        await other.publish("thing", "a b")
        await other.publish("another", "c")
        await eventually(lambda: _is("a b" in heard), timeout_s=5, what="the event arrives")
    assert "c" not in heard


async def test_store_reports_redis_down_and_heals(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        redis = RedisSettings(host="127.0.0.1", port=server.port, key_prefix="t", timeout_s=0.3)
        async with open_store(redis) as store, background_tasks({"listener": store.run_listener}):
            heard: list[str] = []
            store.on("thing", heard.append)
            await eventually(lambda: _is(store.listening), timeout_s=5, what="the listener listens")
            assert await store.ping()
            assert store.up
            pid = server.child.pid or 0
            os.kill(pid, signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(RedisUnavailable):
                await store.publish("thing")
            assert time.monotonic() - started < 2.0
            assert not store.up
            started = time.monotonic()
            with pytest.raises(RedisUnavailable):
                await store.publish("thing")  # known to be down: no second wait
            assert time.monotonic() - started < 0.1
            os.kill(pid, signal.SIGKILL)
            await eventually(store.ping, what="Redis is back")
            await eventually(lambda: _is(store.listening), what="the listener is back")
            heard.clear()
            await store.publish("thing", "after")
            await eventually(lambda: _is("after" in heard), timeout_s=5, what="events arrive again")


async def _is(condition: bool) -> bool:
    return condition
