"""One API worker: uvicorn on a socket that the supervisor opened, with a drain that loses no accepted request."""

import asyncio
import gc
import signal
import socket
from contextlib import suppress
from types import FrameType
from typing import Any

import structlog
import uvicorn

from control_plane.api.draining import Draining
from control_plane.api.http_protocol import ServingProtocol
from control_plane.app import create_app
from control_plane.settings import Settings

log = structlog.get_logger()

LAME_DUCK_S = 0.5
LAST_REQUESTS_S = 0.3
GC_THRESHOLDS = (50_000, 20, 100)


class DrainingServer(uvicorn.Server):
    """Announces its end before it stops, so that no request it accepted is lost.

    From the first SIGTERM on, every answer says `Connection: close` and readiness fails, while requests are still
    taken; clients on keep-alive connections leave by themselves. After `LAME_DUCK_S` seconds the listening socket
    closes, emptied first: a connection that the kernel has accepted is served. Connections without a request then have
    `LAST_REQUESTS_S` seconds to send theirs, and what is in flight is waited for.
    """

    def __init__(self, config: uvicorn.Config, draining: Draining) -> None:
        super().__init__(config)
        self._draining = draining

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first SIGTERM starts the drain; a second one, or SIGINT, stops at once."""
        if self._draining.started or sig == signal.SIGINT:
            super().handle_exit(sig, frame)
            return
        self._draining.started = True
        log.info("drain_started", lame_duck_s=LAME_DUCK_S)
        asyncio.get_running_loop().call_later(LAME_DUCK_S, super().handle_exit, sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and then takes what the start made out of the garbage collector's sight.

        A full collection walks every object of the application and its libraries, which holds up all requests for tens
        of milliseconds; what is loaded once is never garbage.
        """
        await super().startup(sockets)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the listening sockets, serves what they had accepted, and then stops as uvicorn does."""
        if self._draining.started:
            listeners = [listener.dup() for server in self.servers for listener in server.sockets]
            for server in self.servers:
                server.close()
            for listener in listeners:
                await self._serve_the_waiting(listener)
            deadline = asyncio.get_running_loop().time() + LAST_REQUESTS_S
            # uvicorn's set of connections has no event to wait for.
            while self.server_state.connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await super().shutdown(sockets)

    async def _serve_the_waiting(self, listener: socket.socket) -> None:
        listener.settimeout(0)
        waiting = []
        with suppress(BlockingIOError):
            while True:
                waiting.append(listener.accept()[0])
        listener.close()
        for connection in waiting:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        protocol_class: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = protocol_class(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def run_worker(settings: Settings, *, socket_fd: int | None) -> None:
    """Serves until SIGTERM.

    Args:
        settings: With the addresses of a running Triton and Redis.
        socket_fd: An inherited listening socket; None binds `api.host` and `api.port`.
    """
    draining = Draining()
    config = uvicorn.Config(
        create_app(settings, draining=draining),
        host=settings.api.host,
        port=settings.api.port,
        loop="uvloop",
        http=ServingProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.api.shutdown_timeout_s),
        timeout_keep_alive=30,
    )
    # Not uvicorn's own `fd`: that takes the socket for a Unix one, which loses TCP_NODELAY and the client's address.
    sockets = None if socket_fd is None else [socket.socket(fileno=socket_fd)]
    DrainingServer(config, draining).run(sockets)
