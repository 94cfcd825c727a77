"""What the client raises: one tree, each with the server's problem document where there is one.

ClientError
├── ConnectionFailed            no answer came
├── DeadlineExceeded            504, or the client's own deadline
├── BadAnswer                   an answer that is none of this API's
├── InvalidRequest              400, 413, 422 and other 4xx, or what can't be sent at all: mend the request
│   └── UnsupportedMediaType    415
├── Unauthorized                401
├── Forbidden                   403
├── NotFound                    404
├── Conflict                    409
├── TooManyRequests             429, after the retries
├── ServerFailed                500 and other 5xx
└── ServiceUnavailable          503, after the retries
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The server's problem document (RFC 9457). `slug` is the last part of its type, such as `queue-full`.

    `document` is the whole of it, with the members that aren't named here (`errors`, `expected`, `got`, `remedy`).
    """

    slug: str
    title: str
    status: int
    detail: str
    request_id: str | None
    document: Mapping[str, Any] = field(repr=False)


class ClientError(Exception):
    """Root of the tree.

    Attributes:
        problem: What the server said; None where it said nothing.
        retry_after_s: When the server suggests to try again.
    """

    def __init__(
        self, message: str, *, problem: Problem | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.problem = problem
        self.retry_after_s = retry_after_s


class ConnectionFailed(ClientError):
    """The server could not be reached, or went away before it answered."""


class DeadlineExceeded(ClientError):
    """Not in time."""


class BadAnswer(ClientError):
    """The answer is none of this API's: perhaps another server's, or a proxy's."""


class InvalidRequest(ClientError):
    """The server refused the request for what is in it, or it can't be sent: then there is no `problem`."""


class UnsupportedMediaType(InvalidRequest):
    """The server doesn't read this format of body."""


class Unauthorized(ClientError):
    """The credentials are missing or wrong."""


class Forbidden(ClientError):
    """The credentials don't allow it, or the path leads outside the model registry."""


class NotFound(ClientError):
    """No such model, version, alias, experiment or file."""


class Conflict(ClientError):
    """It contradicts the present state, such as a version that is in use."""


class TooManyRequests(ClientError):
    """Over the rate limit."""


class ServerFailed(ClientError):
    """The server or the model failed on it."""


class ServiceUnavailable(ClientError):
    """Overloaded, stopping, or without Triton."""


_BY_STATUS: dict[int, type[ClientError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    415: UnsupportedMediaType,
    429: TooManyRequests,
    503: ServiceUnavailable,
    504: DeadlineExceeded,
}


def problem_of(document: Any) -> Problem | None:
    """The problem that a decoded answer holds; None when it holds none."""
    if not isinstance(document, dict) or not isinstance(document.get("status"), int):
        return None
    request_id = document.get("request_id")
    return Problem(
        slug=str(document.get("type", "")).rpartition("#")[2],
        title=str(document.get("title", "")),
        status=document["status"],
        detail=str(document.get("detail", "")),
        request_id=None if request_id is None else str(request_id),
        document=document,
    )


def error_of(
    status: int, document: Any, *, text: str = "", retry_after_s: float | None = None
) -> ClientError:
    """The error for an answer that isn't a success.

    Args:
        status: Its HTTP status.
        document: Its decoded JSON; None where it isn't JSON.
        text: Its text, shown where there is no problem document.
        retry_after_s: From Retry-After.
    """
    problem = problem_of(document)
    kind = _BY_STATUS.get(status) or (
        InvalidRequest if 400 <= status < 500 else ServerFailed if status >= 500 else BadAnswer
    )
    shown = f"{problem.title}: {problem.detail}" if problem is not None else text[:500]
    return kind(f"{status} {shown}".strip(), problem=problem, retry_after_s=retry_after_s)
