"""Large requests, which go in slices: let in whole or not at all, in virtual time."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from control_plane.errors import Overloaded
from control_plane.inference.requests import PredictRequest
from tests.unit.inference.data_plane import DataPlane, data_plane
from tests.unit.inference.virtual_time import now, run


async def ask(plane: DataPlane, rows: int, **options: Any) -> Any:
    data = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4).tolist()
    request = PredictRequest(model_type="mine", model_version="v2", data=data, **options)
    return await plane.predictor.predict(request, received=now())


async def learn(plane: DataPlane) -> None:
    """Lets the dispatcher see that a call takes as long whatever its rows."""
    for rows in (1, 8) * 4:
        await ask(plane, rows)
    plane.triton.calls.clear()


def batching(**options: int) -> dict[str, int]:
    return {"max_batch_size": 8, "calls_in_flight": 4} | options


def test_nothing_of_a_refused_large_request_is_sent(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path, batch_processing=batching()) as plane:
            await learn(plane)
            other = asyncio.create_task(ask(plane, 1))
            await asyncio.sleep(0.001)
            with pytest.raises(Overloaded):
                await ask(plane, 800, timeout_ms=300)
            await other
            await asyncio.sleep(1)
            assert plane.triton.calls == [("mine-v2", 1)]

    run(scenario())


@pytest.mark.parametrize(("timeout_ms", "is_let_in"), [(1_000, False), (6_000, True)])
def test_smaller_slices_are_expected_to_take_longer(
    tmp_path: Path, timeout_ms: int, *, is_let_in: bool
) -> None:
    """300 calls of one row take 3 s; 38 of eight would take 0.4."""

    async def scenario() -> None:
        async with data_plane(tmp_path, batch_processing=batching(calls_in_flight=1)) as plane:
            await learn(plane)
            other = asyncio.create_task(ask(plane, 1))
            await asyncio.sleep(0.001)
            if is_let_in:
                await ask(plane, 300, batch_size=1, timeout_ms=timeout_ms)
            else:
                with pytest.raises(Overloaded):
                    await ask(plane, 300, batch_size=1, timeout_ms=timeout_ms)
            await other

    run(scenario())


@pytest.mark.parametrize("calls_in_flight", [1, 4])
def test_stopping_worker_ends_a_large_request_that_it_runs(tmp_path: Path, calls_in_flight: int) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path, batch_processing=batching(calls_in_flight=calls_in_flight)) as plane:
            large = asyncio.create_task(ask(plane, 80))
            await asyncio.sleep(0.015)
            await plane.predictor.close(timeout_s=10)
            assert len((await large).predictions["y"]) == 80
            assert sum(rows for _, rows in plane.triton.calls) == 80

    run(scenario())
