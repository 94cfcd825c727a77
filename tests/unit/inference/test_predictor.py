"""The flow of a prediction: what it asks for, what it survives, what it counts."""

import asyncio
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from control_plane.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    ModelNotReady,
    QueueFull,
    ShuttingDown,
    TritonUnavailable,
    UnknownExperiment,
    UnknownModel,
)
from control_plane.inference.identifiers import time_of
from control_plane.inference.requests import PredictRequest
from tests.unit.inference.cards import CHANNELS, LENGTH, card, hybrid_card
from tests.unit.inference.data_plane import DataPlane, data_plane, not_ready, register
from tests.unit.inference.virtual_time import now, run


def request(rows: int = 1, *, model_type: str = "cnn_lstm_hybrid", seed: int = 0, **options: Any) -> Any:
    shape = (rows, CHANNELS, LENGTH) if model_type == "cnn_lstm_hybrid" else (rows, CHANNELS)
    data = np.random.default_rng(seed).normal(size=shape).tolist()
    return PredictRequest(model_type=model_type, data=data, **options)


def predict(plane: DataPlane, asked: Any, **options: Any) -> Any:
    return plane.predictor.predict(asked, received=now(), **options)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_predict_answers_with_the_newest_version_and_every_field(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            answer = await predict(plane, request(2))
            assert (answer.model_type, answer.model_version) == ("cnn_lstm_hybrid", "v1.1")
            assert time_of(answer.request_id) is not None
            assert answer.predictions["classification_probs"].shape == (2, 3)
            assert answer.uncertainty is not None
            assert answer.ab_test_group is None
            assert answer.warnings == ()
            assert answer.processing_time_ms == pytest.approx(10.0, abs=0.001)
            assert answer.timestamp.endswith("Z")
            assert datetime.fromisoformat(answer.timestamp).tzinfo is not None
            assert plane.cache.in_flight == {"cnn_lstm_hybrid-v1.1": 0}

    run(scenario())


def test_predict_uses_the_requests_id_then_the_callers_then_a_new_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            named = request(request_id="mine")
            assert (await predict(plane, named, request_id="theirs")).request_id == "mine"
            assert (await predict(plane, request(), request_id="theirs")).request_id == "theirs"

    run(scenario())


def test_predict_loads_once_and_then_finds_it_loaded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            plane.cache.load_s = 1.5
            await predict(plane, request(model_version="v1.0"))
            await predict(plane, request(model_version="1.0"))
            assert plane.cache.loads == ["cnn_lstm_hybrid-v1.0"]

    run(scenario())


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"model_type": "nonesuch"}, UnknownModel),
        ({"experiment_id": "spring"}, UnknownExperiment),
        ({"data": [[1.0]]}, InvalidInput),
    ],
)
def test_predict_refuses_before_anything_is_loaded(
    tmp_path: Path, asked: dict[str, Any], expected: type
) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            fields = {
                "model_type": "cnn_lstm_hybrid",
                "data": request().data,
                "model_version": "v1.0",
            } | asked
            with pytest.raises(expected):
                await predict(plane, PredictRequest(**fields))
            assert plane.cache.loads == []
            assert plane.triton.calls == []

    run(scenario())


def test_predict_experiment_none_opts_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            assert (await predict(plane, request(experiment_id="none"))).ab_test_group is None

    run(scenario())


