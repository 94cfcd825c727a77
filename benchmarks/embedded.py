"""How long the embedded runtime takes to start, load and heal, and what memory it holds.

    python -m benchmarks.embedded

Starts the installed command on free ports with the demo models, writes benchmarks/results/embedded.json and prints the
table of docs/embedded.md. Medians of several rounds.
"""

import json
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import psutil
from rich.progress import track

from benchmarks.arguments import no_options
from tests.support.server import ROOT, Server, running_server, wait_until

Note = Callable[[str, float], None]
ROUNDS = 5
RESULT = Path(__file__).parent / "results/embedded.json"
TYPE = "cnn_lstm_hybrid"


def main() -> int:
    """Runs the rounds."""
    figures: dict[str, list[float]] = {}
    window = np.load(ROOT / "checkpoints/eurusd_test_windows.npz")["x"][0].tolist()
    body = {"model_type": TYPE, "model_version": "v1.0", "data": window}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "exporters", "publish-missing", "--checkpoints", "checkpoints"]
        started = time.perf_counter()
        subprocess.run(
            [*command, "--repository", str(folder / "model_repository")],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        note("export of both demo checkpoints, s", time.perf_counter() - started)
        for _ in track(range(ROUNDS), description="rounds"):
            started = time.perf_counter()
            with running_server(folder) as server, httpx.Client(base_url=server.url, timeout=60) as api:
                note("start until ready, s", time.perf_counter() - started)
                api.post("/api/v1/predict", json=body).raise_for_status()
                note("start until the first prediction's answer, s", time.perf_counter() - started)
                note("API worker, MB", resident_mb(server, "worker-0"))
                measure_cycle(api, note)
                measure_memory(server, note)
                measure_heal(server, api, body, note)
                started = time.perf_counter()
                server.process.send_signal(signal.SIGTERM)
                server.process.wait(60)
                note("ordered stop, s", time.perf_counter() - started)
    medians = {name: round(statistics.median(values), 3) for name, values in figures.items()}
    spread = {name: [round(min(values), 3), round(max(values), 3)] for name, values in figures.items()}
    machine = {
        "processor": processor(),
        "cores": psutil.cpu_count(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"machine": machine, "medians": medians, "spread": spread}, indent=2) + "\n")
    print("| what | median | from … to |\n| --- | --- | --- |")
    for name, value in medians.items():
        print(f"| {name} | {value:g} | {spread[name][0]:g} … {spread[name][1]:g} |")
    return 0


def measure_cycle(api: httpx.Client, note: Note) -> None:
    """Unloads and loads a version."""
    for action in ("unload", "load"):
        started = time.perf_counter()
        api.post(f"/api/v1/models/{action}", json={"model_type": TYPE, "version": "v1.0"}).raise_for_status()
        note(f"{action} of a published version, s", time.perf_counter() - started)


def measure_memory(server: Server, note: Note) -> None:
    """Of Triton and of one model's process."""
    triton = psutil.Process(server.pid("triton"))
    note("Triton itself, MB", triton.memory_info().rss / 1e6)
    stubs = [child.memory_info().rss for child in triton.children(recursive=True) if "stub" in child.name()]
    note("a model instance's process (ONNX), MB", max(stubs) / 1e6)


def measure_heal(server: Server, api: httpx.Client, body: dict[str, object], note: Note) -> None:
    """From kill -9 of Triton to the next right answer."""
    started = time.perf_counter()
    server.kill("triton")
    wait_until(
        lambda: api.post("/api/v1/predict", json=body).status_code == 200,
        timeout_s=60,
        what="healed",
        poll_s=0.02,
    )
    note("kill -9 of Triton until the next answer, s", time.perf_counter() - started)


def resident_mb(server: Server, name: str) -> float:
    """Resident memory of a process in MB."""
    return psutil.Process(server.pid(name)).memory_info().rss / 1e6


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    no_options(__doc__)
    sys.exit(main())
