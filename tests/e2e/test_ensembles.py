"""An ensemble that learns, as its users have it: the demo agents, two workers, the real Triton and Redis."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http
from scipy import stats

from control_plane.ensembles.credit import Decay, combine, contribution
from control_plane.ensembles.credit import credits as agents_credits
from control_plane.ensembles.policies import PolicySettings, learned_weights
from tests.support.server import ROOT, Server, running_server, wait_until

MODEL = "rl_ensemble-v1.0"
SETTINGS = {"API_WORKERS": "2"}
HALF_LIFE_HOURS = 0.01
GIVER = """
import itertools, json, random, sys, time
import httpx
url, path, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
shuffled = random.Random(seed)
given = json.load(open(path))
given += shuffled.sample(given, len(given) // 5)
shuffled.shuffle(given)
accepted = 0
while given:
    size = shuffled.choice((1, 10, 300))
    part, given = given[:size], given[size:]
    with httpx.Client(base_url=url, timeout=60) as api:  # a new connection: another worker may take it
        for attempt in itertools.count():
            answer = api.post("/api/v1/feedback", json=part)
            if shuffled.random() < 0.1 and attempt == 0:
                continue  # as if the answer had been lost
            if answer.status_code == 202:
                break
            assert answer.status_code == 503 and attempt < 50, answer.text
            time.sleep(0.2)
        for result in answer.json()["results"]:
            assert result["status"] in ("accepted", "duplicate"), result
print("done")
"""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("ensembles"), SETTINGS) as server:
        with server.client() as api:
            body = {
                "model_type": "rl_ensemble",
                "version": "v1.0",
                "file_path": "checkpoints/rl_ensemble-v1.0.zip",
            }
            loaded = api.post("/api/v1/models/load", json=body)
            assert loaded.status_code == 200, loaded.text
        yield server


@pytest.fixture
def api(deployment: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=deployment.url, timeout=60) as client:
        assert client.post(f"/api/v1/ensembles/{MODEL}/reset").status_code == 200
        assert client.put(f"/api/v1/ensembles/{MODEL}", json={}).status_code == 200
        yield client


@pytest.fixture(scope="module")
def observations() -> np.ndarray:
    with np.load(ROOT / "checkpoints/eurusd_test_observations.npz") as archive:
        return archive["x"]


def predict(api: httpx.Client, data: Any, **options: Any) -> dict[str, Any]:
    answer = api.post("/api/v1/predict", json={"model_type": "rl_ensemble", "data": data, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def sampled(api: httpx.Client, rows: Any) -> list[dict[str, Any]]:
    """One request for each row, in batches of 100."""
    answers = []
    for start in range(0, len(rows), 100):
        requests = [
            {"model_type": "rl_ensemble", "data": [row.tolist()], "action_selection": "sample"}
            for row in rows[start : start + 100]
        ]
        batch = api.post("/api/v1/predict/batch", json={"requests": requests}).json()
        assert batch["failed_predictions"] == 0, batch
        answers += batch["results"]
    return answers


def agent_probs(answer: dict[str, Any]) -> np.ndarray:
    probs = [agent["action_probs"][0] for agent in answer["predictions"]["agents"].values()]
    return np.array(probs, np.float32).astype(np.float64)  # as they were before they became text


def test_agents_mix_by_the_weights_over_rest_batch_and_open_inference(
    deployment: Server, api: httpx.Client, observations: np.ndarray
) -> None:
    x = observations[:40]
    answer = predict(api, x.tolist())
    names = list(answer["predictions"]["agents"])
    assert answer["predictions"]["propensity"] == [1.0] * 40
    np.testing.assert_allclose(answer["uncertainty"]["ensemble_weights"], 1 / len(names), atol=1e-6)
    probs = np.array([agent["action_probs"] for agent in answer["predictions"]["agents"].values()])
    np.testing.assert_allclose(answer["predictions"]["action_probs"], probs.mean(axis=0), atol=1e-5)
    assert answer["predictions"]["action"] == np.argmax(answer["predictions"]["action_probs"], 1).tolist()
    pinned = [0.0] * len(names)
    pinned[1] = 1.0
    one = predict(api, x.tolist(), weights=pinned)
    np.testing.assert_allclose(one["predictions"]["action_probs"], probs[1], atol=1e-5)
    by_name = predict(api, x.tolist(), weights=dict(zip(names, pinned, strict=True)))
    assert by_name["predictions"] == one["predictions"]

    with tritonclient.http.InferenceServerClient(deployment.url.removeprefix("http://")) as client:
        tensor = tritonclient.http.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        learned = client.infer("rl_ensemble", [tensor]).as_numpy("action_probs")
        weights = tritonclient.http.InferInput("weights", [40, len(names)], "FP32")
        weights.set_data_from_numpy(np.tile(np.array(pinned, np.float32), (40, 1)))
        given = client.infer(MODEL, [tensor, weights]).as_numpy("action_probs")
    np.testing.assert_allclose(learned, answer["predictions"]["action_probs"], atol=1e-6)
    np.testing.assert_allclose(given, one["predictions"]["action_probs"], atol=1e-6)


def test_propensity_is_the_frequency_of_the_action(api: httpx.Client, observations: np.ndarray) -> None:
    answers = sampled(api, np.tile(observations[7], (20_000, 1)))
    actions = np.array([answer["predictions"]["action"][0] for answer in answers])
    propensity: dict[int, float] = {}
    for answer in answers:
        action, stated = answer["predictions"]["action"][0], answer["predictions"]["propensity"][0]
        assert propensity.setdefault(action, stated) == pytest.approx(stated, rel=1e-5)
    counts = np.bincount(actions, minlength=3)
    shares = np.array([propensity.get(action, 0.0) for action in range(3)])
    seen = shares > 0
    assert shares.sum() == pytest.approx(1, abs=1e-3)
    assert stats.chisquare(counts[seen], counts.sum() * shares[seen] / shares.sum()).pvalue > 1e-4


@pytest.mark.parametrize("half_life_hours", [None, HALF_LIFE_HOURS])
def test_ten_thousand_rewards_from_four_processes_count_once_each(
    deployment: Server,
    api: httpx.Client,
    observations: np.ndarray,
    tmp_path: Path,
    half_life_hours: float | None,
) -> None:
    assert api.put(f"/api/v1/ensembles/{MODEL}", json={"half_life_hours": half_life_hours}).status_code == 200
    count = 3_000 if half_life_hours else 10_000
    chosen = np.random.default_rng(3).integers(len(observations), size=count)
    answers = sampled(api, observations[chosen])
    noise = random.Random(1)
    rewards = {
        answer["request_id"]: (answer["predictions"]["action"][0] - 1) * 0.5 + noise.gauss(0, 1)
        for answer in answers
    }
    everything = [{"request_id": one, "reward": reward} for one, reward in rewards.items()]
    processes = []
    for number in range(4):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(everything[number::4]))
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", GIVER, deployment.url, str(path), str(number)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, "done\n"), errors
    ensemble = api.get(f"/api/v1/ensembles/{MODEL}").json()
    assert ensemble["rewards"] == count

    exported = api.get(f"/api/v1/ensembles/{MODEL}/export").json()
    half_life_s = None if half_life_hours is None else half_life_hours * 3600
    now_s = exported["exported_at"]
    sums = combine(
        {int(period): np.array(rows) for period, rows in exported["sums"].items()},
        Decay(half_life_s=half_life_s),
        now_s,
    )
    offline = np.zeros_like(sums)
    for answer in answers:
        # The decision is timed when the answer is ready; its timestamp has milliseconds.
        at = _seconds(answer["timestamp"])
        weight = 1.0 if half_life_s is None else 2.0 ** ((at - now_s) / half_life_s)
        weights = np.array(answer["uncertainty"]["ensemble_weights"], np.float32).astype(np.float64)
        shares = agents_credits(agent_probs(answer), weights, answer["predictions"]["action"][0])
        offline += contribution(shares, rewards[answer["request_id"]], weight)
    # One reward more or less would show; with a half-life in the log only: answers show milliseconds.
    rtol = 1e-9 if half_life_s is None else 1e-3
    np.testing.assert_allclose(sums, offline, rtol=rtol, atol=rtol * np.abs(offline).max())
    evaluation = api.get(f"/api/v1/ensembles/{MODEL}/evaluation").json()
    assert (evaluation["entries"], evaluation["left_out"], evaluation["sampled"]) == (count, 0, count)
    assert evaluation["logged"]["estimate"] == pytest.approx(np.mean(list(rewards.values())), rel=1e-9)
    agents = tuple(ensemble["weights"])
    expected, _ = learned_weights(PolicySettings(half_life_hours=half_life_hours), agents, sums)
    if half_life_s is None:
        np.testing.assert_allclose(list(ensemble["weights"].values()), expected, atol=1e-12)
    wait_until(
        lambda: (
            max(predict(api, observations[:1].tolist())["uncertainty"]["ensemble_weights"])
            == pytest.approx(max(api.get(f"/api/v1/ensembles/{MODEL}").json()["weights"].values()), abs=0.02)
        ),
        timeout_s=10,
        what="requests are mixed by the weights that were learned",
    )


def test_log_evaluates_other_weights_and_refuses_where_nothing_was_drawn(
    api: httpx.Client, observations: np.ndarray
) -> None:
    answers = sampled(api, observations[np.random.default_rng(4).integers(len(observations), size=1_000)])
    give = [
        {"request_id": answer["request_id"], "reward": float(answer["predictions"]["action"][0] == 2)}
        for answer in answers
    ]
    assert api.post("/api/v1/feedback", json=give).status_code == 202
    names = list(api.get(f"/api/v1/ensembles/{MODEL}").json()["weights"])
    answer = api.get(f"/api/v1/ensembles/{MODEL}/evaluation", params={"weights": f"{names[0]}:1"})
    assert answer.status_code == 200, answer.text
    evaluation = answer.json()
    assert evaluation["status"] == "ok"
    assert {"uniform", "current", "given"} <= evaluation["policies"].keys() | evaluation[
        "not_identifiable"
    ].keys()
    value = evaluation["policies"]["uniform"]
    assert value["interval"][0] < value["estimate"] < value["interval"][1]
    assert value["effective_sample_size"] > 0
    for wrong in ("nobody:1", f"{names[0]}:0.5, {names[0]}:0.5"):
        refused = api.get(f"/api/v1/ensembles/{MODEL}/evaluation", params={"weights": wrong})
        assert refused.status_code == 422, wrong


def test_feedback_and_policies_that_fit_nothing_are_refused_and_change_nothing(
    api: httpx.Client, observations: np.ndarray
) -> None:
    known = predict(api, observations[:1].tolist(), action_selection="sample")["request_id"]
    one = api.post("/api/v1/feedback", json={"request_id": known, "reward": 1.0})
    assert (one.status_code, one.json()) == (202, {"request_id": known, "status": "accepted"})
    url = f"/api/v1/ensembles/{MODEL}"
    wait_until(lambda: bool(api.get(url).json()["history"]), timeout_s=10, what="the history knows of it")
    before = api.get(url).json()
    refused: list[tuple[str, str, str, int]] = [
        ("POST", "/api/v1/feedback", '{"request_id": "KNOWN", "reward": 2.0}', 409),
        ("POST", "/api/v1/feedback", '{"request_id": "KNOWN", "reward": NaN}', 422),
        ("POST", "/api/v1/feedback", '{"request_id": "KNOWN", "reward": 1e999}', 422),
        ("POST", "/api/v1/feedback", '{"request_id": "KNOWN", "reward": -Infinity}', 422),
        ("POST", "/api/v1/feedback", '{"request_id": "KNOWN", "reward": "1"}', 422),
        ("POST", "/api/v1/feedback", '{"request_id": "KNOWN"}', 422),
        ("POST", "/api/v1/feedback", '{"request_id": "KNOWN", "reward": 1, "rewrd": 1}', 422),
        ("POST", "/api/v1/feedback", '{"request_id": "nobody", "reward": 1}', 404),
        (
            "POST",
            "/api/v1/feedback",
            '{"request_id": "01900000-0000-7000-8000-000000000000", "reward": 1}',
            410,
        ),
        ("POST", "/api/v1/feedback", "[]", 422),
        ("POST", "/api/v1/feedback", "{", 400),
        ("POST", "/api/v1/feedback", json.dumps([{"request_id": "a", "reward": 1}] * 1001), 422),
        ("PUT", url, '{"policy": "greedy"}', 422),
        ("PUT", url, '{"policy": "fixed", "weights": {"ppo": 1}}', 422),
        ("PUT", url, '{"half_life_hours": 1e-300}', 422),
        ("PUT", url, '{"policy": "softmax", "temperature": 5e-324}', 422),
        ("PUT", url, '{"half_life_hours": NaN}', 422),
        ("PUT", "/api/v1/ensembles/rl_ensemble-v9", "{}", 404),
        ("POST", f"{url}/import", "{}", 422),
    ]
    for method, path, body, status in refused:
        answer = api.request(
            method, path, content=body.replace("KNOWN", known), headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == status, (body[:100], answer.text)
        document = answer.json()
        assert document["status"] == status
        assert document["detail"]
    row = api.post("/api/v1/feedback", json={"request_id": known, "reward": 1.0, "row": 3})
    assert row.status_code == 422
    assert (row.json()["expected"], row.json()["got"]) == ("from 0 to 0", "3")
    assert row.json()["errors"][0]["path"] == "row"
    for weights in ([0.5, 0.5], [-1, 1, 1, 0, 0], [0.1] * 5, {"nobody": 1.0}):
        body = {"model_type": "rl_ensemble", "data": observations[:1].tolist(), "weights": weights}
        assert api.post("/api/v1/predict", json=body).status_code == 422
    wrong_size = {"model_type": "rl_ensemble", "data": [[1.0, 2.0]]}
    assert api.post("/api/v1/predict", json=wrong_size).status_code == 422
    after = api.get(f"/api/v1/ensembles/{MODEL}").json()
    assert {**after, "timestamp": None} == {**before, "timestamp": None}


def test_without_redis_predictions_go_on_and_feedback_is_refused_until_it_is_back(
    deployment: Server, api: httpx.Client, observations: np.ndarray
) -> None:
    answers = sampled(api, observations[:200])
    give = [{"request_id": one["request_id"], "reward": one["predictions"]["action"][0]} for one in answers]
    assert api.post("/api/v1/feedback", json=give).status_code == 202
    time.sleep(2.5)  # longer than its append-only file waits for the disk
    weights = api.get(f"/api/v1/ensembles/{MODEL}").json()["weights"]
    wait_until(
        lambda: (
            predict(api, observations[:1].tolist())["uncertainty"]["ensemble_weights"]
            == pytest.approx(list(weights.values()), abs=1e-6)
        ),
        timeout_s=10,
        what="learned weights in force",
    )
    deployment.kill("redis")
    refused, warned, decided = False, False, []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (refused and warned and decided):
        answer = predict(api, observations[:1].tolist(), action_selection="sample")
        assert answer["uncertainty"]["ensemble_weights"] == pytest.approx(list(weights.values()), abs=1e-6)
        if any("Redis" in warning for warning in answer["warnings"]):
            warned = True
            decided.append(answer["request_id"])
        given = api.post("/api/v1/feedback", json=give[:1])
        if given.status_code == 503:
            refused = True
            assert int(given.headers["retry-after"]) >= 1
    assert refused
    assert warned

    def is_taken() -> bool:
        answer = api.post("/api/v1/feedback", json=[{"request_id": one, "reward": 1.0} for one in decided])
        return answer.status_code == 202 and {r["status"] for r in answer.json()["results"]} <= {
            "accepted",
            "duplicate",
        }

    wait_until(is_taken, timeout_s=30, what="decisions made without Redis take feedback")
    again = api.post("/api/v1/feedback", json=give)
    assert {result["status"] for result in again.json()["results"]} == {"duplicate"}
    assert api.get(f"/api/v1/ensembles/{MODEL}").json()["rewards"] == 200 + len(decided)


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
