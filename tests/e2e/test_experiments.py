"""Experiments as their users have them: two workers, the real Triton and Redis."""

import asyncio
import collections
import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from control_plane.experiments.assignment import position, variant_of
from tests.support.repository import write_identity_like_model
from tests.support.server import Server, running_server, wait_until

TYPE = "tried"
SETTINGS = {"API_WORKERS": "2", "MODEL_SERVING__EXPERIMENTS__CERTIFICATE_S": "1"}
Row = tuple[str, str, float]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("experiments")
    (folder / "model_repository").mkdir()
    for version in ("v1.0", "v1.1"):
        write_identity_like_model(folder / "model_repository", TYPE, version)
    with running_server(folder, SETTINGS) as server:
        yield server


@pytest.fixture
def api(deployment: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=deployment.url, timeout=60) as client:
        yield client
        for name, one in client.get("/api/v1/experiments").json()["experiments"].items():
            if one["status"] == "active":
                client.delete(f"/api/v1/experiments/{name}")


def begin(api: httpx.Client, **fields: Any) -> str:
    body = {
        "experiment_id": f"e-{uuid.uuid4().hex[:10]}",
        "model_variants": {
            "control": {"model_type": TYPE, "version": "v1.0"},
            "treatment": {"model_type": TYPE, "version": "v1.1"},
        },
        "traffic_split": {"control": 0.7, "treatment": 0.3},
        "duration_hours": 1,
    } | fields
    created = api.post("/api/v1/experiments/create", json=body)
    assert created.status_code == 201, created.text
    return str(body["experiment_id"])


def everyone_knows(server: Server, name: str) -> None:
    """Both workers route by it."""

    def takes_part() -> bool:
        for _ in range(10):  # a new connection each: any worker may take it
            with httpx.Client(base_url=server.url, timeout=60) as client:
                body = {"model_type": TYPE, "data": [[1.0] * 4], "experiment_id": name}
                if client.post("/api/v1/predict", json=body).status_code != 200:
                    return False
        return True

    wait_until(takes_part, timeout_s=10, what="all workers know the experiment")


async def drive(server: Server, keys: list[str], *, callers: int) -> list[Row]:
    """One request for each key; (key, group, processing_time_ms) as the callers saw them."""
    seen: list[Row] = []
    waiting = collections.deque(keys)

    async def call() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            while waiting:
                key = waiting.popleft()
                body = {"model_type": TYPE, "data": [[1.0] * 4], "routing_key": key}
                answer = await client.post("/api/v1/predict", json=body)
                assert answer.status_code == 200, answer.text
                document = answer.json()
                seen.append((key, document["ab_test_group"], document["processing_time_ms"]))

    await asyncio.gather(*(call() for _ in range(callers)))
    return seen


def results(api: httpx.Client, name: str) -> dict[str, Any]:
    answer = api.get(f"/api/v1/experiments/{name}/results")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_counts_are_those_that_callers_saw(deployment: Server, api: httpx.Client) -> None:
    name = begin(api)
    everyone_knows(deployment, name)
    before = {v: one["requests"] for v, one in _settled(api, name)["variants"].items()}
    chance = random.Random(1)
    keys = [f"account-{chance.randrange(3000)}" for _ in range(20_000)]
    seen = asyncio.run(drive(deployment, keys, callers=16))
    groups: dict[str, set[str]] = collections.defaultdict(set)
    for key, group, _ in seen:
        groups[key].add(group)
    assert {len(one) for one in groups.values()} == {1}
    for key, (group,) in groups.items():
        place = variant_of(position(name, key), (0.7, 0.3))
        assert group == f"{name}:{('control', 'treatment')[place]}"
    found = _settled(api, name, more_than=sum(before.values()) + len(seen) - 1)
    for variant in ("control", "treatment"):
        own = [ms for _, group, ms in seen if group == f"{name}:{variant}"]
        figures = found["variants"][variant]
        assert figures["requests"] - before[variant] == len(own)
        assert figures["errors"] == 0
        assert figures["units"] >= len({key for key, group, _ in seen if group == f"{name}:{variant}"})
        for field, share in (("p95_latency_ms", 0.95), ("p99_latency_ms", 0.99)):
            assert figures[field] == pytest.approx(np.quantile(own, share), rel=0.02)
    certificate = found["certificate"]
    assert certificate["runs"] > 0
    assert 0 <= certificate["false_alarm_rate"] <= certificate["false_alarm_upper"] <= 1
    assert {one["metric"] for one in certificate["power"]} <= {"error", "latency"}
    checks = found["significance"]["ratio_checks"]
    assert not found["significance"]["mismatched"], checks
    assert api.get("/api/v1/experiments").json()["experiments"][name]["total_requests"] >= 20_000


