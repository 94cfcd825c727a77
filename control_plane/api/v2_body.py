"""Bodies of the Open Inference Protocol: any content type, as Triton takes them, and compressed ones within a bound."""

import asyncio
import zlib

from starlette.requests import Request

from control_plane.errors import MalformedRequest, PayloadTooLarge, UnsupportedMediaType

_GZIP = 31
_ZLIB = 15
_WINDOW_BITS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """The body, inflated where it is compressed. The application bounds what is read of it.

    Raises:
        UnsupportedMediaType: compressed with something else than gzip or deflate.
        PayloadTooLarge: over `max_bytes` when inflated.
        MalformedRequest: not what Content-Encoding says, or cut off.
        ClientDisconnect: the client left before the body's end.
    """
    body = await request.body()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return body
    if encoding not in _WINDOW_BITS:
        raise UnsupportedMediaType(
            "The body's content encoding is not read here.",
            expected="gzip, deflate, or none",
            got=encoding[:100],
        )
    # In a thread: a few bytes can inflate to the whole bound.
    return await asyncio.to_thread(inflate, body, encoding, max_bytes=max_bytes)


def inflate(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """The text of a body that was compressed with `gzip` or `deflate` (in zlib's format, as RFC 9110 says).

    Raises:
        PayloadTooLarge: over `max_bytes`; no more than that is inflated.
        MalformedRequest: not in that format, cut off, or followed by something else.
    """
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        text = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise _malformed(encoding, str(error)) from error
    if len(text) > max_bytes:
        raise PayloadTooLarge(
            "The body is too large when inflated.",
            expected=f"at most {max_bytes:,} bytes",
            got="more",
            remedy="Split the request; limits.max_body_bytes sets the bound.",
        )
    if not stream.eof or stream.unused_data:
        raise _malformed(encoding, "bytes after its end" if stream.eof else "an end too early")
    return text


def _malformed(encoding: str, got: str) -> MalformedRequest:
    return MalformedRequest(
        "The body can't be inflated.",
        expected=f"one {encoding} stream, as Content-Encoding says",
        got=got,
        remedy="Send it whole, or uncompressed and without Content-Encoding.",
    )
