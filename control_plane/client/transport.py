"""httpx's requests, answers and errors as the client's own."""

import httpx

from control_plane.client.calls import Answer, Message
from control_plane.client.errors import ClientError, ConnectionFailed, DeadlineExceeded, InvalidRequest

GRACE_S = 0.25
"""How much longer than the deadline an answer is waited for, so that the server's own word on it arrives."""


def checked_url(base_url: str) -> httpx.URL:
    """A server's address.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"{base_url!r} is no address of a server: {error}.") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidRequest(
            f"{base_url!r} is no address of a server. Expected one such as http://localhost:8080."
        )
    return url


def request_of(client: httpx.Client | httpx.AsyncClient, message: Message, left_s: float) -> httpx.Request:
    """The request, with the time that is left as its timeout."""
    return client.build_request(
        message.method,
        message.path,
        params=dict(message.query) or None,
        headers=dict(message.headers),
        content=message.content,
        timeout=left_s + GRACE_S,
    )


def answer_of(response: httpx.Response) -> Answer:
    """The answer; its body must have been read."""
    return Answer(status=response.status_code, headers=response.headers, content=response.content)


def failure_of(error: httpx.HTTPError) -> tuple[ClientError, bool]:
    """The client's own error for httpx's, and whether the request may have reached the server."""
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceeded(f"No answer in time ({type(error).__name__})."), True
    text = str(error) or type(error).__name__
    return ConnectionFailed(f"No answer: {text}"), not isinstance(error, httpx.ConnectError)
