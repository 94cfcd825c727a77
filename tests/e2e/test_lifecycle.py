"""Start, stop, memory, and changes under load."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

from tests.support.repository import write_identity_like_model
from tests.support.server import ROOT, Server, running_server, wait_until
from tests.support.traffic import Target, drive

IDLE_WORKER_LIMIT_BYTES = 160 * 1024 * 1024


def test_sigterm_under_load_loses_no_accepted_request(folder: Path) -> None:
    (folder / "model_repository").mkdir()
    write_identity_like_model(folder / "model_repository", "drain", "v1", work=500)
    with running_server(folder) as server:
        url = server.url

        async def scenario() -> tuple[list[int], list[str]]:
            statuses: list[int] = []
            lost: list[str] = []
            stopping = asyncio.Event()

            async def caller() -> None:
                async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                    while True:
                        try:
                            response = await client.post("/api/v1/predict", json=Target("drain", "v1").body())
                        except httpx.ConnectError:
                            return  # refused: never accepted
                        except httpx.HTTPError as error:
                            lost.append(repr(error))
                            return
                        statuses.append(response.status_code)
                        if len(statuses) == 100:
                            stopping.set()

            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(caller())
                await stopping.wait()
                server.process.send_signal(signal.SIGTERM)
            return statuses, lost

        statuses, lost = asyncio.run(scenario())
        assert lost == []
        assert len(statuses) > 100
        assert set(statuses) == {200}
        assert server.process.wait(60) == 0


def test_idle_worker_is_small_and_second_start_is_ready_again(folder: Path) -> None:
    (folder / "model_repository").mkdir()
    write_identity_like_model(folder / "model_repository", "again", "v1")
    for _ in range(2):
        started = time.monotonic()
        with running_server(folder) as server, httpx.Client(base_url=server.url, timeout=60) as api:
            assert psutil.Process(server.pid("worker-0")).memory_info().rss < IDLE_WORKER_LIMIT_BYTES
            assert api.post("/api/v1/predict", json=Target("again", "v1").body()).status_code == 200
        # Not a benchmark: only that a start doesn't hang on what the last one left.
        assert time.monotonic() - started < 60


def test_models_load_in_a_folder_that_a_shell_would_split(folder: Path) -> None:
    """Triton's Python backend starts its processes through bash, with unquoted paths."""
    spaced = folder / "my project; $(touch x) 'quoted'"
    (spaced / "model_repository").mkdir(parents=True)
    write_identity_like_model(spaced / "model_repository", "spaced", "v1")
    with running_server(spaced) as server, httpx.Client(base_url=server.url, timeout=30) as api:
        answer = api.post("/api/v1/predict", json=Target("spaced", "v1").body())
        assert answer.status_code == 200, answer.text


def test_second_server_on_the_same_data_says_so(server: Server) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "control_plane", "serve"],
        cwd=ROOT,
        env=dict(server.settings),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode not in (0, None)
    assert "Traceback" not in answer.stderr
    assert str(server.folder / "data") in answer.stderr


def test_wrong_setting_stops_the_start_with_its_name(server: Server) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "control_plane", "serve"],
        cwd=ROOT,
        env={**server.settings, "MODEL_SERVING__MODEL_CACHE__MAX_MODEL": "3"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 78
    assert "model_cache.max_model" in answer.stderr
    assert "'max_models'" in answer.stderr


def test_hundred_loads_and_unloads_under_traffic(server: Server) -> None:
    write_identity_like_model(server.repository, "cycle", "v1")
    name = {"model_type": "cycle", "version": "v1"}

    async def scenario() -> tuple[list[int], object]:
        stop = asyncio.Event()
        driving = asyncio.create_task(drive(server.url, [Target("cycle", "v1")], callers=8, until=stop))
        changes: list[int] = []
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as api:
            for _ in range(100):
                for action in ("unload", "load"):
                    changes.append((await api.post(f"/api/v1/models/{action}", json=name)).status_code)
        stop.set()
        return changes, await driving

    with httpx.Client(base_url=server.url, timeout=60) as api:
        wait_until(
            lambda: api.post("/api/v1/predict", json=Target("cycle", "v1").body()).status_code == 200,
            timeout_s=30,
            what="the new version is seen",
        )
    changes, tally = asyncio.run(scenario())
    assert set(changes) == {200}
    assert tally.wrong == []
    assert tally.transport_errors == []
    assert set(tally.statuses) <= {200, 503}, tally.problems[:3]
    assert tally.statuses[200] > 100


def test_moving_an_alias_under_load_names_the_version_that_answered(server: Server) -> None:
    for version in ("v1", "v2"):
        write_identity_like_model(server.repository, "moving", version)
    path = "/api/v1/models/moving/aliases/production"

    async def scenario() -> object:
        stop = asyncio.Event()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as api:
            assert (await api.put(path, json={"version": "v1"})).status_code == 200
            target = Target("moving", "production", may_be=("v1", "v2"))
            driving = asyncio.create_task(drive(server.url, [target], callers=6, until=stop))
            for move in range(40):
                moved = await api.put(path, json={"version": ("v2", "v1")[move % 2]})
                assert moved.status_code == 200
                answer = await api.post("/api/v1/predict", json=target.body())
                # After the move is acknowledged, the same worker answers from the new version.
                assert answer.json()["model_version"] == ("v2", "v1")[move % 2]
        stop.set()
        return await driving

    with httpx.Client(base_url=server.url, timeout=60) as api:
        wait_until(
            lambda: (
                len(
                    api.get("/api/v1/models/types")
                    .json()["model_types"]
                    .get("moving", {"versions": []})["versions"]
                )
                == 2
            ),
            timeout_s=30,
            what="the new versions are seen",
        )
    tally = asyncio.run(scenario())
    assert tally.wrong == []
    assert tally.transport_errors == []
    assert set(tally.statuses) == {200}, tally.problems[:3]
