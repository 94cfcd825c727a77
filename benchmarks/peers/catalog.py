"""The peers, and the settings of each: the first is measured, `python -m benchmarks.peers --try` compares all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
ENVIRONMENTS = ROOT / ".bench"
Launch = Literal["module", "uvicorn", "bentoml"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way to configure a peer.

    Attributes:
        label: What is special about it.
        arguments: Of the command.
        variables: Environment variables.
    """

    label: str
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A server to compare with.

    Attributes:
        name: In tables and plots.
        folder: Of its server, requirements and environment.
        launch: How it is started.
        settings: The measured one first.
    """

    name: str
    folder: str
    launch: Launch
    settings: tuple[Setting, ...]

    @property
    def python(self) -> Path:
        """Its environment's Python."""
        return ENVIRONMENTS / self.folder / "bin/python"

    @property
    def requirements(self) -> Path:
        """What goes into the environment."""
        return FOLDER / self.folder / "requirements.txt"

    def command(self, setting: Setting, model: Path, port: int) -> list[str]:
        """What starts it, to be run in the repository's root."""
        module = f"benchmarks.peers.{self.folder}.server"
        variables = {"PEER_MODEL": str(model), **setting.variables}
        service = setting.variables.get("PEER_SERVICE", "")
        tails = {
            "module": ["-m", module, "--model", str(model), "--port", str(port)],
            "uvicorn": [
                *("-m", "uvicorn", "--factory", f"{module}:create_app", "--host", "127.0.0.1"),
                *("--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log"),
                *("--log-level", "warning"),
            ],
            "bentoml": [
                *(
                    "-m",
                    "bentoml",
                    "serve",
                    f"{module}:{service}",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(port),
                ),
            ],
        }
        prefix = ["env", *(f"{name}={value}" for name, value in variables.items())]
        return [*prefix, str(self.python), *tails[self.launch], *setting.arguments]


def _fastapi(label: str, style: str, workers: int = 1, threads: int = 1) -> Setting:
    return Setting(
        label=label,
        arguments=("--workers", str(workers)) if workers > 1 else (),
        variables={"PEER_STYLE": style, "PEER_THREADS": str(threads)},
    )


def _bentoml(label: str, service: str, workers: int = 1, **more: str) -> Setting:
    return Setting(
        label=label,
        variables={
            "PEER_SERVICE": service,
            "PEER_WORKERS": str(workers),
            "BENTOML_DO_NOT_TRACK": "True",
            **more,
        },
    )


def _arguments(label: str, text: str) -> Setting:
    return Setting(label=label, arguments=tuple(text.split()))


def _ray(label: str, text: str = "", **more: str) -> Setting:
    return Setting(
        label=label,
        arguments=tuple(text.split()),
        variables={"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **more},
    )


_FAST_RAY = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}

PEERS = (
    Peer(
        name="FastAPI",
        folder="fastapi",
        launch="uvicorn",
        settings=(
            _fastapi("on the event loop, orjson, 2 processes", "inline-orjson", workers=2),
            _fastapi("on the event loop, response model, 2 processes", "inline", workers=2),
            _fastapi("on the event loop, response model, 1 process", "inline"),
            _fastapi("executor of 1 thread, response model, 2 processes", "executor", workers=2),
            _fastapi("executor of 1 thread, response model, 1 process", "executor"),
            _fastapi("executor of 2 threads, response model, 1 process", "executor", threads=2),
            _fastapi("plain function in the thread pool, response model, 1 process", "threads"),
        ),
    ),
    Peer(
        name="LitServe",
        folder="litserve",
        launch="module",
        settings=(
            _arguments("no batching, 2 API processes", "--api-servers 2"),
            _arguments("no batching, 1 API process", ""),
            _arguments("no batching, 1 API process, 2 workers", "--workers 2"),
            _arguments("no batching, 2 API processes, 2 workers", "--api-servers 2 --workers 2"),
            _arguments("no batching, 2 API processes, fast queue", "--api-servers 2 --fast-queue 1"),
            _arguments("batches of 32 within 1 ms, 1 API process", "--batch 32 --wait-ms 1"),
            _arguments("batches of 8 within 1 ms, 2 API processes", "--batch 8 --wait-ms 1 --api-servers 2"),
            _arguments(
                "batches of 32 within 1 ms, 2 API processes", "--batch 32 --wait-ms 1 --api-servers 2"
            ),
            _arguments("batches of 32 within 5 ms, 1 API process", "--batch 32 --wait-ms 5"),
            _arguments("batches of 32 within 1 ms, fast queue", "--batch 32 --wait-ms 1 --fast-queue 1"),
        ),
    ),
    Peer(
        name="BentoML",
        folder="bentoml",
        launch="bentoml",
        settings=(
            _bentoml("on the event loop, orjson, 2 workers", "Inline", workers=2),
            _bentoml("on the event loop, orjson, 1 worker", "Inline"),
            _bentoml("threads, pydantic answer, 2 workers", "Threads", workers=2),
            _bentoml("adaptive batching in a second service", "Split"),
        ),
    ),
    Peer(
        name="MLServer",
        folder="mlserver",
        launch="module",
        settings=(
            _arguments("batches of 32 within 0.1 ms", "--batch 32 --wait-ms 0.1"),
            _arguments("batches of 8 within 0.1 ms", "--batch 8 --wait-ms 0.1"),
            _arguments("batches of 8 within 1 ms", "--batch 8 --wait-ms 1"),
            _arguments("batches of 32 within 1 ms", "--batch 32 --wait-ms 1"),
            _arguments("batches of 32 within 5 ms", "--batch 32 --wait-ms 5"),
            _arguments("no batching", "--batch 1"),
        ),
    ),
    Peer(
        name="Ray Serve",
        folder="ray",
        launch="module",
        settings=(
            _ray("high-throughput mode, batches of 32 within 1 ms", "--wait-ms 1", **_FAST_RAY),
            _ray("high-throughput mode, batches of 32 within 0.1 ms", "--wait-ms 0.1", **_FAST_RAY),
            _ray("high-throughput mode, batches of 8 within 0.1 ms", "--batch 8 --wait-ms 0.1", **_FAST_RAY),
            _ray("high-throughput mode, no batching", "--batch 1", **_FAST_RAY),
            _ray("high-throughput mode, no batching, 2 replicas", "--batch 1 --replicas 2", **_FAST_RAY),
            _ray("Ray's own proxy, batches of 32 within 1 ms", "--wait-ms 1"),
        ),
    ),
)
IN_PROCESS = Peer(
    name="ONNX Runtime in process",
    folder="inprocess",
    launch="module",
    settings=(Setting(label="all callers' rows in one call"),),
)
