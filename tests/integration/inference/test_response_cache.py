"""The response cache of the whole application, on a real Triton and a real Redis."""

import uuid
from pathlib import Path

import httpx
import numpy as np

from control_plane.embedded.triton import TritonServer
from tests.integration.inference.conftest import Serve
from tests.support.model_worker import eventually
from tests.support.repository import FEATURES, write_identity_like_model


async def test_hits_dont_call_triton_and_give_the_same_bits(
    serve: Serve, model_repository: Path, triton_server: TritonServer
) -> None:
    kind = f"c{uuid.uuid4().hex[:10]}"
    write_identity_like_model(model_repository, kind, "v1")
    rows = np.random.default_rng(0).normal(size=(3, FEATURES)).astype(np.float32)
    body = {"model_type": kind, "data": rows.tolist()}
    tensor = {"name": "x", "datatype": "FP32", "shape": rows.shape, "data": rows.tolist()}

    async with serve() as client, serve() as other, httpx.AsyncClient() as triton:

        async def computed() -> int:
            answer = await triton.get(f"{triton_server.http_url}/v2/models/{kind}-v1/stats")
            return int(answer.json()["model_stats"][0]["inference_count"])

        first = (await client.post("/predict", json=body)).json()
        changed = await client.put(f"/models/{kind}/v1/serving", json={"response_cache": {"ttl_s": 60}})
        assert changed.status_code == 200, changed.text
        assert changed.json()["serving"]["response_cache"]["max_bytes"] == 64 * 1024 * 1024
        missed = (await client.post("/predict", json=body)).json()
        before = await computed()
        assert (first["cached"], missed["cached"], before) == (False, False, 6)
        assert (
            await client.post("/models/unload", json={"model_type": kind, "version": "v1"})
        ).status_code == 200

        answers = [(await client.post("/predict", json=body)).json() for _ in range(3)]
        batch = (await client.post("/predict/batch", json={"requests": [body, body]})).json()
        for answer in answers + batch["results"]:
            assert answer["cached"]
            assert answer["predictions"] == first["predictions"]
        raw = await client.post(f"http://serving/v2/models/{kind}/infer", json={"inputs": [tensor]})
        assert raw.json()["parameters"] == {"cached": True}
        assert raw.json()["outputs"][0]["data"] == np.ravel(first["predictions"]["y"]).tolist()
        described = (await client.get(f"/models/{kind}/v1")).json()
        assert described["state"] == "unloaded"
        assert described["serving"]["response_cache"]["ttl_s"] == 60
        metrics = (await client.get("/metrics")).json()["metrics"]
        hits = [row for row in metrics["response_cache_hits_total"] if row["labels"]["model"] == f"{kind}-v1"]
        assert [row["value"] for row in hits] == [6]

        async def other_keeps() -> bool:  # it has noticed the change, and keeps answers of its own
            return bool((await other.post("/predict", json=body)).json()["cached"])

        await eventually(other_keeps, timeout_s=10, what="the other worker's cache")
        assert (await client.put(f"/models/{kind}/v1/serving", json={})).status_code == 200
        assert not (await client.post("/predict", json=body)).json()["cached"]
