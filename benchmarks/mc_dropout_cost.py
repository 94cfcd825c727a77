"""What Monte Carlo dropout in one pass costs: the same hybrid exported with T samples and with 1.

    python benchmarks/mc_dropout_cost.py [--samples 100] [--batches 1 16] [--rounds 200] [--threads 1]

The graphs take turns within one run, in random order, on ONNX Runtime's CPU provider, so that the machine's
drift hits all alike. Prints a table and writes `benchmarks/results/mc_dropout_cost.json`; exits with 1 where the
target is missed.
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from exporters.hybrid.build import build_hybrid
from exporters.hybrid.config import HybridConfig
from exporters.hybrid.network import HybridNetwork
from exporters.writers.onnx import write_onnx

RESULT = Path(__file__).parent / "results" / "mc_dropout_cost.json"
TARGET_RATIO = 1.15
WARM_UP_CALLS = 10


def main() -> int:
    """Runs the comparison for the full default configuration; 1 where a ratio misses the target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, nargs="+", default=[100], help="samples to compare with 1")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=200, help="timed calls of each graph and batch size")
    parser.add_argument("--threads", type=int, default=1, help="ONNX Runtime's threads")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            samples: export(samples, Path(folder), arguments.threads) for samples in (1, *arguments.samples)
        }
        measured = [measure(sessions, batch, arguments.rounds) for batch in arguments.batches]
    rows = [row for rows in measured for row in rows]
    show(rows)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report(rows, arguments), indent=2) + "\n")
    return int(any(missed(row) for row in rows))


def export(samples: int, folder: Path, threads: int) -> onnxruntime.InferenceSession:
    """Exports the default hybrid with that many samples; the weights are the same each time."""
    torch.manual_seed(0)
    network = HybridNetwork(HybridConfig())
    model = build_hybrid(network.state_dict(), {}, {"mc_dropout_samples": samples})
    path = folder / f"{samples}.onnx"
    write_onnx(model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure(
    sessions: dict[int, onnxruntime.InferenceSession], batch: int, rounds: int
) -> list[dict[str, float]]:
    """Times all graphs in turns; the ratio is the median of the rounds' own ratios."""
    config = HybridConfig()
    x = torch.randn(
        batch, config.input_dim, config.sequence_length, generator=torch.Generator().manual_seed(1)
    )
    calls: dict[int, Callable[[], Any]] = {
        samples: partial(session.run, None, {"x": x.numpy()}) for samples, session in sessions.items()
    }
    for call in calls.values():
        for _ in range(WARM_UP_CALLS):
            call()
    seconds: dict[int, list[float]] = {samples: [] for samples in calls}
    order = random.Random(0)
    for _ in track(range(rounds), description=f"batch {batch}"):
        for samples in order.sample(list(calls), len(calls)):
            started = time.perf_counter()
            calls[samples]()
            seconds[samples].append(time.perf_counter() - started)
    return [
        {
            "batch": batch,
            "samples": samples,
            "median_ms": 1e3 * statistics.median(seconds[samples]),
            "p10_ms": 1e3 * statistics.quantiles(seconds[samples], n=10)[0],
            "ratio_to_one_sample": statistics.median(
                many / one for many, one in zip(seconds[samples], seconds[1], strict=True)
            ),
        }
        for samples in seconds
    ]


def missed(row: dict[str, float]) -> bool:
    """Whether many samples cost more than they may."""
    return row["ratio_to_one_sample"] > TARGET_RATIO


def show(rows: list[dict[str, float]]) -> None:
    """Prints the measurements."""
    table = Table("batch", "samples", "median ms", "p10 ms", "ratio to 1 sample", "target")
    for row in rows:
        met = "" if row["samples"] == 1 else ("missed" if missed(row) else "met")
        table.add_row(
            f"{row['batch']}",
            f"{row['samples']}",
            f"{row['median_ms']:.2f}",
            f"{row['p10_ms']:.2f}",
            f"{row['ratio_to_one_sample']:.3f}",
            met,
        )
    Console().print(table)


def report(rows: list[dict[str, float]], arguments: argparse.Namespace) -> dict[str, Any]:
    """The measurements with all that is needed to read them."""
    return {
        "what": "default cnn_lstm_hybrid, all outputs, time 60, float32, ONNX Runtime CPU",
        "target_ratio": TARGET_RATIO,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_name(), "system": platform.platform()},
        "versions": {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__},
        "measurements": rows,
    }


def cpu_name() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


if __name__ == "__main__":
    raise SystemExit(main())
