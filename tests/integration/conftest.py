"""The real Triton and the real Redis, started once a run; a failing test shows the end of their logs."""

import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from control_plane.embedded.redis import RedisServer
from control_plane.embedded.triton import TritonServer
from tests.support.embedded import EmbeddedServices, running_redis, running_triton

_LOG_LINES = 40


@pytest.fixture(scope="session")
def model_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session Triton's model repository; a test adds models under names of its own."""
    return tmp_path_factory.mktemp("model_repository")


@pytest.fixture(scope="session")
def triton_server(tmp_path_factory: pytest.TempPathFactory, model_repository: Path) -> Iterator[TritonServer]:
    """A Triton that reads `model_repository`. A test that kills or fills it starts one of its own instead."""
    with running_triton(tmp_path_factory.mktemp("triton"), model_repository) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis; a test keeps to keys under `redis_key_prefix`."""
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def embedded_services(
    triton_server: TritonServer, redis_server: RedisServer, model_repository: Path
) -> EmbeddedServices:
    """Where both are."""
    return EmbeddedServices(
        triton_grpc_url=triton_server.grpc_url,
        triton_http_url=triton_server.http_url,
        metrics_url=triton_server.metrics_url,
        redis_url=redis_server.url,
        model_repository=model_repository,
        logs=triton_server.child.spec.log_path.parent,
    )


@pytest.fixture
def redis_key_prefix() -> str:
    """A prefix for Redis keys that no other test has."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the end of the servers' logs to a failure."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, TritonServer | RedisServer) and value.has_child:
                report.sections.append((f"{value.child.spec.name}.log", value.child.log_tail(_LOG_LINES)))
    return report
