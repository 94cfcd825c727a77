"""REST, direct gRPC and plain torch give the same numbers, for every way in which a model can come."""

import itertools
import subprocess
import sys
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import tritonclient.grpc

from exporters.hybrid.build import build_hybrid
from exporters.spec import ExportableModel
from tests.support.checkpoints import SMALL, random_state, save_checkpoint
from tests.support.server import ROOT, Server

TYPE = "cnn_lstm_hybrid"
TOLERANCE = 1e-4
DEFAULT_SIZE: dict[str, Any] = {"input_dim": 50, "sequence_length": 60}


def relative(actual: Any, wanted: np.ndarray) -> float:
    return float(np.max(np.abs(np.asarray(actual) - wanted)) / max(float(np.max(np.abs(wanted))), 1e-6))


def torch_module(state: dict[str, torch.Tensor], config: dict[str, Any]) -> ExportableModel:
    """The torch module for the tensors as they were saved."""
    return build_hybrid(state, config, None, normalization=None, metrics={})


def torch_outputs(model: ExportableModel, x: np.ndarray) -> dict[str, np.ndarray]:
    """What plain torch computes."""
    with torch.inference_mode():
        outputs = model.module(torch.from_numpy(x))
    return {spec.name: tensor.numpy() for spec, tensor in zip(model.outputs, outputs, strict=True)}


def grpc_outputs(server: Server, card: dict[str, Any], x: np.ndarray) -> dict[str, np.ndarray]:
    """What Triton answers to a direct client."""
    names = {tensor["name"]: tensor["triton_name"] for tensor in card["outputs"]}
    tensor = tritonclient.grpc.InferInput(card["inputs"][0]["triton_name"], list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    wanted = [tritonclient.grpc.InferRequestedOutput(name) for name in names.values()]
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        result = client.infer(card["triton_model"], [tensor], outputs=wanted)
    return {name: result.as_numpy(triton_name) for name, triton_name in names.items()}


def agree(server: Server, api: httpx.Client, model: ExportableModel, version: str, x: np.ndarray) -> None:
    card = api.get(f"/api/v1/models/{TYPE}/{version}").json()["card"]
    body = {"model_type": TYPE, "model_version": version, "data": x.tolist(), "return_attention": True}
    response = api.post("/api/v1/predict", json=body)
    assert response.status_code == 200, response.text[:500]
    answer = response.json()
    reference = torch_outputs(model, x)

    chunks = [x[start : start + card["max_batch_size"]] for start in range(0, len(x), card["max_batch_size"])]
    parts = [grpc_outputs(server, card, np.ascontiguousarray(chunk)) for chunk in chunks]
    for name in reference:
        assert relative(np.concatenate([part[name] for part in parts]), reference[name]) < TOLERANCE, name

    predictions, uncertainty = answer["predictions"], answer["uncertainty"]
    weights = reference["ensemble_weights"][0]
    ensemble_regression = np.einsum("bmr,m->br", reference["member_regression"], weights)
    assert relative(predictions["base_classification_probs"], reference["classification_probs"]) < TOLERANCE
    assert relative(predictions["base_regression_pred"], reference["regression_pred"]) < TOLERANCE
    assert relative(predictions["ensemble_regression_pred"], ensemble_regression) < TOLERANCE
    assert relative(predictions["regression_pred"], ensemble_regression) < TOLERANCE
    assert relative(predictions["attention_weights"], reference["attention_weights"]) < TOLERANCE
    assert relative(uncertainty["ensemble_weights"], weights) < TOLERANCE
    spread = reference["mc_regression"].std(axis=1, ddof=1)
    assert relative(uncertainty["regression_uncertainty"], spread) < 10 * TOLERANCE
    assert np.allclose(np.sum(predictions["classification_probs"], axis=1), 1, atol=1e-5)
    assert (
        predictions["classification_pred"] == np.argmax(predictions["classification_probs"], axis=1).tolist()
    )
    assert (
        relative(answer["confidence_scores"], np.max(predictions["classification_probs"], axis=1)) < TOLERANCE
    )


@pytest.mark.parametrize("model_format", ["onnx", "torchscript"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_small_model_agrees_for_every_batch_and_length(
    server: Server, api: httpx.Client, model_format: str, legacy: bool
) -> None:
    version = f"agree-{model_format}-{'legacy' if legacy else 'zip'}"
    path = server.registry / f"{version}.pth"
    state = random_state(SMALL, seed=3)
    save_checkpoint(path, state, SMALL, legacy=legacy, pickled_config=legacy)
    model = torch_module(state, dict(SMALL))
    body = {"model_type": TYPE, "version": version, "file_path": path.name, "format": model_format}
    loaded = api.post("/api/v1/models/load", json=body)
    assert loaded.status_code == 200, loaded.text
    chance = np.random.default_rng(1)
    full = SMALL["sequence_length"]
    for batch, length in itertools.product((1, 2, 33, 100), (1, full // 2, full)):
        x = chance.normal(size=(batch, SMALL["input_dim"], length)).astype(np.float32)
        agree(server, api, model, version, x)


@pytest.mark.parametrize("model_format", ["onnx", "torchscript"])
def test_default_size_model_agrees(server: Server, api: httpx.Client, model_format: str) -> None:
    version = f"default-{model_format}"
    path = server.registry / f"{version}.pth"
    state = random_state(DEFAULT_SIZE, seed=4)
    save_checkpoint(path, state, DEFAULT_SIZE)
    model = torch_module(state, DEFAULT_SIZE)
    body = {"model_type": TYPE, "version": version, "file_path": path.name, "format": model_format}
    loaded = api.post("/api/v1/models/load", json=body)
    assert loaded.status_code == 200, loaded.text
    chance = np.random.default_rng(2)
    for batch, length in ((1, 60), (2, 30), (33, 60), (100, 1)):
        x = chance.normal(size=(batch, 50, length)).astype(np.float32)
        agree(server, api, model, version, x)


def test_tour_and_direct_clients_agree_on_the_demo_models(server: Server) -> None:
    """`make demo` and the direct clients, against this server."""
    published = subprocess.run(
        [sys.executable, "-m", "exporters", "publish-missing", "--checkpoints", "checkpoints", "--repository",
         str(server.repository)], cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert published.returncode == 0, published.stderr
    ports = server.state["ports"]
    for command in (
        ["examples/model_serving_demo.py", "--api", server.url],
        ["examples/direct_triton.py", "--api", server.url, "--http", f"127.0.0.1:{ports['triton_http']}", "--grpc",
         f"127.0.0.1:{ports['triton_grpc']}"],
    ):  # fmt: skip
        answer = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stdout + answer.stderr
