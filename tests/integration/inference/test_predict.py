"""POST /predict and /predict/batch of the whole application, on a real Triton and a real Redis."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from control_plane.embedded.triton import TritonServer
from control_plane.triton.client import connect
from tests.integration.inference.conftest import Serve
from tests.integration.inference.graphs import TABLE, write_lookup_model
from tests.support.repository import FEATURES, marker_of, write_identity_like_model


def fresh_type() -> str:
    return f"p{uuid.uuid4().hex[:10]}"


def request(model_type: str, *values: float, **options: Any) -> dict[str, Any]:
    return {"model_type": model_type, "data": [[value] * FEATURES for value in values]} | options


async def test_predict_loads_on_first_use_and_answers(serve: Serve, model_repository: Path) -> None:
    kind = fresh_type()
    write_identity_like_model(model_repository, kind, "v1.0")
    async with serve() as client:
        response = await client.post("/predict", json=request(kind, 1.5, 2.5))
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer["model_version"] == "v1.0"
        expected = np.array([[1.5] * FEATURES, [2.5] * FEATURES]) + marker_of(kind, "v1.0")
        np.testing.assert_allclose(answer["predictions"]["y"], expected, rtol=1e-6)
        assert answer["request_id"] == response.headers["x-request-id"]


async def test_predict_heals_when_triton_has_lost_the_model(
    serve: Serve, model_repository: Path, triton_server: TritonServer
) -> None:
    kind = fresh_type()
    write_identity_like_model(model_repository, kind, "v1")
    async with serve() as client, connect(triton_server.grpc_url) as triton:
        assert (await client.post("/predict", json=request(kind, 1.0))).status_code == 200
        await triton.unload(f"{kind}-v1")
        responses = await asyncio.gather(
            *(client.post("/predict", json=request(kind, 1.0)) for _ in range(5))
        )
        assert [response.status_code for response in responses] == [200] * 5


async def test_thousand_predictions_at_once_get_200_or_503(serve: Serve, model_repository: Path) -> None:
    kind = fresh_type()
    write_identity_like_model(model_repository, kind, "v1", max_batch_size=8)
    async with serve(batch_processing={"max_queue_size": 100}) as client:
        assert (await client.post("/predict", json=request(kind, 1.0))).status_code == 200
        responses = await asyncio.gather(
            *(client.post("/predict", json=request(kind, 1.0)) for _ in range(1000))
        )
        assert {response.status_code for response in responses} <= {200, 503}
        assert sum(response.status_code == 200 for response in responses) >= 100
        assert all("retry-after" in response.headers for response in responses if response.status_code == 503)


async def test_batch_over_versions_answers_each_from_its_own(serve: Serve, model_repository: Path) -> None:
    kind, lookup = fresh_type(), fresh_type()
    for version in ("v1", "v2"):
        write_identity_like_model(model_repository, kind, version)
    write_lookup_model(model_repository, lookup, "v1")
    requests: list[Any] = [
        request(kind, float(number), model_version=("v1", "v2")[number % 2]) for number in range(40)
    ]
    requests += [{"model_type": lookup, "data": [[1]]}, {"model_type": lookup, "data": [[99]]}]
    async with serve() as client:
        response = await client.post("/predict/batch", json={"requests": requests})
        assert response.status_code == 200, response.text
        results = response.json()["results"]
        for number in range(40):
            version = ("v1", "v2")[number % 2]
            assert results[number]["model_version"] == version
            expected = float(number) + marker_of(kind, version)
            np.testing.assert_allclose(
                results[number]["predictions"]["y"], [[expected] * FEATURES], rtol=1e-6
            )
        assert results[40]["predictions"]["y"] == [TABLE[1].tolist()]
        assert results[41]["error"]["status"] == 500
        assert "request_id" in results[41]


async def test_large_request_comes_back_whole_in_order(serve: Serve, model_repository: Path) -> None:
    kind = fresh_type()
    write_identity_like_model(model_repository, kind, "v1", max_batch_size=16)
    values = [float(value) for value in range(1000)]
    async with serve() as client:
        response = await client.post("/predict", json=request(kind, *values, batch_size=1000))
        got = np.array(response.json()["predictions"]["y"])[:, 0]
        np.testing.assert_allclose(got, np.array(values) + marker_of(kind, "v1"), rtol=1e-6)
        assert (await client.post("/predict", json=request(kind, *values, 1.0))).status_code == 422


async def test_prediction_while_triton_cannot_hold_the_deadline_is_504(
    serve: Serve, model_repository: Path
) -> None:
    kind = fresh_type()
    write_identity_like_model(model_repository, kind, "v1", work=20_000)
    async with serve() as client:
        assert (await client.post("/predict", json=request(kind, 1.0))).status_code == 200
        response = await client.post("/predict", json=request(kind, 1.0, timeout_ms=20))
        assert response.status_code == 504, response.text
