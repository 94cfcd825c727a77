"""Triton, Redis and a worker killed, during traffic and during loads: it heals, and errors are only clear 503s."""

import asyncio
import os
import signal
from pathlib import Path

import httpx
import psutil
import pytest
import tritonclient.grpc

from tests.support.repository import write_identity_like_model
from tests.support.server import Server, running_server, wait_until
from tests.support.traffic import Tally, Target, drive

VERSIONS = [f"v{number}" for number in range(4)]
SETTINGS = {"API_WORKERS": "2", "MODEL_SERVING__MODEL_CACHE__MAX_MODELS": "3"}


@pytest.fixture
def server(folder: Path) -> Server:
    (folder / "model_repository").mkdir()
    for version in VERSIONS:
        write_identity_like_model(folder / "model_repository", "faulty", version, work=20)
    with running_server(folder, SETTINGS) as running:
        yield running


def assert_agreement(server: Server) -> None:
    """The cache's view and Triton's index become the same, within the bound."""
    with httpx.Client(base_url=server.url, timeout=60) as api:

        def agrees() -> bool:
            with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
                index = client.get_model_repository_index().models
            states = {model.name: model.state for model in index if model.state not in ("", "UNAVAILABLE")}
            stats = api.get("/api/v1/models/cache/stats").json()
            believed = {f"{model['model_type']}-{model['version']}" for model in stats["models"]}
            return believed == set(states) and set(states.values()) <= {"READY"} and len(believed) <= 3

        wait_until(agrees, timeout_s=30, what="cache and Triton's index agree")
        assert api.get("/api/v1/health").json()["status"] == "healthy"


async def traffic_around(server: Server, name: str, targets: list[Target], *, answers_before: int) -> Tally:
    """Traffic; the process is killed once some answers came, and traffic goes on until it is back and answering."""
    stop = asyncio.Event()
    killed = asyncio.Event()
    tallies: list[Tally] = []

    def watch(tally: Tally) -> None:
        if not tallies:
            tallies.append(tally)
        if not killed.is_set() and tally.statuses[200] >= answers_before:
            server.kill(name)
            killed.set()

    before = server.pid(name)
    driving = asyncio.create_task(
        drive(server.url, targets, callers=6, until=stop, on_answer=watch, timeout_s=60)
    )
    await asyncio.wait_for(killed.wait(), 60)
    deadline = asyncio.get_running_loop().time() + 60

    async def poll(condition: object, what: str) -> None:
        while not condition():  # type: ignore[operator]
            assert asyncio.get_running_loop().time() < deadline, what
            await asyncio.sleep(0.05)

    await poll(lambda: server.state["processes"][name]["pid"] not in (None, before), f"{name} restarts")
    await poll(lambda: server.state["processes"][name]["state"] == "running", f"{name} is ready")
    answered = tallies[0].statuses[200]
    await poll(lambda: tallies[0].statuses[200] > answered + 100, "answers flow again")
    stop.set()
    return await driving


@pytest.mark.parametrize("versions", [VERSIONS[:2], VERSIONS], ids=["traffic", "loads"])
@pytest.mark.parametrize("name", ["triton", "redis", "worker-0"])
def test_killed_process_heals_and_errors_are_only_503(server: Server, name: str, versions: list[str]) -> None:
    """With two versions all are loaded; with four on three places, loads are under way all the time."""
    targets = [Target("faulty", version) for version in versions]
    with httpx.Client(base_url=server.url, timeout=60) as api:
        for target in targets:
            assert api.post("/api/v1/predict", json=target.body()).status_code == 200
    tally = asyncio.run(traffic_around(server, name, targets, answers_before=30))

    assert tally.wrong == []
    assert set(tally.statuses) <= {200, 503}, tally.problems[:5]
    assert all(problem["retry_after"] for problem in tally.problems)
    if name == "worker-0":
        # What the killed worker held is gone with its connections: at most the six callers', once each.
        assert len(tally.transport_errors) <= 6, tally.transport_errors
        assert set(tally.statuses) == {200}, tally.problems[:5]
    else:
        assert tally.transport_errors == []
    if name == "redis" and len(versions) == 2:
        assert set(tally.statuses) == {200}, tally.problems[:5]
    assert_agreement(server)
    with httpx.Client(base_url=server.url, timeout=60) as api:
        for target in targets:
            answer = api.post("/api/v1/predict", json=target.body())
            assert answer.status_code == 200
            assert target.complaint(answer.json()) is None


def test_loaded_models_come_back_after_triton_died(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as api:
        for version in VERSIONS[:2]:
            api.post("/api/v1/predict", json=Target("faulty", version).body())
        before = server.pid("triton")
        server.kill("triton")
        wait_until(
            lambda: (
                server.state["processes"]["triton"]["pid"] not in (None, before)
                and server.state["processes"]["triton"]["state"] == "running"
            ),
            timeout_s=60,
            what="triton restarts",
        )

        def is_back(version: str) -> bool:
            with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
                return bool(client.is_model_ready(f"faulty-{version}"))

        # No prediction asks for them: they come back by themselves.
        wait_until(
            lambda: all(is_back(v) for v in VERSIONS[:2]), timeout_s=60, what="the loaded models are back"
        )


def test_killed_model_process_heals(server: Server) -> None:
    """The model's own process (the Python backend's stub) dies: the next predictions load it again."""
    target = Target("faulty", "v0")
    with httpx.Client(base_url=server.url, timeout=60) as api:
        assert api.post("/api/v1/predict", json=target.body()).status_code == 200
        stubs = [
            child
            for child in psutil.Process(server.pid("triton")).children(recursive=True)
            if "stub" in child.name() or "stub" in " ".join(child.cmdline())
        ]
        assert stubs
        for stub in stubs:
            stub.kill()

        def answers() -> bool:
            answer = api.post("/api/v1/predict", json=target.body())
            assert answer.status_code in (200, 503), answer.text
            return answer.status_code == 200

        wait_until(answers, timeout_s=60, what="the model answers again")


def test_redis_outage_refuses_changes_and_says_degraded(server: Server) -> None:
    """While Redis is stopped: predictions go on, changes are 503, health is degraded; then all is well again."""
    target = Target("faulty", "v0")
    with httpx.Client(base_url=server.url, timeout=60) as api:
        assert api.post("/api/v1/predict", json=target.body()).status_code == 200
        redis = server.pid("redis")
        os.kill(redis, signal.SIGSTOP)
        try:
            answer = api.post("/api/v1/predict", json=target.body())
            assert answer.status_code == 200
            assert target.complaint(answer.json()) is None
            assert api.get("/api/v1/health").json()["status"] == "degraded"
            refused = api.post("/api/v1/models/load", json={"model_type": "faulty", "version": "v1"})
            assert refused.status_code == 503, refused.text
            assert refused.headers["retry-after"]
            refused = api.put("/api/v1/models/faulty/aliases/production", json={"version": "v1"})
            assert refused.status_code == 503
        finally:
            os.kill(redis, signal.SIGCONT)
        wait_until(
            lambda: api.get("/api/v1/health").json()["status"] == "healthy",
            timeout_s=30,
            what="healthy again",
        )
        assert api.post("/api/v1/predict", json=Target("faulty", "v1").body()).status_code == 200
    assert_agreement(server)