def test_predict_loads_again_what_triton_has_lost(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            await predict(plane, request())
            plane.triton.errors = [not_ready(), not_ready()]
            answer = await predict(plane, request())
            assert answer.model_version == "v1.1"
            assert plane.cache.lost == ["cnn_lstm_hybrid-v1.1"] * 2
            assert len(plane.cache.loads) == 3
            assert plane.cache.in_flight == {"cnn_lstm_hybrid-v1.1": 0}

    run(scenario())


def test_predict_gives_up_on_a_lost_model_at_the_deadline(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            plane.triton.errors = [not_ready() for _ in range(1000)]
            began = now()
            with pytest.raises(
                ModelNotReady | DeadlineExceeded if False else (ModelNotReady, DeadlineExceeded)
            ):
                await predict(plane, request(timeout_ms=5000))
            assert now() - began <= 5.0
            assert len(plane.triton.calls) < 15  # with pauses in between

    run(scenario())


def test_predict_passes_on_at_once_that_triton_is_down(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            plane.triton.errors = [TritonUnavailable("down")]
            with pytest.raises(TritonUnavailable):
                await predict(plane, request())
            assert len(plane.triton.calls) == 1
            assert plane.cache.in_flight == {"cnn_lstm_hybrid-v1.1": 0}

    run(scenario())


def test_predict_fails_at_its_deadline_while_the_model_loads(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            plane.cache.load_s = 60
            began = now()
            with pytest.raises(DeadlineExceeded):
                await predict(plane, request(timeout_ms=250))
            assert now() - began == pytest.approx(0.25)

    run(scenario())


@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000])
def test_predict_slices_large_requests_with_the_same_result(tmp_path: Path, batch_size: int) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path, batch_processing={"max_queue_size": 1}) as plane:
            answer = await predict(plane, request(100, batch_size=batch_size))
            rows = [rows for _, rows in plane.triton.calls]
            assert sum(rows) == 100
            assert max(rows) == min(64, batch_size)
            whole = await plane.triton.infer(
                "cnn_lstm_hybrid-v1.1",
                {"x__0": np.array(request(100).data, dtype=np.float32)},
                ["regression_pred__1"],
                timeout_s=1,
            )
            np.testing.assert_allclose(
                answer.predictions["base_regression_pred"], whole["regression_pred__1"]
            )

    run(scenario())


def test_predict_of_a_large_request_leaves_others_their_turn(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            large = asyncio.create_task(predict(plane, request(1000, batch_size=10)))
            await asyncio.sleep(0.025)
            began = now()
            await predict(plane, request(1))
            assert now() - began < 0.03
            assert not large.done()
            await large

    run(scenario())


def test_predict_with_a_failing_slice_fails_as_a_whole_and_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            plane.triton.errors = [InferenceFailed("bad")]
            with pytest.raises(InferenceFailed):
                await predict(plane, request(1000))
            await asyncio.sleep(1)
            assert len(plane.triton.calls) <= 4
            assert plane.predictor.queue_figures()["queues"]["cnn_lstm_hybrid-v1.1"] == {
                "waiting": 0,
                "calls_in_flight": 0,
            }

    run(scenario())


def test_predict_counts_each_outcome_once(tmp_path: Path) -> None:
    labels = {"model_type": "cnn_lstm_hybrid", "version": "v1.1"}

    def outcomes(*names: str) -> list[float]:
        return [counted("prediction_requests_total", **labels, outcome=name) for name in names]

    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            names = ("ok", "invalid", "unavailable", "failed", "cancelled")
            before = outcomes(*names)
            errors = counted("prediction_errors_total", **labels, error="triton-unavailable")
            rows = counted("prediction_rows_total", **labels)
            unknown = counted(
                "prediction_requests_total", model_type="unknown", version="unknown", outcome="invalid"
            )
            await predict(plane, request(3))
            with pytest.raises(InvalidInput):
                await predict(plane, PredictRequest(model_type="cnn_lstm_hybrid", data=[[1.0]]))
            plane.triton.errors = [TritonUnavailable("down"), InferenceFailed("bad")]
            with pytest.raises(TritonUnavailable):
                await predict(plane, request())
            with pytest.raises(InferenceFailed):
                await predict(plane, request())
            leaving = asyncio.create_task(predict(plane, request()))
            await asyncio.sleep(0.001)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            with pytest.raises(UnknownModel):
                await predict(plane, request(model_type="nonesuch"))
            assert [now - then for now, then in zip(outcomes(*names), before, strict=True)] == [1] * 5
            assert counted("prediction_errors_total", **labels, error="triton-unavailable") == errors + 1
            assert counted("prediction_rows_total", **labels) == rows + 3
            assert unknown + 1 == counted(
                "prediction_requests_total", model_type="unknown", version="unknown", outcome="invalid"
            )

    run(scenario())


def test_predict_at_once_beyond_the_queue_is_answered_or_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(
            tmp_path, batch_processing={"max_queue_size": 100, "max_batch_size": 8}
        ) as plane:
            results = await asyncio.gather(
                *(predict(plane, request(seed=seed)) for seed in range(1000)), return_exceptions=True
            )
            kinds = {type(result).__name__ for result in results}
            assert kinds == {"PredictAnswer", "QueueFull"}
            assert sum(isinstance(result, QueueFull) for result in results) == 900

    run(scenario())


def test_close_refuses_new_predictions_and_finishes_those_in_flight(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            accepted = [asyncio.create_task(predict(plane, request())) for _ in range(20)]
            await asyncio.sleep(0.005)
            closing = asyncio.create_task(plane.predictor.close(timeout_s=5))
            await asyncio.sleep(0)
            with pytest.raises(ShuttingDown):
                await predict(plane, request())
            with pytest.raises(ShuttingDown):
                await predict(plane, request(model_version="v1.0"))  # a dispatcher that is not there yet
            assert len(await asyncio.gather(*accepted)) == 20
            await closing

    run(scenario())


def test_dispatchers_of_versions_no_longer_registered_are_dropped(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path) as plane:
            await predict(plane, request(model_version="v1.0"))
            await predict(plane, request(model_version="v1.1"))
            shutil.rmtree(tmp_path / "cnn_lstm_hybrid-v1.0")
            await plane.registry.refresh()
            plane.predictor.forget_unregistered()
            assert set(plane.predictor.queue_figures()["queues"]) == {"cnn_lstm_hybrid-v1.1"}

    run(scenario())


def test_version_published_anew_is_served_by_its_new_card(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path, cards=[hybrid_card()]) as plane:
            await predict(plane, request())
            register(tmp_path, hybrid_card(max_batch_size=2, description="another"))
            await plane.registry.refresh()
            plane.triton.calls.clear()
            await predict(plane, request(8))
            assert [rows for _, rows in plane.triton.calls] == [2] * 4

    run(scenario())


def test_other_types_answer_by_tensor_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path, cards=[card("mine", "v2")]) as plane:
            answer = await predict(plane, request(model_type="mine"))
            np.testing.assert_allclose(
                answer.predictions["y"], np.array(request(model_type="mine").data, np.float32) + 1
            )
            assert answer.confidence_scores is None

    run(scenario())
