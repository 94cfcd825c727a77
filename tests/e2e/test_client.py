"""The Python client against the real server: both body formats, both clients, and what happens when things go wrong."""

import asyncio
import threading
import time
import uuid
from pathlib import Path

import httpx
import numpy as np
import pytest

from control_plane.client import (
    AsyncClient,
    BodyFormat,
    Client,
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    FailedPrediction,
    InvalidRequest,
    NotFound,
    PredictItem,
    RetryPolicy,
)
from tests.support.checkpoints import SMALL, random_state, save_checkpoint
from tests.support.repository import FEATURES, marker_of, write_identity_like_model
from tests.support.server import Server, running_server, wait_until

HYBRID = "cnn_lstm_hybrid"
ROWS = np.arange(3 * FEATURES, dtype=np.float32).reshape(3, FEATURES)


@pytest.fixture
def kind(server: Server) -> str:
    name = f"client{uuid.uuid4().hex[:8]}"
    write_identity_like_model(server.repository, name, "v1.0")
    write_identity_like_model(server.repository, name, "v1.1")

    def is_known() -> bool:
        return httpx.get(f"{server.url}/api/v1/models/{name}/v1.1").status_code == 200

    wait_until(is_known, timeout_s=30, what=f"{name} registered")
    return name


@pytest.mark.parametrize("body_format", BodyFormat)
def test_hybrid_answers_the_same_in_either_format(server: Server, body_format: BodyFormat) -> None:
    version = f"client-{body_format}"
    path = server.registry / f"{version}.pth"
    save_checkpoint(path, random_state(SMALL, seed=6), SMALL)
    x = (
        np.random.default_rng(0)
        .normal(size=(2, SMALL["input_dim"], SMALL["sequence_length"]))
        .astype(np.float32)
    )
    with Client(server.url, body_format=body_format) as client:
        loaded = client.load_model(HYBRID, version, file_path=path.name)
        assert loaded.status == "published"
        answer = client.predict(HYBRID, x, model_version=version, interval=0.8)
        assert client._body_format is body_format  # it didn't have to fall back to JSON
        with Client(server.url, body_format=BodyFormat.JSON) as plain:
            same = plain.predict(HYBRID, x.astype(np.float64), model_version=version, interval=0.8)
    assert answer.model_version == version
    assert answer.predictions["classification_probs"].shape == (2, 3)
    for name, array in answer.predictions.items():
        np.testing.assert_allclose(array, same.predictions[name], rtol=1e-5, atol=1e-6)
    assert answer.uncertainty is not None
    assert answer.uncertainty.interval is not None
    assert answer.uncertainty.interval.level == 0.8
    assert (answer.uncertainty.interval.lower <= answer.uncertainty.interval.upper).all()


def test_models_through_their_life(server: Server, kind: str) -> None:
    with Client(server.url) as client:
        assert client.is_ready()
        assert client.health().status == "healthy"
        assert client.predict(kind, ROWS).model_version == "v1.1"
        loaded = client.load_model(kind, "v1.0")
        assert (loaded.status, loaded.triton_model) == ("registered", f"{kind}-v1.0")
        assert client.set_alias(kind, "production", "v1.0").previous is None
        answer = client.predict(kind, ROWS, model_version="production")
        np.testing.assert_allclose(answer.predictions["y"], ROWS + marker_of(kind, "v1.0"), rtol=1e-6)
        info = client.model(kind, "production")
        assert (info.version, info.state, info.aliases) == ("v1.0", "ready", ("production",))
        assert info.card is not None
        assert info.card["inputs"][0]["name"] == "x"
        assert {one.version for one in client.models() if one.model_type == kind} == {"v1.0", "v1.1"}
        assert client.remove_alias(kind, "production").version is None
        client.unload_model(kind, "v1.0")
        assert client.model(kind, "v1.0").state == "unloaded"
        statuses = [one.status for one in client.warm_up([(kind, "v1.0"), (kind, "v1.1"), (kind, "v9")])]
        assert statuses == ["warmed", "already_cached", "not_found"]


def test_batch_and_errors(server: Server, kind: str) -> None:
    with Client(server.url) as client:
        batch = client.predict_batch([PredictItem(kind, ROWS), PredictItem(kind, ROWS[:, :2])])
        good, bad = batch.results
        assert not isinstance(good, FailedPrediction)
        assert isinstance(bad, FailedPrediction)
        assert bad.problem.slug == "invalid-input"
        with pytest.raises(NotFound) as missing:
            client.predict(f"{kind}x", ROWS)
        assert missing.value.problem is not None
        assert missing.value.problem.slug == "unknown-model"
        with pytest.raises(InvalidRequest, match=r"NaN|finite"):
            client.predict(kind, np.full((1, FEATURES), np.nan))
        with pytest.raises(DeadlineExceeded):
            client.predict(kind, ROWS, timeout_ms=0.01)
        save_checkpoint(server.registry / f"{kind}.pth", random_state(SMALL, seed=8), SMALL)
        client.load_model(HYBRID, f"{kind}-a", file_path=f"{kind}.pth")
        save_checkpoint(server.registry / f"{kind}.pth", random_state(SMALL, seed=9), SMALL)
        with pytest.raises(Conflict):
            client.load_model(HYBRID, f"{kind}-a", file_path=f"{kind}.pth")


async def test_async_client_shares_calls_among_its_tasks(server: Server, kind: str) -> None:
    async with AsyncClient(server.url) as client:
        answers = await asyncio.gather(*(client.predict(kind, ROWS + number) for number in range(64)))
    for number, answer in enumerate(answers):
        expected = ROWS + number + marker_of(kind, "v1.1")
        np.testing.assert_allclose(answer.predictions["y"], expected, rtol=1e-6)


def test_nobody_listens() -> None:
    began = time.monotonic()
    with (
        Client(
            "http://127.0.0.1:9", timeout_s=5, retries=RetryPolicy(max_attempts=3, first_pause_s=0.01)
        ) as client,
        pytest.raises(ConnectionFailed),
    ):
        client.predict("mine", ROWS)
    assert time.monotonic() - began < 5


def test_overload_and_a_killed_triton_are_ridden_out(folder: Path) -> None:
    """A queue of 4, ten callers, and Triton killed in between: patient callers all get their answers."""
    settings = {
        "MODEL_SERVING__BATCH_PROCESSING__MAX_QUEUE_SIZE": "4",
        "MODEL_SERVING__BATCH_PROCESSING__MAX_BATCH_SIZE": "1",
    }
    write_identity_like_model(folder / "model_repository", "steady", "v1", work=200)
    with running_server(folder, settings) as server:
        wrong: list[object] = []

        def caller(number: int) -> None:
            patient = RetryPolicy(max_attempts=1000, longest_pause_s=0.5)
            with Client(server.url, timeout_s=90, retries=patient) as client:
                for turn in range(20):
                    row = np.full((1, FEATURES), number * 100 + turn, np.float32)
                    answer = client.predict("steady", row).predictions["y"]
                    if not np.allclose(answer, row + marker_of("steady", "v1"), rtol=1e-5):
                        wrong.append((number, turn, answer))

        def guarded(number: int) -> None:
            try:
                caller(number)
            except Exception as error:  # noqa: BLE001  the test looks at it
                wrong.append(error)

        threads = [threading.Thread(target=guarded, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        server.kill("triton")
        for thread in threads:
            thread.join()
        assert wrong == []
