"""One API worker: uvicorn on a socket that the supervisor opened, with a drain that loses no accepted request."""

import asyncio
import signal
import socket
from types import FrameType

import structlog
import uvicorn

from control_plane.app import create_app
from control_plane.api.middleware import Draining
from control_plane.settings import Settings

log = structlog.get_logger()

LAME_DUCK_S = 0.5


class DrainingServer(uvicorn.Server):
    """Announces its end before it stops.

    From the first SIGTERM on, every answer says `Connection: close` and readiness fails, while requests are still
    taken; after `LAME_DUCK_S` seconds the sockets close and uvicorn waits for what is in flight. So clients on
    keep-alive connections leave by themselves, instead of losing a request to a closing connection.
    """

    def __init__(self, config: uvicorn.Config, draining: Draining) -> None:
        super().__init__(config)
        self._draining = draining

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal starts the drain; a second one stops at once."""
        if self._draining.started or sig == signal.SIGINT:
            super().handle_exit(sig, frame)
            return
        self._draining.started = True
        log.info("drain_started", lame_duck_s=LAME_DUCK_S)
        asyncio.get_running_loop().call_later(LAME_DUCK_S, super().handle_exit, sig, frame)


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
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.api.shutdown_timeout_s),
        timeout_keep_alive=30,
    )
    # Not uvicorn's own `fd`: that takes the socket for a Unix one, which loses TCP_NODELAY and the client's address.
    sockets = None if socket_fd is None else [socket.socket(fileno=socket_fd)]
    DrainingServer(config, draining).run(sockets)
