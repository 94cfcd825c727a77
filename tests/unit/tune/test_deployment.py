"""Where the command finds the server."""

import os
from pathlib import Path
from typing import Any

import pytest

from control_plane.embedded.state import ServerState, write_state
from control_plane.errors import TritonUnavailable
from control_plane.settings import Settings
from control_plane.tune.deployment import find_api, find_deployment

PORTS = {"api": 18080, "redis": 16379, "triton_http": 18000, "triton_grpc": 18001, "triton_metrics": 18002}


def settings(data_dir: Path, **sections: Any) -> Settings:
    return Settings.model_validate({"embedded": {"data_dir": data_dir}, **sections})


def run_server(data_dir: Path, *, pid: int, ready: bool = True, without: str = "nothing") -> None:
    ports = {name: port for name, port in PORTS.items() if not name.startswith(without)}
    write_state(data_dir, ServerState(supervisor_pid=pid, ready=ready, ports=ports))


def test_deployment_of_an_embedded_server_is_where_its_state_says(tmp_path: Path) -> None:
    run_server(tmp_path, pid=os.getpid())
    found = find_deployment(settings(tmp_path, api={"host": "0.0.0.0"}), api_url=None)
    assert found.api_url == "http://127.0.0.1:18080"
    assert found.settings.triton.grpc_url == "127.0.0.1:18001"
    assert found.settings.triton.http_url == "http://127.0.0.1:18000"
    assert found.settings.redis.url is not None
    assert found.settings.redis.url.get_secret_value() == "redis://127.0.0.1:16379/0"


def test_deployment_that_the_settings_name_wins(tmp_path: Path) -> None:
    run_server(tmp_path, pid=os.getpid())
    asked = settings(tmp_path, triton={"grpc_url": "triton:8001"}, redis={"host": "redis"})
    found = find_deployment(asked, api_url="http://api/")
    assert (found.settings, found.api_url) == (asked, "http://api")


def test_api_is_found_without_triton_and_redis(tmp_path: Path) -> None:
    assert find_api(settings(tmp_path, api={"port": 8123})) == "http://127.0.0.1:8123"
    run_server(tmp_path, pid=os.getpid(), without="redis")
    assert find_api(settings(tmp_path, api={"host": "::"})) == "http://[::1]:18080"


def test_deployment_takes_each_service_from_where_it_is(tmp_path: Path) -> None:
    run_server(tmp_path, pid=os.getpid(), without="triton")
    found = find_deployment(settings(tmp_path, triton={"grpc_url": "triton:8001"}), api_url=None)
    assert found.settings.triton.grpc_url == "triton:8001"
    assert found.settings.triton.http_url is None
    assert found.settings.redis.url is not None


@pytest.mark.parametrize(
    ("pid", "ready"), [(os.getpid(), False), (2**22 + 1, True)], ids=["not ready", "process gone"]
)
def test_deployment_that_does_not_run_is_told(tmp_path: Path, pid: int, *, ready: bool) -> None:
    run_server(tmp_path, pid=pid, ready=ready)
    with pytest.raises(TritonUnavailable) as caught:
        find_deployment(settings(tmp_path), api_url=None)
    assert "make serve" in str(caught.value.remedy)


def test_deployment_without_any_state_is_told(tmp_path: Path) -> None:
    with pytest.raises(TritonUnavailable):
        find_deployment(settings(tmp_path), api_url=None)
