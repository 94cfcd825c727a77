"""The deployment under test: the installed command on free ports, with the demo models in a repository of its own."""

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks import bodies, h2load
from benchmarks.bodies import Window
from benchmarks.load import LoadResult, run_command, run_python
from benchmarks.system import System, http_system, process_tree
from control_plane.models.card import ModelCard
from tests.support.checkpoints import random_state, save_checkpoint
from tests.support.server import Server, running_server

PREDICT = "/api/v1/predict"
REST_JSON, REST_NPY, REST_ARROW = "REST, JSON", "REST, .npy", "REST, Arrow"
PYTHON_GRPC, GRPC, TRITON_HTTP = "Triton, Python gRPC", "Triton, gRPC", "Triton, HTTP"


@contextmanager
def deployment(
    folder: Path,
    settings: Mapping[str, str] | None = None,
    prepare: Callable[[Path], None] | None = None,
) -> Iterator[Server]:
    """Publishes the demo checkpoints, starts everything, and stops it at the end.

    Args:
        folder: Takes data, repository and logs.
        settings: Environment variables of the server.
        prepare: Adds to the repository before the start.
    """
    repository = folder / "model_repository"
    publish_demo(repository)
    if prepare is not None:
        prepare(repository)
    # Without this a SIGTERM would end the benchmark alone, and leave its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with running_server(folder, settings) as server:
        yield server


def publish_demo(repository: Path) -> None:
    """Publishes v1.0 and v1.1.

    Raises:
        RuntimeError: the exporters failed.
    """
    repository.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "exporters", "publish-missing", "--checkpoints", "checkpoints"]
    run_command([*command, "--repository", str(repository)], 120)


def publish_full_size(repository: Path, version: str, *, channels: int = 50) -> None:
    """Publishes a hybrid of the default size: 60 steps, T = 100, about 120 million multiply-adds, random weights.

    Raises:
        RuntimeError: the exporters failed.
    """
    config = {"input_dim": channels}
    with tempfile.TemporaryDirectory() as name:
        path = save_checkpoint(Path(name) / "model.pth", random_state(config), config)
        publish(path, version, repository)


def publish(checkpoint: Path, version: str, repository: Path) -> None:
    """Publishes a checkpoint.

    Raises:
        RuntimeError: the exporters failed.
    """
    command = [sys.executable, "-m", "exporters", "hybrid", str(checkpoint), "--version", version]
    run_command([*command, "--repository", str(repository)], 120)


def processes(server: Server) -> dict[str, Sequence[psutil.Process]]:
    """`api` (the workers), `triton` (with its models' processes) and `other` (Redis, the supervisor)."""
    parts: dict[str, list[psutil.Process]] = {"api": [], "triton": [], "other": []}
    for name, entry in server.state["processes"].items():
        part = "api" if name.startswith("worker") else name if name == "triton" else "other"
        parts[part] += process_tree(int(entry["pid"]))
    parts["other"].append(psutil.Process(server.process.pid))
    return dict(parts)


def triton_processes(server: Server) -> dict[str, Sequence[psutil.Process]]:
    """Triton's alone."""
    return {"triton": processes(server)["triton"]}


def triton_http_url(server: Server) -> str:
    """`http://host:port` of Triton's own HTTP port."""
    return f"http://127.0.0.1:{server.state['ports']['triton_http']}"


def ask_once(server: Server, body: bytes) -> dict[str, object]:
    """One prediction, which also loads the version.

    Raises:
        httpx.HTTPStatusError: it was refused.
    """
    headers = {"Content-Type": bodies.JSON_TYPE}
    answer = httpx.post(server.url + PREDICT, content=body, headers=headers, timeout=120)
    answer.raise_for_status()
    return dict(answer.json())


def rest_system(server: Server, windows: Sequence[Window], version: str, name: str = REST_JSON) -> System:
    """Our REST API with bodies of one kind: `REST_JSON`, `REST_NPY` or `REST_ARROW`."""
    query = f"{PREDICT}?model_type={bodies.TYPE}&model_version={version}"
    kinds = {
        REST_JSON: (bodies.json_bodies(windows, version), bodies.JSON_TYPE, PREDICT),
        REST_NPY: (bodies.npy_bodies(windows), bodies.NPY_TYPE, query),
        REST_ARROW: (bodies.arrow_bodies(windows), bodies.ARROW_TYPE, query),
    }
    content, content_type, path = kinds[name]
    return http_system(
        name,
        url=server.url,
        path=path,
        bodies=content,
        content_type=content_type,
        processes=lambda: processes(server),
    )


def grpc_system(server: Server, card: ModelCard, windows: Sequence[Window]) -> System | None:
    """Triton's gRPC port, driven by h2load; None where that is absent."""
    if not h2load.is_installed():
        return None
    body = bodies.grpc_body(card, windows[0][np.newaxis])
    least = 4 * sum(
        int(np.prod([1 if length < 0 else length for length in tensor.shape]))
        for tensor in card.outputs
        if tensor.triton_name in bodies.outputs_of(card)
    )

    def drive(connections: int, seconds: float) -> LoadResult:
        return h2load.run_grpc(
            server.grpc_url, body, connections=connections, seconds=seconds, expected_bytes=least
        )

    return System(name=GRPC, drive=drive, processes=lambda: triton_processes(server))


def python_grpc_system(
    server: Server,
    card: ModelCard,
    windows: Sequence[Window],
    concurrencies: tuple[int, ...] | None = (1, 8, 32),
) -> System:
    """Triton's gRPC port, asked by `tritonclient` in Python."""
    arrays = bodies.npy_bodies([window[np.newaxis] for window in windows])

    def drive(connections: int, seconds: float) -> LoadResult:
        return run_python(
            "benchmarks.grpc_callers",
            {
                "url": server.grpc_url,
                "model": card.triton_model,
                "input": card.inputs[0].triton_name,
                "outputs": bodies.outputs_of(card),
                "connections": connections,
                "seconds": seconds,
            },
            arrays,
        )

    return System(
        name=PYTHON_GRPC,
        drive=drive,
        processes=lambda: triton_processes(server),
        concurrencies=concurrencies,
    )


def triton_http_system(server: Server, card: ModelCard, windows: Sequence[Window]) -> System:
    """Triton's HTTP port, with the binary tensor extension both ways."""
    content = bodies.triton_http_bodies(card, windows)
    return http_system(
        TRITON_HTTP,
        url=triton_http_url(server),
        path=f"/v2/models/{card.triton_model}/infer",
        bodies=content.bodies,
        content_type="application/octet-stream",
        headers={bodies.HEADER_LENGTH: str(content.header_length)},
        processes=lambda: triton_processes(server),
    )
