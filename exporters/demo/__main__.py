"""`python -m exporters.demo`: trains both demonstration versions, scores them and writes the report.

Writes `cnn_lstm_hybrid-v1.0.pth`, `cnn_lstm_hybrid-v1.1.pth` and `eurusd_test_windows.npz` into one folder
and the report beside the documentation. Takes a few minutes on one core; more do not help networks this small.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from exporters.demo.dataset import CLASS_NAMES, HORIZON, SEQUENCE_LENGTH, Dataset, Part, build_dataset
from exporters.demo.evaluation import Evaluation, baselines, evaluate
from exporters.demo.features import FEATURE_NAMES
from exporters.demo.market_data import find_bars_file, read_bars
from exporters.demo.report import VersionResult, write_report
from exporters.demo.training import Trained, train_hybrid
from exporters.hybrid.build import build_hybrid
from exporters.hybrid.config import HybridConfig
from exporters.spec import Normalization

SEED = 20171229
THREADS = 1
MAX_EPOCHS = 20
PATIENCE = 6
TEST_WINDOWS = 64

_SHARED: Mapping[str, Any] = MappingProxyType(
    {
        "input_dim": len(FEATURE_NAMES),
        "sequence_length": SEQUENCE_LENGTH,
        "prediction_horizon": HORIZON,
        "class_names": CLASS_NAMES,
        "feature_names": FEATURE_NAMES,
        "mc_dropout_samples": 100,
        "dropout_rate": 0.2,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoVersion:
    """A version of the demonstration model, and how it differs."""

    version: str
    config: HybridConfig


VERSIONS = (
    DemoVersion(
        version="v1.0",
        config=HybridConfig(
            **_SHARED,
            cnn_num_filters=8,
            lstm_hidden_dim=24,
            lstm_num_layers=1,
            feature_fusion_dim=32,
            num_ensemble_models=3,
        ),
    ),
    DemoVersion(
        version="v1.1",
        config=HybridConfig(
            **_SHARED,
            cnn_num_filters=16,
            lstm_hidden_dim=48,
            lstm_num_layers=2,
            feature_fusion_dim=64,
            num_ensemble_models=5,
        ),
    ),
)


def main() -> None:
    """Runs the whole demonstration."""
    parser = argparse.ArgumentParser(prog="python -m exporters.demo", description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="folder for the files")
    parser.add_argument(
        "--report", type=Path, default=Path("docs/demo_models.md"), help="where the report goes"
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--max-epochs", type=int, default=MAX_EPOCHS)
    arguments = parser.parse_args()

    torch.set_num_threads(THREADS)
    console = Console()
    dataset = build_dataset(read_bars(find_bars_file()))
    arguments.checkpoints.mkdir(parents=True, exist_ok=True)
    write_test_windows(arguments.checkpoints / "eurusd_test_windows.npz", dataset.test)
    results = []
    for demo in VERSIONS:
        started = time.monotonic()
        trained = _train_with_progress(demo, dataset, seed=arguments.seed, max_epochs=arguments.max_epochs)
        evaluation = _evaluate(demo, trained, dataset)
        path = arguments.checkpoints / f"cnn_lstm_hybrid-{demo.version}.pth"
        write_checkpoint(path, demo, trained, dataset, evaluation)
        results.append(
            VersionResult(
                version=demo.version,
                config=demo.config,
                trained=trained,
                evaluation=evaluation,
                seconds=time.monotonic() - started,
                size_bytes=path.stat().st_size,
            )
        )
        console.print(f"{path}: {evaluation.model}")
    write_report(arguments.report, dataset, baselines(dataset), results, seed=arguments.seed, threads=THREADS)
    console.print(f"{arguments.report} written")


def recorded_config(config: HybridConfig, normalization: Normalization) -> dict[str, Any]:
    """The configuration as the checkpoint keeps it: plain values, with names and normalisation."""
    return {
        **config.as_mapping(),
        "class_names": list(CLASS_NAMES),
        "feature_names": list(FEATURE_NAMES),
        "normalization": {"mean": list(normalization.mean), "scale": list(normalization.scale)},
    }


def write_checkpoint(
    path: Path, demo: DemoVersion, trained: Trained, dataset: Dataset, evaluation: Evaluation
) -> None:
    """Saves state, configuration and metrics in torch's zip format."""
    metrics: dict[str, Any] = {
        **evaluation.model.as_mapping("test_"),
        **evaluation.ensemble.as_mapping("test_ensemble_"),
        "validation_loss": round(trained.validation_loss, 6),
        "best_epoch": trained.best_epoch,
        "class_threshold_bp": round(dataset.threshold_bp, 6),
        "train_samples": len(dataset.train.label),
        "test_samples": len(dataset.test.label),
    }
    torch.save(
        {
            "model_state_dict": trained.state_dict,
            "config": recorded_config(demo.config, dataset.normalization),
            "metrics": metrics,
        },
        path,
    )


def write_test_windows(path: Path, part: Part) -> None:
    """Saves evenly spread test windows: raw input, time of the last bar, and what happened after."""
    rows = np.linspace(0, len(part.label) - 1, TEST_WINDOWS).round().astype(np.int64)
    np.savez_compressed(
        path,
        x=part.x[rows],
        last_bar_time=part.time[rows],
        forward_return_bp=part.forward_return_bp[rows],
        label=part.label[rows],
        feature_names=np.array(FEATURE_NAMES),
        class_names=np.array(CLASS_NAMES),
    )


def _train_with_progress(demo: DemoVersion, dataset: Dataset, *, seed: int, max_epochs: int) -> Trained:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(f"{demo.version} epochs", total=max_epochs)

        def advance(epoch: int, loss: float) -> None:
            progress.update(
                task, completed=epoch, description=f"{demo.version} epochs, validation loss {loss:.4f}"
            )

        return train_hybrid(
            demo.config, dataset, seed=seed, max_epochs=max_epochs, patience=PATIENCE, on_epoch=advance
        )


def _evaluate(demo: DemoVersion, trained: Trained, dataset: Dataset) -> Evaluation:
    recorded = recorded_config(demo.config, dataset.normalization)
    return evaluate(build_hybrid(trained.state_dict, recorded, None), dataset)


if __name__ == "__main__":
    main()
