"""Where the server is that a command works beside: its services' addresses, and its REST API.

What the settings say holds; what they leave open is taken from the state file of an embedded server.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
from pydantic import SecretStr

from control_plane.embedded.state import ServerState, read_state
from control_plane.errors import ModelLoadFailed, TritonUnavailable
from control_plane.models.registry import ModelVersion
from control_plane.settings import Settings

_LOOPBACK = "127.0.0.1"
_ANY_HOST = {"0.0.0.0": _LOOPBACK, "::": "::1"}  # noqa: S104  compared, not bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A running server."""

    settings: Settings
    """With the addresses of its Triton and its Redis."""
    api_url: str
    """Base URL of its REST API."""


def find_deployment(settings: Settings, *, api_url: str | None) -> Deployment:
    """Finds the server.

    Args:
        settings: As the server has them.
        api_url: Base URL of its REST API; None: as the state file or the settings say.

    Raises:
        TritonUnavailable: neither the settings nor a running embedded server say where Triton and Redis are.
    """
    ports = _ports(settings)
    triton, redis = settings.triton, settings.redis
    if triton.grpc_url is None and "triton_grpc" in ports:
        triton = triton.model_copy(
            update={
                "grpc_url": f"{_LOOPBACK}:{ports['triton_grpc']}",
                "http_url": triton.http_url or f"http://{_LOOPBACK}:{ports['triton_http']}",
            }
        )
    if redis.url is None and redis.host is None and "redis" in ports:
        redis = redis.model_copy(update={"url": SecretStr(f"redis://{_LOOPBACK}:{ports['redis']}/0")})
    if triton.grpc_url is None or (redis.url is None and redis.host is None):
        raise no_server(settings)
    return Deployment(
        settings=settings.model_copy(update={"triton": triton, "redis": redis}),
        api_url=(api_url or _api_url(settings, ports)).rstrip("/"),
    )


def find_api(settings: Settings) -> str:
    """Base URL of the REST API of the server that runs here, or of the one that the settings describe."""
    return _api_url(settings, _ports(settings))


def no_server(settings: Settings) -> TritonUnavailable:
    """What to say where no server runs."""
    return TritonUnavailable(
        f"No server runs: there is none in {settings.embedded.data_dir}/, and no answer where the settings say.",
        remedy="Start one with `make serve` (or name its data directory: MODEL_SERVING__EMBEDDED__DATA_DIR), or set "
        "TRITON_GRPC_URL and REDIS_HOST to a deployment's.",
    )


def load_by_api(deployment: Deployment, model: ModelVersion) -> None:
    """Has the server load a version: it knows how many may be loaded, and which has to leave. Blocks.

    Raises:
        ModelLoadFailed: it could not, with its reason; or it doesn't answer.
    """
    body = {"models": [{"model_type": model.model_type, "version": model.version}]}
    request = urllib.request.Request(  # noqa: S310  an address from the settings
        f"{deployment.api_url}/api/v1/models/warmup",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    timeout_s = deployment.settings.triton.load_timeout_s + 10
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            result = json.load(answer)["results"][0]
    except (urllib.error.URLError, OSError, ValueError, KeyError, IndexError) as error:
        raise ModelLoadFailed(
            f"{model.key} isn't loaded, and the API at {deployment.api_url} didn't load it: {error}.",
            remedy="Check that the server runs there (--url names another), or load the version first.",
        ) from error
    if result["status"] not in ("warmed", "already_cached"):
        raise ModelLoadFailed(f"{model.key} can't be loaded: {_reason(result)}")


def _reason(result: dict[str, Any]) -> str:
    return str((result.get("error") or {}).get("detail") or result["status"])


def _ports(settings: Settings) -> Mapping[str, int]:
    """Of an embedded server that runs; otherwise none."""
    state = read_state(settings.embedded.data_dir)
    return state.ports if state is not None and _runs(state) else {}


def _api_url(settings: Settings, ports: Mapping[str, int]) -> str:
    host = _ANY_HOST.get(settings.api.host, settings.api.host)
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{ports.get('api', settings.api.port)}"


def _runs(state: ServerState) -> bool:
    return state.ready and psutil.pid_exists(state.supervisor_pid)
