"""What answers for a version that is overloaded, in virtual time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import REGISTRY

from control_plane.errors import (
    DeadlineExceeded,
    InferenceFailed,
    Overloaded,
    QueueFull,
    ServingError,
    ShuttingDown,
)
from control_plane.inference.batch import predict_batch
from control_plane.inference.open_inference import InferRequest, WireTensor
from control_plane.inference.open_inference_answers import encode_infer
from control_plane.inference.requests import PredictRequest, decode_batch
from control_plane.models.card import ModelCard, ResponseCacheOptions, ServingOptions
from tests.unit.inference.cards import card, tensor
from tests.unit.inference.data_plane import DataPlane, data_plane
from tests.unit.inference.virtual_time import now, run

KEPT = ResponseCacheOptions(ttl_s=1, stale_for_s=60)


def version(name: str, *, features: int = 4, **serving: Any) -> ModelCard:
    return card(
        "mine", name, inputs=(tensor("x", (features,)),), max_batch_size=1, serving=ServingOptions(**serving)
    )


@asynccontextmanager
async def plane_of(tmp_path: Path, *cards: ModelCard) -> AsyncIterator[DataPlane]:
    """One call of one row at a time, four requests waiting; every version is loaded."""
    batching = {"calls_in_flight": 1, "max_queue_size": 4}
    async with data_plane(tmp_path, cards=cards, batch_processing=batching) as plane:
        for one in cards:
            plane.cache.loaded.add(one.triton_model)
        yield plane


def ask(plane: DataPlane, name: str = "v2", value: float = 1.0, **options: Any) -> Any:
    request = PredictRequest(model_type="mine", model_version=name, data=[[value] * 4], **options)
    return plane.predictor.predict(request, received=now())


async def fill(plane: DataPlane, name: str = "v2") -> asyncio.Future[Any]:
    """One call in flight and four requests waiting, of different inputs; they take half a second."""
    plane.triton.service_s = 0.1
    work = []
    for value in range(5):
        work.append(asyncio.create_task(ask(plane, name, 100.0 + value, on_overload="reject")))
        await asyncio.sleep(0.001)
    return asyncio.gather(*work)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_fallback_answers_when_the_queue_is_full(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane_of(tmp_path, version("v1"), version("v2", fallback="v1")) as plane:
            work = await fill(plane)
            degraded = {"model_type": "mine", "version": "v2", "by": "fallback"}
            answered = {"model_type": "mine", "version": "v1", "outcome": "ok"}
            refused = {"model_type": "mine", "version": "v2", "outcome": "overloaded"}
            before = [
                counted("predictions_degraded_total", **degraded),
                counted("prediction_requests_total", **answered),
                counted("prediction_requests_total", **refused),
            ]
            answer = await ask(plane, on_overload="degrade")
            assert (answer.model_version, answer.degraded, answer.cached) == ("v1", "fallback", False)
            assert answer.warnings == ("The server is overloaded: v1 answered, since v2 could not in time.",)
            assert ("mine-v1", 1) in plane.triton.calls
            after = [
                counted("predictions_degraded_total", **degraded),
                counted("prediction_requests_total", **answered),
                counted("prediction_requests_total", **refused),
            ]
            assert [now_ - then for now_, then in zip(after, before, strict=True)] == [1, 1, 0]
            assert {one.degraded for one in await work} == {None}
            assert set(plane.cache.in_flight.values()) == {0}

    run(scenario())


def test_fallback_answers_what_would_come_too_late(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane_of(tmp_path, version("v1"), version("v2", fallback="v1")) as plane:
            plane.triton.service_s = 0.1
            for value in range(6):
                await ask(plane, value=value)
            work = asyncio.gather(*(ask(plane) for _ in range(3)))
            await asyncio.sleep(0.001)
            with pytest.raises(Overloaded) as refused:
                await ask(plane, timeout_ms=200)
            assert "on_overload: degrade" in (refused.value.remedy or "")
            assert (await ask(plane, timeout_ms=200, on_overload="degrade")).model_version == "v1"
            assert (await ask(plane, timeout_ms=2000, on_overload="degrade")).model_version == "v2"
            await work

    run(scenario())


@pytest.mark.parametrize(
    ("card_says", "request_says", "is_answered"),
    [
        ("reject", None, False),
        ("degrade", None, True),
        ("reject", "degrade", True),
        ("degrade", "reject", False),
    ],
)
def test_request_goes_before_the_version(
    tmp_path: Path, card_says: Any, request_says: Any, *, is_answered: bool
) -> None:
    async def scenario() -> None:
        cards = (version("v1"), version("v2", fallback="v1", on_overload=card_says))
        async with plane_of(tmp_path, *cards) as plane:
            work = await fill(plane)
            if is_answered:
                assert (await ask(plane, on_overload=request_says)).degraded == "fallback"
            else:
                with pytest.raises(QueueFull):
                    await ask(plane, on_overload=request_says)
            await work

    run(scenario())


@pytest.mark.parametrize("fallback", [None, "v9", "v2", "unloaded", "narrow", "broken", "busy", "circle"])
def test_refusal_stands_where_no_step_holds(tmp_path: Path, fallback: str | None) -> None:
    """A fallback that is missing, itself, not loaded, of other inputs, failing, overloaded too, or falls back to us."""

    async def scenario() -> None:
        cards = (
            version("v1"),
            version("unloaded"),
            version("broken"),
            version("narrow", features=3),
            version("busy", fallback="v1"),
            version("circle", fallback="v2"),
            version("v2", fallback=fallback, on_overload="degrade"),
        )
        async with plane_of(tmp_path, *cards) as plane:
            plane.cache.loaded.remove("mine-unloaded")
            work = [await fill(plane)]
            if fallback in ("busy", "circle"):
                work.append(await fill(plane, fallback))
            if fallback == "broken":
                plane.triton.errors.append(InferenceFailed("it broke"))
                plane.triton.service_s = 0.01
            calls = len(plane.triton.calls)
            with pytest.raises(QueueFull) as caught:
                await ask(plane)
            assert "mine-v2 has" in caught.value.detail
            assert len(plane.triton.calls) == calls + (fallback == "broken")
            assert plane.cache.loads == []
            for one in work:
                await one

    run(scenario())


def test_fallback_that_takes_all_the_time_is_a_deadline_and_no_refusal(tmp_path: Path) -> None:
    async def scenario() -> None:
        cards = (version("v1"), version("v2", fallback="v1", response_cache=KEPT))
        async with plane_of(tmp_path, *cards) as plane:
            work = await fill(plane)
            plane.triton.service_s = 5.0
            began = now()
            with pytest.raises(DeadlineExceeded):
                await ask(plane, on_overload="degrade", timeout_ms=200)
            assert now() - began == pytest.approx(0.2)
            plane.triton.service_s = 0.1
            await work

    run(scenario())


def test_older_answer_stands_in_until_it_is_too_old(tmp_path: Path) -> None:
    async def scenario() -> None:
        cards = (version("narrow", features=3), version("v2", fallback="narrow", response_cache=KEPT))
        async with plane_of(tmp_path, *cards) as plane:
            first = await ask(plane, value=7.0)
            await asyncio.sleep(30)
            work = await fill(plane)
            stale = await ask(plane, value=7.0, on_overload="degrade")
            assert (stale.degraded, stale.cached, stale.model_version) == ("stale", True, "v2")
            assert stale.warnings == (
                "The server is overloaded: this answer to the same input is 30.0 s old.",
            )
            assert stale.predictions["y"].tobytes() == first.predictions["y"].tobytes()
            with pytest.raises(QueueFull):
                await ask(plane, value=8.0, on_overload="degrade")
            with pytest.raises(QueueFull):
                await ask(plane, value=7.0)
            await work
            await asyncio.sleep(31)
            work = await fill(plane)
            with pytest.raises(QueueFull):
                await ask(plane, value=7.0, on_overload="degrade")
            await work

    run(scenario())


def test_fallback_comes_before_an_older_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        cards = (version("v1"), version("v2", fallback="v1", response_cache=KEPT))
        async with plane_of(tmp_path, *cards) as plane:
            await ask(plane, value=7.0)
            await asyncio.sleep(2)
            work = await fill(plane)
            assert (await ask(plane, value=7.0, on_overload="degrade")).degraded == "fallback"
            await work

    run(scenario())


def test_client_that_leaves_while_the_fallback_answers_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane_of(tmp_path, version("v1"), version("v2", fallback="v1")) as plane:
            work = await fill(plane)
            leaver = asyncio.create_task(ask(plane, on_overload="degrade"))
            await asyncio.sleep(0.01)
            leaver.cancel()
            await asyncio.gather(leaver, return_exceptions=True)
            assert leaver.cancelled()
            assert plane.cache.in_flight["mine-v1"] == 0
            await work

    run(scenario())


def test_stopping_worker_does_not_degrade(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane_of(tmp_path, version("v1"), version("v2", fallback="v1")) as plane:
            work = await fill(plane)
            closing = asyncio.create_task(plane.predictor.close(timeout_s=10))
            await asyncio.sleep(0)
            with pytest.raises(ShuttingDown):
                await ask(plane, on_overload="degrade")
            await work
            await closing

    run(scenario())


def test_members_of_a_batch_degrade_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane_of(tmp_path, version("v1"), version("v2", fallback="v1")) as plane:
            work = await fill(plane)
            members = [
                {"model_type": "mine", "model_version": "v2", "data": [[1.0] * 4], "on_overload": wish}
                for wish in ("degrade", "reject")
            ]
            batch = decode_batch(msgspec.json.encode({"requests": members, "priority": 3}))
            result = await predict_batch(plane.predictor, batch, received=now(), clock=now)
            outcomes = [
                type(one.error).__name__ if hasattr(one, "error") else one.degraded for one in result.results
            ]
            assert outcomes == ["fallback", "QueueFull"]
            await work

    run(scenario())


def test_tensors_degrade_and_say_so(tmp_path: Path) -> None:
    def tensors(**options: Any) -> InferRequest:
        fields: dict[str, Any] = {
            "name": "mine-v2", "version": None, "outputs": (), "is_binary_output": False, "id": None,
            "inputs": (WireTensor(name="x", datatype="FP32", shape=(1, 4), json=b"[1,2,3,4]", binary=None),),
            "routing_key": None, "covariate": None, "experiment_id": None, "priority": 3, "timeout_s": None,
            "on_overload": None,
        }  # fmt: skip
        return InferRequest(**(fields | options))

    async def scenario() -> None:
        async with plane_of(tmp_path, version("v1"), version("v2", fallback="v1")) as plane:
            work = await fill(plane)
            with pytest.raises(QueueFull):
                await plane.predictor.infer(tensors(), received=now(), request_id="r")
            request = tensors(on_overload="degrade")
            answer = await plane.predictor.infer(request, received=now(), request_id="r")
            document = msgspec.json.decode(encode_infer(request, answer).body)
            assert document["model_version"] == "v1"
            assert document["parameters"] == {
                "degraded": "fallback",
                "warning": "The server is overloaded: v1 answered, since v2 could not in time.",
            }
            assert document["outputs"][0]["data"] == [2, 3, 4, 5]
            await work

    run(scenario())


def test_flood_that_degrades_is_answered_more_than_one_that_does_not(tmp_path: Path) -> None:
    async def answered(wish: str) -> int:
        async with plane_of(tmp_path / wish, version("v1"), version("v2", fallback="v1")) as plane:
            work = await fill(plane)

            async def one(value: float) -> bool:
                try:
                    await ask(plane, value=value, on_overload=wish, timeout_ms=1000)
                except ServingError:
                    return False
                return True

            results = await asyncio.gather(*(one(value) for value in np.arange(20)))
            await work
            return sum(results)

    assert run(answered("degrade")) == 4
    assert run(answered("reject")) == 0


def test_refusal_does_not_suggest_what_was_sent(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane_of(tmp_path, version("v2")) as plane:
            plane.triton.service_s = 0.1
            for value in range(6):
                await ask(plane, value=value)
            work = asyncio.gather(*(ask(plane) for _ in range(3)))
            await asyncio.sleep(0.001)
            with pytest.raises(Overloaded) as refused:
                await ask(plane, timeout_ms=200, on_overload="degrade")
            assert refused.value.remedy == "Try again after Retry-After, or raise timeout_ms."
            await work

    run(scenario())