def test_explicit_versions_and_none_take_no_part_unless_they_ask(
    deployment: Server, api: httpx.Client
) -> None:
    name = begin(api)
    everyone_knows(deployment, name)

    def group(**fields: Any) -> Any:
        body = {"model_type": TYPE, "data": [[1.0] * 4], **fields}
        return api.post("/api/v1/predict", json=body).json().get("ab_test_group", "refused")

    assert group() is not None
    assert group(model_version="v1.0") is None
    assert group(experiment_id="none") is None
    assert group(model_version="v1.0", experiment_id=name).startswith(name)
    assert group(experiment_id="never") == "refused"
    unload = api.post("/api/v1/models/unload", json={"model_type": TYPE, "version": "v1.0"})
    assert unload.status_code == 409, unload.text
    stopped = api.delete(f"/api/v1/experiments/{name}")
    assert stopped.json()["status"] == "stopped"
    wait_until(lambda: group() is None, timeout_s=10, what="nobody takes part any more")
    assert results(api, name)["status"] == "stopped"
    again = api.post(
        "/api/v1/experiments/create",
        json={
            "experiment_id": name,
            "model_variants": {v: {"model_type": TYPE, "version": "v1.0"} for v in ("a", "b")},
            "traffic_split": {"a": 0.5, "b": 0.5},
        },
    )
    assert again.status_code == 409


