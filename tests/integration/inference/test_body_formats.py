"""Whatever form a body has, the answer is what Triton itself says to the same numbers."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from control_plane.embedded.triton import TritonServer
from control_plane.triton.client import connect
from tests.integration.inference.conftest import Serve
from tests.integration.inference.test_predict import fresh_type
from tests.support.repository import FEATURES, write_identity_like_model

ARROW, NPY = "application/vnd.apache.arrow.stream", "application/x-npy"


def bodies(kind: str, array: Any) -> dict[str, tuple[bytes, str]]:
    """The array in every form: body and content type."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
    frame = pa.table({f"feature_{index}": array[:, index] for index in range(array.shape[1])})
    return {
        "json": (
            json.dumps({"model_type": kind, "data": array.astype(float).tolist()}).encode(),
            "application/json",
        ),
        "npy": (file.getvalue(), NPY),
        "arrow lists": (_stream(pa.table({"data": lists})), ARROW),
        "arrow columns": (_stream(frame), ARROW),
    }


def _stream(table: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("rows", [1, 100])
async def test_every_form_of_body_gives_tritons_own_outputs(
    serve: Serve,
    model_repository: Path,
    triton_server: TritonServer,
    rows: int,
) -> None:
    kind = fresh_type()
    write_identity_like_model(model_repository, kind, "v1", max_batch_size=64)
    array = np.random.default_rng(rows).normal(size=(rows, FEATURES)).astype(np.float32)
    async with serve() as client, connect(triton_server.grpc_url) as triton:
        for name, (body, content_type) in bodies(kind, array).items():
            options = (
                {} if name == "json" else {"model_type": kind, "model_version": "latest", "batch_size": 64}
            )
            for accept in ("application/json", ARROW):
                response = await client.post(
                    "/predict",
                    content=body,
                    params=options,
                    headers={"Content-Type": content_type, "Accept": accept},
                )
                assert response.status_code == 200, response.text
                assert response.headers["content-type"] == accept
                if accept == ARROW:
                    table = pa.ipc.open_stream(response.content).read_all()
                    got: Any = table.column("predictions.y").combine_chunks().flatten().to_numpy()
                else:
                    got = np.array(response.json()["predictions"]["y"], dtype=np.float32)
                direct = [
                    (await triton.infer(f"{kind}-v1", {"x": array[start : start + 64]}, ["y"], timeout_s=10))[
                        "y"
                    ]
                    for start in range(0, rows, 64)
                ]
                np.testing.assert_array_equal(got.reshape(array.shape), np.concatenate(direct), err_msg=name)


async def test_wrong_options_and_bodies_are_refused_as_in_json(serve: Serve, model_repository: Path) -> None:
    kind = fresh_type()
    write_identity_like_model(model_repository, kind, "v1")
    good = bodies(kind, np.zeros((1, FEATURES), dtype=np.float32))["npy"][0]
    async with serve() as client:
        for params, body, content_type, status in (
            ({"model_type": kind}, good, NPY, 200),
            ({"model_type": kind, "batch_size": 0}, good, NPY, 422),
            ({"model_type": kind, "colour": "red"}, good, NPY, 422),
            ({}, good, NPY, 422),
            ({"model_type": "nonesuch"}, good, NPY, 404),
            ({"model_type": kind}, good[:-1], NPY, 400),
            ({"model_type": kind}, good, ARROW, 400),
            ({"model_type": kind}, good, "application/x-hdf5", 415),
        ):
            response = await client.post(
                "/predict", params=params, content=body, headers={"Content-Type": content_type}
            )
            assert response.status_code == status, response.text
