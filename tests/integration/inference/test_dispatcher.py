"""The dispatcher before a real Triton."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from control_plane.embedded.triton import TritonServer
from control_plane.errors import InferenceFailed, ModelNotReady, QueueFull
from control_plane.inference.dispatcher import Dispatcher, DispatcherLimits
from control_plane.triton.client import TritonClient, connect
from control_plane.triton.http_inference import HttpInference, connect_http
from tests.integration.inference.graphs import TABLE, write_lookup_model
from tests.support.repository import FEATURES, marker_of, write_identity_like_model

STALL_S = 0.4


def fresh_type() -> str:
    """A model type that no other test has."""
    return f"t{uuid.uuid4().hex[:10]}"


class Recorder:
    """Passes calls on to Triton, and notes their rows."""

    def __init__(self, inference: HttpInference) -> None:
        self._inference = inference
        self.rows: list[int] = []
        self.in_flight = 0

    async def infer(self, model: str, inputs: Any, outputs: Any, *, timeout_s: float) -> Any:
        self.rows.append(len(next(iter(inputs.values()))))
        self.in_flight += 1
        try:
            return await self._inference.infer(model, inputs, outputs, timeout_s=timeout_s)
        finally:
            self.in_flight -= 1


@asynccontextmanager
async def dispatching(
    server: TritonServer, model: str, **limits: Any
) -> AsyncIterator[tuple[Dispatcher, Recorder, TritonClient]]:
    """A dispatcher of a loaded model."""
    bounds = {"max_rows": 64, "calls_in_flight": 2, "max_queue_size": 10_000} | limits
    async with connect(server.grpc_url) as client, connect_http(server.http_url) as inference:
        await client.load(model, timeout_s=60)
        recorder = Recorder(inference)
        dispatcher = Dispatcher(model=model, infer=recorder.infer, limits=DispatcherLimits(**bounds))
        yield dispatcher, recorder, client
        await dispatcher.close()
        await client.unload(model)


async def submit(dispatcher: Dispatcher, array: Any, *, timeout_s: float = 60.0, **options: Any) -> Any:
    answer = await dispatcher.submit(
        {"x": array}, ("y",), lane=array.shape[1:], deadline=time.monotonic() + timeout_s, **options
    )
    return answer["y"]


async def test_merged_results_equal_separate_calls(
    triton_server: TritonServer, model_repository: Path
) -> None:
    kind = fresh_type()
    write_identity_like_model(model_repository, kind, "v1")
    random = np.random.default_rng(0)
    arrays = [random.normal(size=(random.integers(1, 9), FEATURES)).astype(np.float32) for _ in range(200)]
    async with dispatching(triton_server, f"{kind}-v1") as (dispatcher, recorder, client):
        merged = await asyncio.gather(*(submit(dispatcher, array) for array in arrays))
        assert len(recorder.rows) < len(arrays) / 2
        assert max(recorder.rows) <= 64
        for array, answer in zip(arrays, merged, strict=True):
            alone = await client.infer(f"{kind}-v1", {"x": array}, ["y"], timeout_s=10)
            np.testing.assert_array_equal(answer, alone["y"])
            np.testing.assert_allclose(answer, array + marker_of(kind, "v1"), rtol=1e-6)


async def test_cancelling_one_of_three_merged_leaves_the_others_their_answers(
    triton_server: TritonServer, model_repository: Path
) -> None:
    kind = fresh_type()
    write_identity_like_model(model_repository, kind, "v1", work=5_000)
    arrays = [np.full((1, FEATURES), value, dtype=np.float32) for value in (1.0, 2.0, 3.0)]
    async with dispatching(triton_server, f"{kind}-v1") as (dispatcher, recorder, _):
        callers = [asyncio.create_task(submit(dispatcher, array)) for array in arrays]
        async with asyncio.timeout(10):
            while not recorder.in_flight:  # noqa: ASYNC110  the call itself is what is waited for
                await asyncio.sleep(0.001)
        assert recorder.rows == [3]
        callers[1].cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        for index in (0, 2):
            np.testing.assert_allclose(results[index], arrays[index] + marker_of(kind, "v1"))
        assert recorder.rows == [3]


async def test_member_on_which_the_model_fails_fails_alone(
    triton_server: TritonServer, model_repository: Path
) -> None:
    kind = fresh_type()
    model = write_lookup_model(model_repository, kind, "v1")
    wanted = [0, 1, 99, 2, -99, 0]
    async with dispatching(triton_server, model) as (dispatcher, recorder, _):
        results = await asyncio.gather(
            *(submit(dispatcher, np.array([[index]])) for index in wanted), return_exceptions=True
        )
        for index, result in zip(wanted, results, strict=True):
            if 0 <= index < len(TABLE):
                np.testing.assert_array_equal(result, TABLE[[index]])
            else:
                assert isinstance(result, InferenceFailed)
        assert sorted(recorder.rows) == [1] * len(wanted) + [len(wanted)]
        np.testing.assert_array_equal(await submit(dispatcher, np.array([[1]])), TABLE[[1]])


async def test_model_that_is_not_loaded_is_told_apart(
    triton_server: TritonServer, model_repository: Path
) -> None:
    kind = fresh_type()
    write_identity_like_model(model_repository, kind, "v1")
    async with dispatching(triton_server, f"{kind}-v1") as (dispatcher, recorder, client):
        array = np.zeros((1, FEATURES), dtype=np.float32)
        await submit(dispatcher, array)
        await client.unload(f"{kind}-v1")
        recorder.rows.clear()
        results = await asyncio.gather(*(submit(dispatcher, array) for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [ModelNotReady] * 3
        assert recorder.rows == [3]


async def test_thousand_at_once_on_a_queue_of_hundred_are_answered_or_refused(
    triton_server: TritonServer, model_repository: Path
) -> None:
    kind = fresh_type()
    write_identity_like_model(model_repository, kind, "v1", work=20)
    limits = {"max_rows": 8, "max_queue_size": 100}
    async with dispatching(triton_server, f"{kind}-v1", **limits) as (dispatcher, _, _):
        array = np.zeros((1, FEATURES), dtype=np.float32)
        results = await asyncio.gather(
            *(submit(dispatcher, array) for _ in range(1000)), return_exceptions=True
        )
        assert {type(result) for result in results} == {np.ndarray, QueueFull}
        assert sum(isinstance(result, np.ndarray) for result in results) == 100


@pytest.mark.parametrize("callers", [8])
async def test_no_request_of_five_thousand_stalls(
    triton_server: TritonServer, model_repository: Path, callers: int
) -> None:
    """Triton's own queue policies make single requests wait 500 ms; with ours in front of it none may."""
    kind = fresh_type()
    write_identity_like_model(model_repository, kind, "v1")
    async with dispatching(triton_server, f"{kind}-v1", calls_in_flight=2, max_rows=4) as (dispatcher, _, _):
        array = np.zeros((1, FEATURES), dtype=np.float32)
        waits: list[float] = []

        async def call_in_turn() -> None:
            for _ in range(5000 // callers):
                began = time.perf_counter()
                await submit(dispatcher, array)
                waits.append(time.perf_counter() - began)

        await call_in_turn() if callers == 1 else await asyncio.gather(
            *(call_in_turn() for _ in range(callers))
        )
        assert max(waits) < STALL_S
