"""No route reads more of a body than `limits.max_body_bytes`, announced or not, and only the protocol's inflate one."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.api.v2_errors import is_protocol, response_outside_routes
from control_plane.errors import PayloadTooLarge, ServingError, UnsupportedMediaType


class BodyLimit:
    """Refuses a body that is announced as too large before it is read, and one that turns out so while it is read."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection; bodies without a length are counted as they come."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = None
        for name, value in scope["headers"]:
            if name == b"content-length":
                announced = value
            elif name == b"content-encoding" and not is_protocol(scope["path"]) and _is_coded(value):
                await _refuse(_coded(value), scope, receive, send)
                return
        if announced is not None:
            # The server itself ends the body at its announced length.
            if announced.isdigit() and int(announced) > self._max_bytes:
                await _refuse(self._error(f"{int(announced):,} bytes announced"), scope, receive, send)
                return
            await self._app(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._error("more")
            return message

        await self._app(scope, receive_counted, send)

    def _error(self, got: str) -> PayloadTooLarge:
        return PayloadTooLarge(
            "The body is too large.",
            expected=f"at most {self._max_bytes:,} bytes",
            got=got,
            remedy="Split the request; limits.max_body_bytes sets the bound.",
        )


async def _refuse(error: ServingError, scope: Scope, receive: Receive, send: Send) -> None:
    answer = response_outside_routes(error, request_id=scope["state"]["request_id"], path=scope["path"])
    answer.headers["Connection"] = "close"
    await answer(scope, receive, send)


def _is_coded(encoding: bytes) -> bool:
    return encoding.strip().lower() not in (b"", b"identity")


def _coded(encoding: bytes) -> UnsupportedMediaType:
    name = encoding.decode("latin-1").strip()[:100]
    return UnsupportedMediaType(
        f"Content-Encoding {name} is not read here.",
        expected="a body without Content-Encoding",
        got=name,
        remedy="Send it uncompressed; binary bodies (docs/api.md) are the small ones.",
    )
