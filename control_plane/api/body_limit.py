"""No route reads more of a body than `limits.max_body_bytes`, announced or not."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.api.v2_errors import response_outside_routes
from control_plane.errors import PayloadTooLarge


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
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), None)
        if announced is not None:
            # The server itself ends the body at its announced length.
            if announced.isdigit() and int(announced) > self._max_bytes:
                error = self._error(f"{int(announced):,} bytes announced")
                answer = response_outside_routes(
                    error, request_id=scope["state"]["request_id"], path=scope["path"]
                )
                answer.headers["Connection"] = "close"
                await answer(scope, receive, send)
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
