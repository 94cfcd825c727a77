"""Free TCP ports, and sockets to hand on to children.

Free ports are taken from below the kernel's ephemeral range. A port inside it can be given to any outgoing connection
while its server restarts, and a client that keeps reconnecting to it can even connect to itself.
"""

import asyncio
import errno
import random
import socket
from pathlib import Path

from control_plane.embedded.errors import PortTaken

_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_240
_ATTEMPTS = 200
_POLL_S = 0.05


def free_ports(count: int, *, host: str = "127.0.0.1") -> list[int]:
    """Different ports that nothing listens on at `host` now.

    Nothing keeps them free: whoever binds one must be ready to try again with another.
    """
    ports: set[int] = set()
    while len(ports) < count:
        with _bind_free(host) as sock:
            ports.add(int(sock.getsockname()[1]))
    return list(ports)


def is_free(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether a server could bind the port now."""
    try:
        _bind(host, port).close()
    except OSError:
        return False
    return True


async def becomes_free(port: int, *, host: str = "127.0.0.1", timeout_s: float = 1.0) -> bool:
    """Whether the port is free within a moment: a predecessor that was just killed still holds its sockets for one."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not is_free(port, host=host):  # nothing announces it
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


def listen(host: str, port: int, *, backlog: int = 2048) -> socket.socket:
    """A listening socket that children may inherit.

    Args:
        host: Address or host name.
        port: Port; 0 takes a free one.
        backlog: Connections that may wait to be accepted.

    Raises:
        PortTaken: the port is in use, or the address isn't this machine's.
    """
    try:
        sock = _bind_free(host) if port == 0 else _bind(host, port)
    except OSError as error:
        raise PortTaken(
            f"{host}:{port} can't be listened on: {error.strerror or error}.",
            expected="a free port of an address of this machine",
            got=f"{host}:{port}",
            remedy="Stop what uses the port, or choose another (API_PORT, MODEL_SERVING__TRITON__GRPC_PORT, …); "
            "0 takes a free one.",
        ) from error
    sock.listen(backlog)
    sock.setblocking(False)  # noqa: FBT003  its only form
    sock.set_inheritable(True)
    return sock


def _bind_free(host: str) -> socket.socket:
    lowest_ephemeral = _lowest_ephemeral_port()
    if lowest_ephemeral > _LOWEST + _ATTEMPTS:
        for _ in range(_ATTEMPTS):
            port = random.randrange(_LOWEST, lowest_ephemeral)  # noqa: S311  spreads servers, hides nothing
            try:
                return _bind(host, port)
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
    return _bind(host, 0)


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        # Connections in TIME_WAIT must not keep a restarted server from its port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _lowest_ephemeral_port() -> int:
    try:
        return int(_EPHEMERAL_RANGE.read_text("ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768
