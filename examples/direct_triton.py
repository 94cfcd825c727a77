"""The same prediction three ways: REST to the control plane, and HTTP and gRPC straight to Triton.

    .venv/bin/python examples/direct_triton.py [--api URL] [--http HOST:PORT] [--grpc HOST:PORT] [--version v1.0]

Exit code 1 when the three differ by more than 1e-4 relative.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import tritonclient.grpc
import tritonclient.http
from rich.console import Console
from rich.table import Table
from tritonclient.utils import InferenceServerException

OUTPUTS = ("classification_probs", "regression_pred")
WINDOWS = Path(__file__).parent.parent / "checkpoints/eurusd_test_windows.npz"
TOLERANCE = 1e-4


def main() -> int:
    """Predicts one real window three ways and compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--api", default="http://127.0.0.1:8080")
    parser.add_argument("--http", default="127.0.0.1:8000")
    parser.add_argument("--grpc", default="127.0.0.1:8001")
    parser.add_argument("--version", default="v1.0")
    arguments = parser.parse_args()
    model = f"cnn_lstm_hybrid-{arguments.version}"
    window = np.load(WINDOWS)["x"][:1]

    # REST first: a version that isn't loaded is loaded by the control plane, which Triton alone doesn't do.
    with named("REST API", arguments.api, "--api"):
        answers = {"REST": by_rest(arguments.api, arguments.version, window)}
    with named("Triton (HTTP)", arguments.http, "--http"):
        answers["Triton HTTP"] = by_http(arguments.http, model, window)
    with named("Triton (gRPC)", arguments.grpc, "--grpc"):
        answers["Triton gRPC"] = by_grpc(arguments.grpc, model, window)
    table = Table(title=f"{model}, one real window")
    table.add_column("way")
    for name in OUTPUTS:
        table.add_column(name)
    for way, outputs in answers.items():
        table.add_row(way, *(np.array2string(outputs[name][0], precision=6) for name in OUTPUTS))
    console = Console()
    console.print(table)
    worst = max(
        relative_difference(answers["REST"][name], outputs[name])
        for outputs in answers.values()
        for name in OUTPUTS
    )
    console.print(f"largest relative difference: {worst:.1e}")
    return 0 if worst < TOLERANCE else 1


@contextmanager
def named(server: str, url: str, option: str) -> Iterator[None]:
    """Ends the program with one sentence where the server doesn't answer."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, InferenceServerException, OSError) as error:
        sys.exit(
            f"The {server} doesn't answer at {url} ({error}). Run `make serve` first, or name the server with {option}."
        )


def by_rest(api: str, version: str, window: np.ndarray) -> dict[str, np.ndarray]:
    """Through the control plane."""
    body = {
        "model_type": "cnn_lstm_hybrid",
        "model_version": version,
        "data": window.tolist(),
        "use_ensemble": False,
        "return_uncertainty": True,
    }
    response = httpx.post(f"{api}/api/v1/predict", json=body, timeout=60)
    if response.status_code != httpx.codes.OK:
        sys.exit(f"REST answered {response.status_code}: {response.json()['detail']}")
    predictions = response.json()["predictions"]
    return {name: np.asarray(predictions[name]) for name in OUTPUTS}


def by_http(url: str, model: str, window: np.ndarray) -> dict[str, np.ndarray]:
    """Straight to Triton over HTTP."""
    tensor = tritonclient.http.InferInput("x", list(window.shape), "FP32")
    tensor.set_data_from_numpy(window)
    wanted = [tritonclient.http.InferRequestedOutput(name) for name in OUTPUTS]
    with tritonclient.http.InferenceServerClient(url) as client:
        result = client.infer(model, [tensor], outputs=wanted)
    return {name: result.as_numpy(name) for name in OUTPUTS}


def by_grpc(url: str, model: str, window: np.ndarray) -> dict[str, np.ndarray]:
    """Straight to Triton over gRPC."""
    tensor = tritonclient.grpc.InferInput("x", list(window.shape), "FP32")
    tensor.set_data_from_numpy(window)
    wanted = [tritonclient.grpc.InferRequestedOutput(name) for name in OUTPUTS]
    with tritonclient.grpc.InferenceServerClient(url) as client:
        result = client.infer(model, [tensor], outputs=wanted)
    return {name: result.as_numpy(name) for name in OUTPUTS}


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference over the largest magnitude."""
    return float(np.max(np.abs(a - b)) / max(float(np.max(np.abs(a))), 1e-12))


if __name__ == "__main__":
    sys.exit(main())
