"""The commands of experiments, beside a running server; and the report as a browser gets it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from control_plane.client import Client, Conflict, NotFound
from tests.support.repository import write_identity_like_model
from tests.support.server import ROOT, Server, running_server, wait_until

TYPE = "tried"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("experiments_cli")
    (folder / "model_repository").mkdir()
    for version in ("v1.0", "v1.1"):
        write_identity_like_model(folder / "model_repository", TYPE, version)
    with running_server(folder, {"MODEL_SERVING__EXPERIMENTS__CERTIFICATE_S": "0"}) as server:
        yield server


def command(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """It finds the server by its data directory."""
    return subprocess.run(
        [sys.executable, "-m", "control_plane", "experiments", *arguments],
        cwd=ROOT,
        env={**server.settings, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def drive(server: Server, requests: int) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for start in range(0, requests, 100):
            rows = [
                {"model_type": TYPE, "data": [[1.0] * 4], "routing_key": f"account-{start + number}"}
                for number in range(100)
            ]
            assert client.post("/api/v1/predict/batch", json={"requests": rows}).status_code == 200


def test_experiment_through_its_life_by_commands(deployment: Server, tmp_path: Path) -> None:
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps({"duration_hours": 1, "planned_requests": 600}))
    variants = ["--type", TYPE, "--variant", "control=v1.0", "--variant", "new=v1.1"]
    created = command(deployment, "create", str(file), "--id", "by-command", *variants)
    assert (created.returncode, created.stdout.strip()) == (0, "Experiment by-command is running.")
    taken = command(deployment, "create", str(file), "--id", "by-command", *variants)
    assert taken.returncode == 1
    assert "already" in taken.stderr
    drive(deployment, 600)
    with Client(deployment.url) as client:
        wait_until(
            lambda: client.experiment_results("by-command").total_requests == 600,
            timeout_s=10,
            what="counted",
        )
        found = client.experiment_results("by-command")
        assert [one.total_requests for one in client.experiments()] == [600]
        assert set(found.variants) == {"control", "new"}
        with pytest.raises(NotFound):
            client.experiment_results("nobody's")
        with pytest.raises(Conflict):
            client.create_experiment(
                "by-command", {"a": (TYPE, "v1.0"), "b": (TYPE, "v1.1")}, {"a": 0.5, "b": 0.5}
            )
    shown = command(deployment, "show", "by-command")
    assert shown.returncode == 0, shown.stderr
    assert found.sentences[0] in shown.stdout
    assert "●" in shown.stdout
    document = json.loads(command(deployment, "show", "by-command", "--json").stdout)
    assert document["total_requests"] == 600
    assert {one["name"]: one["kind"] for one in document["significance"]["metrics"]} == {
        "error": "error",
        "latency": "latency",
    }
    listed = json.loads(command(deployment, "list", "--json").stdout)
    assert set(listed["experiments"]) == {"by-command"}
    page = tmp_path / "page.html"
    assert command(deployment, "report", "by-command", "--out", str(page)).returncode == 0
    assert "Distribution of latencies" in page.read_text()
    stopped = json.loads(command(deployment, "stop", "by-command", "--json").stdout)
    assert stopped["status"] == "stopped"
    assert "stopped" in command(deployment, "list").stdout


def test_report_is_a_page_that_may_load_nothing(deployment: Server) -> None:
    with Client(deployment.url) as client:
        client.create_experiment("page", {"a": (TYPE, "v1.0"), "b": (TYPE, "v1.1")}, {"a": 0.5, "b": 0.5})
        answer = httpx.get(f"{deployment.url}/api/v1/experiments/page/report")
        assert client.stop_experiment("page").status == "stopped"
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith(
        "default-src 'none'; style-src 'unsafe-inline'"
    )
    assert answer.text.startswith("<!doctype html>")
    missing = httpx.get(f"{deployment.url}/api/v1/experiments/nobody/report")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")


def test_errors_are_told(deployment: Server) -> None:
    missing = command(deployment, "show", "nobody")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith("There is no experiment 'nobody'.")
    wrong = command(
        deployment, "create", "--id", "x", "--type", TYPE, "--variant", "a=v1.0", "--variant", "b=v9.9"
    )
    assert wrong.returncode == 1
    assert "model_variants.b.version" in wrong.stderr
    away = command(deployment, "list", "--api", "http://127.0.0.1:1")
    assert away.returncode == 1
    assert "--api names another" in away.stderr
    assert os.linesep not in away.stderr.strip()
