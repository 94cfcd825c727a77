"""The server's endpoints of experiments, as the commands need them: its own documents, since `--json` prints them."""

from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from control_plane.client.calls import refusal
from control_plane.client.errors import BadAnswer, ClientError
from control_plane.client.transport import answer_of, checked_url, failure_of

_TIMEOUT_S = 30.0
_PREFIX = "/api/v1/experiments"


class ExperimentsServer:
    """One server. All methods raise ClientError.

    Args:
        url: Base URL of its REST API.

    Raises:
        InvalidRequest: it is none.
    """

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=checked_url(url), timeout=_TIMEOUT_S)

    def __enter__(self) -> Self:
        """The server."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes its connections."""
        self._http.close()

    def list(self) -> dict[str, Any]:
        """All experiments."""
        return self._json("GET", "")

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Begins one."""
        return self._json("POST", "/create", body)

    def results(self, experiment_id: str) -> dict[str, Any]:
        """What one shows."""
        return self._json("GET", f"/{_part(experiment_id)}/results")

    def timeline(self, experiment_id: str) -> dict[str, Any]:
        """What it showed over time."""
        return self._json("GET", f"/{_part(experiment_id)}/timeline")

    def stop(self, experiment_id: str) -> dict[str, Any]:
        """Stops it."""
        return self._json("DELETE", f"/{_part(experiment_id)}")

    def report(self, experiment_id: str) -> bytes:
        """The page."""
        return self._ask("GET", f"/{_part(experiment_id)}/report").content

    def _json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        document = _decoded(self._ask(method, path, body))
        if not isinstance(document, dict):
            raise BadAnswer(f"The answer to {method} {_PREFIX}{path} is no JSON object.")
        return document

    def _ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        try:
            response = self._http.request(method, _PREFIX + path, json=body)
        except httpx.HTTPError as error:
            failure, _ = failure_of(error)
            raise failure from error
        if not response.is_success:
            raise refusal(answer_of(response), _decoded(response))
        return response


def in_words(error: ClientError, url: str) -> str:
    """What went wrong, and what to do."""
    problem = error.problem
    if problem is None:
        return f"{str(error).rstrip('.')}. Asked: {url}. Check that a server runs there; --api names another."
    fields = problem.document.get("errors") or ()
    told = [problem.detail, *(f"{one.get('path')}: {one.get('message')}." for one in fields)]
    return " ".join(part for part in (*told, problem.document.get("remedy")) if part)


def _decoded(response: httpx.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _part(text: str) -> str:
    return quote(text, safe="")
