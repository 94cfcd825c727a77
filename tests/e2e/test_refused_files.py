"""Files that must not be loaded: refused with a reason, nothing runs, nothing is left behind."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import onnx
import pytest
import redis
import torch
from onnx import TensorProto, helper

from tests.support.checkpoints import SMALL, random_state, save_checkpoint
from tests.support.server import Server

TYPE = "cnn_lstm_hybrid"


class _RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def _malicious(path: Path) -> None:
    torch.save({"model_state_dict": {}, "config": _RunsCode(path.with_suffix(".ran"))}, path)


def _malicious_plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(_RunsCode(path.with_suffix(".ran"))))


def _truncated(path: Path) -> None:
    save_checkpoint(path, random_state(SMALL))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _bomb(path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        with archive.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(256):
                entry.write(bytes(16 * 1024 * 1024))
    path.write_bytes(buffer.getvalue())


def _text(path: Path) -> None:
    path.write_text("weights, honestly\n" * 100)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _not_a_number(path: Path) -> None:
    state = random_state(SMALL)
    state["classification_head.0.bias"][0] = float("nan")
    save_checkpoint(path, state)


CASES: list[tuple[Callable[[Path], None], str, str]] = [
    (_malicious, "unsafe_checkpoint", "system"),
    (_malicious_plain_pickle, "", ""),
    (_truncated, "corrupt_checkpoint", ""),
    (_bomb, "", ""),
    (_text, "", ""),
    (_empty, "", ""),
    (_not_a_number, "unsupported_checkpoint", "classification_head.0.bias"),
]


@pytest.mark.parametrize(("make", "code", "told"), CASES, ids=[case[0].__name__.strip("_") for case in CASES])
def test_refused_checkpoint_runs_nothing_and_leaves_nothing(
    server: Server, api: httpx.Client, make: Callable[[Path], None], code: str, told: str
) -> None:
    version = f"refused-{make.__name__.strip('_').replace('_', '-')}"
    path = server.registry / f"{version}.pth"
    make(path)
    response = api.post(
        "/api/v1/models/load", json={"model_type": TYPE, "version": version, "file_path": path.name}
    )
    problem = response.json()
    assert response.status_code == 422, problem
    assert response.headers["content-type"] == "application/problem+json"
    if code:
        assert problem["code"] == code
    assert told in problem["detail"]
    assert not path.with_suffix(".ran").exists()
    _nothing_left(server, api, version)


def test_disagreeing_config_names_both(server: Server, api: httpx.Client) -> None:
    path = server.registry / "disagree.pth"
    save_checkpoint(path, random_state(SMALL))
    body = {
        "model_type": TYPE,
        "version": "disagree",
        "file_path": path.name,
        "config": {"lstm_hidden_dim": 24},
    }
    problem = api.post("/api/v1/models/load", json=body).json()
    assert problem["status"] == 422
    assert problem["code"] == "config_mismatch"
    for text in ("lstm_hidden_dim", "24", "16"):
        assert text in problem["detail"]
    _nothing_left(server, api, "disagree")


@pytest.mark.parametrize("config", [{"lstm_hiden_dim": 16}, {"dropout_rate": "much"}, {"sequence_length": 0}])
def test_wrong_config_is_named(server: Server, api: httpx.Client, config: dict[str, object]) -> None:
    path = server.registry / "wrong-config.pth"
    save_checkpoint(path, random_state(SMALL))
    body = {"model_type": TYPE, "version": "wrong-config", "file_path": path.name, "config": config}
    response = api.post("/api/v1/models/load", json=body)
    assert response.status_code == 422
    assert next(iter(config)) in response.json()["detail"]
    _nothing_left(server, api, "wrong-config")


@pytest.mark.parametrize(
    "file_path", ["/etc/passwd", "../../etc/passwd", "models/../../outside.pth", "link.pth"]
)
def test_path_outside_the_registry_is_forbidden(server: Server, api: httpx.Client, file_path: str) -> None:
    outside = server.folder / "outside.pth"
    save_checkpoint(outside, random_state(SMALL))
    link = server.registry / "link.pth"
    if not link.is_symlink():
        link.symlink_to(outside)
    body = {"model_type": TYPE, "version": "outside", "file_path": file_path}
    response = api.post("/api/v1/models/load", json=body)
    assert response.status_code == 403, response.text
    _nothing_left(server, api, "outside")


def test_missing_file_is_404(server: Server, api: httpx.Client) -> None:
    body = {"model_type": TYPE, "version": "missing", "file_path": "nowhere.pth"}
    response = api.post("/api/v1/models/load", json=body)
    assert response.status_code == 404
    assert "nowhere.pth" in response.json()["detail"]


def test_same_content_again_is_a_no_op_and_other_content_conflicts(server: Server, api: httpx.Client) -> None:
    path = server.registry / "again.pth"
    save_checkpoint(path, random_state(SMALL, seed=1))
    body = {"model_type": TYPE, "version": "again", "file_path": path.name}
    assert api.post("/api/v1/models/load", json=body).status_code == 200
    assert api.post("/api/v1/models/load", json=body).status_code == 200
    save_checkpoint(path, random_state(SMALL, seed=2))
    conflict = api.post("/api/v1/models/load", json=body)
    assert conflict.status_code == 409
    assert "overwrite" in conflict.json()["detail"]
    assert api.post("/api/v1/models/load", json=body | {"overwrite": True}).status_code == 200


def test_ready_made_config_with_a_stalling_key_loads_with_a_warning(
    server: Server, api: httpx.Client
) -> None:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "x"], ["y"])],
        "square",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    folder = server.registry / "square"
    folder.mkdir(exist_ok=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        folder / "model.onnx",
    )
    (folder / "config.pbtxt").write_text(
        'backend: "onnxruntime"\nmax_batch_size: 8\n'
        'input { name: "x" data_type: TYPE_FP32 dims: [3] }\noutput { name: "y" data_type: TYPE_FP32 dims: [3] }\n'
        "dynamic_batching { default_queue_policy { max_queue_size: 16 } }\n"
    )
    body = {"model_type": "square", "version": "v1", "file_path": "square/model.onnx"}
    response = api.post("/api/v1/models/load", json=body)
    assert response.status_code == 200, response.text
    assert any("max_queue_size" in warning for warning in response.json()["warnings"])
    answer = api.post("/api/v1/predict", json={"model_type": "square", "data": [[1, 2, 3]]})
    assert answer.json()["predictions"]["y"] == [[1.0, 4.0, 9.0]]


def _nothing_left(server: Server, api: httpx.Client, version: str) -> None:
    assert api.get(f"/api/v1/models/{TYPE}/{version}").status_code == 404
    assert not list(server.repository.glob(f"*{version}*"))
    with redis.Redis(port=server.state["ports"]["redis"]) as store:
        assert store.keys(f"*{version}*") == []
    staging = server.repository / ".staging"
    assert not [path for path in staging.glob("*") if path.suffix != ".lock"]
