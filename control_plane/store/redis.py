"""The connection to Redis: deadlines, translation of errors, health, scripts, and the listener for events.

Every command runs inside `session()`, which gives it a deadline and turns the client library's errors into
`RedisUnavailable`. The connection heals by itself: each command takes a fresh socket when the old one is gone.
"""

import asyncio
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from control_plane.errors import RedisUnavailable
from control_plane.settings import RedisSettings
from control_plane.store.keys import Keys
from control_plane.store.scripts import Script
from control_plane.telemetry.metrics import REDIS_UP

log = structlog.get_logger()

# While Redis is known to be down, a command within this time of the last failure fails at once: a request that can
# go on without Redis must not pay a connection timeout each.
_FAIL_FAST_S = 0.25
_RECONNECT_S = (0.05, 1.0)
_MOST_COMMANDS = 64
"""At once; others wait. The library's pool refuses more than 100 connections, as if Redis were away."""
_SENTINEL_URL = re.compile(r"^redis\+sentinel://", re.IGNORECASE)
_SERVER_FAULTS = (
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "TRYAGAIN",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SentinelAddress:
    """What a `redis+sentinel://[user:password@]host:port[,host:port]/service[/db]` URL says."""

    nodes: tuple[tuple[str, int], ...]
    service: str
    db: int
    username: str | None
    password: str | None


def parse_sentinel_url(url: str) -> SentinelAddress:
    """Reads a Sentinel URL.

    Raises:
        ValueError: it isn't one; the text says what a right one looks like.
    """
    form = "redis+sentinel://[user:password@]host:port[,host:port]/service[/db]"
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    path = [part for part in parts.path.split("/") if part]
    nodes = []
    for host in hosts.split(","):
        name, _, port = host.rpartition(":") if ":" in host else (host, "", "26379")
        if not name or not port.isdigit():
            raise ValueError(f"redis.url: expected {form}.")
        nodes.append((name.strip("[]"), int(port)))
    if not 1 <= len(path) <= 2 or (len(path) == 2 and not path[1].isdigit()):
        raise ValueError(f"redis.url: expected {form}.")
    return SentinelAddress(
        nodes=tuple(nodes),
        service=path[0],
        db=int(path[1]) if len(path) == 2 else 0,
        username=unquote(username) or None,
        password=unquote(password) or None,
    )


class RedisStore:
    """Shared state of all replicas. Make it with `open_store`."""

    def __init__(self, client: Redis, settings: RedisSettings) -> None:
        self.client = client
        self.keys = Keys(prefix=settings.key_prefix)
        self.timeout_s = settings.timeout_s
        self._turns = asyncio.Semaphore(_MOST_COMMANDS)
        self._up: bool | None = None
        self._failed_at = 0.0
        self._probing = False
        self._listening = False
        self._callbacks: defaultdict[str, list[Callable[[str], None]]] = defaultdict(list)

    @property
    def up(self) -> bool:
        """Whether Redis answered last."""
        return bool(self._up)

    @property
    def listening(self) -> bool:
        """Whether events of other workers arrive."""
        return self._listening

    @asynccontextmanager
    async def session(self, *, timeout_s: float | None = None) -> AsyncIterator[Redis]:
        """Lends the client for one command or pipeline.

        Args:
            timeout_s: Deadline in seconds; the configured one when None.

        Raises:
            RedisUnavailable: no connection, no answer in time, or an answer that says that Redis can't write now.
        """
        if self._up is False and time.monotonic() - self._failed_at < _FAIL_FAST_S:
            raise _unavailable()
        try:
            async with asyncio.timeout(timeout_s or self.timeout_s), self._turns:
                yield self.client
        except (RedisConnectionError, RedisTimeoutError, TimeoutError, OSError) as error:
            self._note(up=False, reason=repr(error))
            raise _unavailable() from error
        except ResponseError as error:
            if str(error).startswith(_SERVER_FAULTS):
                self._note(up=False, reason=str(error))
                raise _unavailable() from error
            raise
        self._note(up=True)

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Runs a Lua script, by its digest; sends its text when Redis doesn't know it yet.

        Raises:
            RedisUnavailable: see `session`.
        """
        async with self.session() as redis:
            try:
                return await cast("Any", redis.evalsha(script.digest, len(keys), *keys, *arguments))
            except NoScriptError:
                return await cast("Any", redis.eval(script.text, len(keys), *keys, *arguments))

    async def ping(self) -> bool:
        """Whether Redis answers now."""
        try:
            async with self.session() as redis:
                await cast("Any", redis.ping())
        except RedisUnavailable:
            return False
        return True

    async def publish(self, kind: str, subject: str = "") -> None:
        """Tells all workers, this one too, that something of `kind` changed."""
        async with self.session() as redis:
            await redis.publish(self.keys.events, f"{kind} {subject}")

    def on(self, kind: str, callback: Callable[[str], None]) -> None:
        """Calls `callback(subject)` for each event of `kind`, and with "" after the listener (re)connected, since
        events may have been missed. Callbacks are quick and don't raise."""
        self._callbacks[kind].append(callback)

    async def run_listener(self) -> None:
        """Receives events until cancelled, reconnecting as often as needed. One runs in each worker."""
        delay_s = _RECONNECT_S[0]
        while True:
            try:
                async with self.client.pubsub() as channel:
                    await channel.subscribe(self.keys.events)
                    delay_s = _RECONNECT_S[0]
                    while True:
                        message = await channel.get_message(timeout=1.0)
                        if message is not None:
                            self._dispatch(message)
                        elif not self._listening:
                            continue
                        else:
                            # An idle connection that died without a word shows here, not never.
                            async with asyncio.timeout(self.timeout_s):
                                await channel.ping()
            except (RedisError, TimeoutError, OSError) as error:
                self._listening = False
                self._note(up=False, reason=repr(error))
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _RECONNECT_S[1])
            finally:
                self._listening = False

    def _dispatch(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            self._listening = True
            self._note(up=True)
            for callbacks in self._callbacks.values():
                for callback in callbacks:
                    callback("")
        elif message["type"] == "message":
            kind, _, subject = str(message["data"]).partition(" ")
            for callback in self._callbacks.get(kind, ()):
                callback(subject)

    def _note(self, *, up: bool, reason: str = "") -> None:
        if not up:
            self._failed_at = time.monotonic()
        if up is self._up:
            return
        self._up = up
        REDIS_UP.set(1 if up else 0)
        if up:
            log.info("redis_up")
        else:
            log.warning("redis_down", reason=reason)


@asynccontextmanager
async def open_store(settings: RedisSettings) -> AsyncIterator[RedisStore]:
    """Makes the store and closes its connections at the end. Connecting is lazy: Redis may come up later.

    Raises:
        ValueError: `redis.url` is malformed.
    """
    client, extra = _client(settings)
    try:
        yield RedisStore(client, settings)
    finally:
        for one in (client, *extra):
            with suppress(RedisError, OSError):
                await one.aclose()


def _client(settings: RedisSettings) -> tuple[Redis, list[Redis]]:
    options: dict[str, Any] = {
        "decode_responses": True,
        "protocol": 2,
        # `session` has the deadline. With one of its own redis-py sends through `asyncio.wait_for`, which in Python
        # 3.11 loses a cancellation that comes when the bytes are out (cpython issue 86296).
        "socket_timeout": None,
        "socket_connect_timeout": settings.timeout_s,
        "socket_keepalive": True,
        # Once more on a fresh socket: after a restart of Redis the pool is full of dead ones. All scripts can
        # be repeated without harm.
        "retry": Retry(ConstantBackoff(0.01), 1),
    }
    password = settings.password.get_secret_value() if settings.password else None
    url = settings.url.get_secret_value() if settings.url else None
    if url is None:
        host = settings.host or "localhost"
        return Redis(host=host, port=settings.port, db=settings.db, password=password, **options), []
    if url.startswith("unix:"):
        del options["socket_keepalive"], options["socket_connect_timeout"]
    if not _SENTINEL_URL.match(url):
        return Redis.from_url(url, **options), []
    address = parse_sentinel_url(url)
    sentinel: Any = cast("Any", Sentinel)(list(address.nodes), sentinel_kwargs=dict(options), **options)
    master = sentinel.master_for(
        address.service, db=address.db, username=address.username, password=address.password or password
    )
    return cast("Redis", master), list(sentinel.sentinels)


def _unavailable() -> RedisUnavailable:
    return RedisUnavailable(
        "Redis does not answer, and this operation changes shared state.",
        remedy="Try again after Retry-After; /api/v1/health shows its state.",
    )