def test_open_inference_takes_part_by_the_same_rules(deployment: Server, api: httpx.Client) -> None:
    name = begin(api)
    everyone_knows(deployment, name)

    def infer(model: str, **parameters: Any) -> dict[str, Any]:
        body = {
            "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0] * 4}],
            "parameters": parameters,
        }
        answer = api.post(f"/v2/models/{model}/infer", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    for number in range(20):
        key = f"k{number}"
        rest = api.post(
            "/api/v1/predict", json={"model_type": TYPE, "data": [[1.0] * 4], "routing_key": key}
        ).json()
        protocol = infer(TYPE, routing_key=key)
        assert protocol["parameters"]["ab_test_group"] == rest["ab_test_group"]
        assert protocol["model_version"] == rest["model_version"]
    assert "ab_test_group" not in infer(f"{TYPE}-v1.0").get("parameters", {})
    assert "ab_test_group" not in infer(TYPE, experiment_id="none").get("parameters", {})
    asked = infer(f"{TYPE}-v1.0", experiment_id=name, routing_key="k1")
    assert asked["parameters"]["ab_test_group"].startswith(name)


def test_outcomes_from_feedback_decide(deployment: Server, api: httpx.Client) -> None:
    name = begin(
        api,
        traffic_split={"control": 0.5, "treatment": 0.5},
        metrics=[{"name": "filled", "kind": "rate", "direction": "up"}],
        planned_requests=2000,
    )
    everyone_knows(deployment, name)
    chance = random.Random(2)
    give = []
    for start in range(0, 2000, 100):
        requests = [
            {"model_type": TYPE, "data": [[1.0] * 4], "routing_key": f"k{start + n}"} for n in range(100)
        ]
        for answer in api.post("/api/v1/predict/batch", json={"requests": requests}).json()["results"]:
            rate = 0.5 if answer["ab_test_group"].endswith("treatment") else 0.3
            filled = float(chance.random() < rate)
            give.append({"request_id": answer["request_id"], "outcome": {"filled": filled}})
    for start in range(0, len(give), 1000):
        for _ in range(2):
            answer = api.post("/api/v1/feedback", json=give[start : start + 1000])
            assert answer.status_code == 202, answer.text
    found = results(api, name)
    observed = {v: one["metrics"]["filled"]["observations"] for v, one in found["variants"].items()}
    assert sum(observed.values()) == len(give)
    assert found["significance"]["verdict"] == "treatment_better", found["significance"]["sentences"]
    wrong = api.post("/api/v1/feedback", json=[{**give[0], "outcome": {"filled": 2.0}}])
    assert wrong.json()["results"][0]["status"] == "invalid"
    misspelt = api.post("/api/v1/feedback", json=[{**give[0], "outcome": {"filed": 1.0}}])
    assert misspelt.json()["results"][0]["status"] == "invalid"
    assert "filled" in misspelt.json()["results"][0]["reason"]
    other = api.post("/api/v1/feedback", json=[{**give[0], "outcome": {"filled": 0.25}}])
    assert other.json()["results"][0]["status"] == "conflict"


def test_definitions_and_counts_outlive_a_restart_of_everything(tmp_path: Path) -> None:
    (tmp_path / "model_repository").mkdir()
    for version in ("v1.0", "v1.1"):
        write_identity_like_model(tmp_path / "model_repository", TYPE, version)
    keys = [f"k{number}" for number in range(200)]
    with running_server(tmp_path, SETTINGS) as server, server.client() as api:
        name = begin(api)
        everyone_knows(server, name)
        first = {key: group for key, group, _ in asyncio.run(drive(server, keys, callers=4))}
        _settled(api, name, more_than=199)
        time.sleep(2.5)  # longer than the append-only file waits for the disk
    with running_server(tmp_path, SETTINGS) as server, server.client() as api:
        again = {key: group for key, group, _ in asyncio.run(drive(server, keys, callers=4))}
        assert again == first
        assert sum(one["requests"] for one in _settled(api, name, more_than=399)["variants"].values()) >= 400


def test_bad_experiments_are_refused_and_nothing_is_stored(api: httpx.Client) -> None:
    good = {
        "experiment_id": "never-made",
        "model_variants": {
            "control": {"model_type": TYPE, "version": "v1.0"},
            "treatment": {"model_type": TYPE, "version": "v1.1"},
        },
        "traffic_split": {"control": 0.7, "treatment": 0.3},
    }
    one = {"model_type": TYPE, "version": "v1.0"}
    eleven = {f"v{n}": one for n in range(11)}
    bad: list[dict[str, Any]] = [
        {"traffic_split": {"control": 0.7, "treatment": 0.2}},
        {"traffic_split": {"control": 0.7, "other": 0.3}},
        {"traffic_split": {"control": 1.3, "treatment": -0.3}},
        {"model_variants": {"control": one, "treatment": {"model_type": TYPE, "version": "v9.9"}}},
        {"model_variants": {"control": one, "treatment": {"model_type": "nobody", "version": "v1.0"}}},
        {"model_variants": {"control": one}, "traffic_split": {"control": 1.0}},
        {"model_variants": eleven, "traffic_split": dict.fromkeys(eleven, 1 / 11)},
        {"duration_hours": -1},
        {"duration_hours": 0},
        {"alpha": 0.5},
        {"alpha": 0},
        {"experiment_id": "<script>alert(1)</script>"},
        {"experiment_id": ""},
        {"experiment_id": "none"},
        {"mode": "bandit", "metrics": [{"name": "m", "kind": "mean", "direction": "up"}], "epoch_minutes": 1},
        {"mode": "magic"},
        {"mode": "bandit"},
        {"mode": "canary", "steps": [{"share": 0.5}, {"share": 0.1}]},
        {"mode": "canary", "guardrails": [{"metric": "unknown", "max_ratio": 1.1}]},
        {"guardrails": [{"metric": "latency", "max_difference": 1.1}]},
        {"metrics": [{"name": "m", "kind": "median", "direction": "up"}]},
        {"metrics": [{"name": "m", "kind": "mean", "direction": "up"}] * 2},
        {"surprise": 1},
    ]
    for fields in bad:
        answer = api.post("/api/v1/experiments/create", json=good | fields)
        assert answer.status_code == 422, (fields, answer.status_code, answer.text)
        assert answer.json()["detail"]
    assert api.get("/api/v1/experiments/never-made/results").status_code == 404
    assert "never-made" not in api.get("/api/v1/experiments").json()["experiments"]


def _settled(api: httpx.Client, name: str, *, more_than: int = -1) -> dict[str, Any]:
    """The results once the workers have written what they counted."""
    found: dict[str, Any] = {}

    def is_written() -> bool:
        nonlocal found
        before, found = found, results(api, name)
        total = found["total_requests"]
        return bool(before) and total == before["total_requests"] and total > more_than

    wait_until(is_written, timeout_s=20, what="counts are written", poll_s=0.4)
    return found
