"""What Triton does while models come and go: the facts that the control plane builds on."""

import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferInput
from tritonclient.grpc import aio as triton_aio
from tritonclient.utils import InferenceServerException

from control_plane.embedded.triton import TritonServer
from tests.support.repository import marker_of, write_identity_like_model

_ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


async def _predict(client: triton_aio.InferenceServerClient, model: str, marker: float) -> None:
    tensor = InferInput("x", list(_ROWS.shape), "FP32")
    tensor.set_data_from_numpy(_ROWS)
    result = await client.infer(model, [tensor], client_timeout=20)
    np.testing.assert_array_equal(result.as_numpy("y"), _ROWS + np.float32(marker))


async def test_loads_and_unloads_under_traffic_fail_only_as_not_found(
    triton_server: TritonServer, model_repository: Path
) -> None:
    write_identity_like_model(model_repository, "traffic", "v1")
    outcomes: Counter[str] = Counter()
    done = asyncio.Event()

    async def call() -> None:
        async with triton_aio.InferenceServerClient(triton_server.grpc_url) as client:
            while not done.is_set():
                try:
                    await _predict(client, "traffic-v1", marker_of("traffic", "v1"))
                    outcomes["ok"] += 1
                except InferenceServerException as error:
                    outcomes[f"{error.status()} {error.message()}"] += 1
                    await asyncio.sleep(0.005)

    async with triton_aio.InferenceServerClient(triton_server.grpc_url) as client:
        callers = [asyncio.create_task(call()) for _ in range(8)]
        for _ in range(25):
            await client.load_model("traffic-v1")
            await asyncio.sleep(0.02)
            await client.unload_model("traffic-v1")
        done.set()
        await asyncio.gather(*callers)
    assert outcomes.pop("ok") > 25
    unknown = "StatusCode.NOT_FOUND Request for unknown model: 'traffic-v1'"
    assert set(outcomes) <= {f"{unknown} has no available versions", f"{unknown} is not found"}


async def test_load_while_the_model_unloads_gives_a_working_model(
    triton_server: TritonServer, model_repository: Path
) -> None:
    write_identity_like_model(model_repository, "turnaround", "v1")
    async with triton_aio.InferenceServerClient(triton_server.grpc_url) as client:
        for _ in range(3):
            await client.load_model("turnaround-v1")
            await client.unload_model("turnaround-v1")
            await client.load_model("turnaround-v1")
            await _predict(client, "turnaround-v1", marker_of("turnaround", "v1"))
        await client.unload_model("turnaround-v1")


async def test_failed_load_leaves_the_server_ready(
    triton_server: TritonServer, model_repository: Path
) -> None:
    write_identity_like_model(model_repository, "broken", "v1", broken=True)
    async with triton_aio.InferenceServerClient(triton_server.grpc_url) as client:
        with pytest.raises(InferenceServerException, match=r"model\.onnx can't be served"):
            await client.load_model("broken-v1")
        assert await client.is_server_ready()
        assert not await client.is_model_ready("broken-v1")


async def test_hidden_folders_of_the_repository_disturb_nothing(
    triton_server: TritonServer, model_repository: Path
) -> None:
    (model_repository / ".staging" / "half.1.2" / "1").mkdir(parents=True, exist_ok=True)
    write_identity_like_model(model_repository, "beside", "v1")
    async with triton_aio.InferenceServerClient(triton_server.grpc_url) as client:
        await client.load_model("beside-v1")
        states = {model.name: model.state for model in (await client.get_model_repository_index()).models}
        assert states[".staging"] == ""  # listed like a model that was never loaded
        assert states["beside-v1"] == "READY"
        await client.unload_model("beside-v1")
