"""Writes the hybrid's section of docs/demo_models.md from the results, in words that follow from the figures."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from exporters.demo.dataset import HORIZON, SEQUENCE_LENGTH, Dataset, Part
from exporters.demo.evaluation import Difference, Evaluation, Scores
from exporters.demo.features import FEATURE_NAMES
from exporters.demo.page import processor_name, replace_section
from exporters.demo.training import Trained
from exporters.hybrid.config import HybridConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionResult:
    """A trained version with its scores; `seconds` is wall time of training and scoring."""

    version: str
    config: HybridConfig
    trained: Trained
    evaluation: Evaluation
    seconds: float
    size_bytes: int


def write_report(
    path: Path,
    dataset: Dataset,
    naive: Mapping[str, Scores],
    results: Sequence[VersionResult],
    *,
    seed: int,
    threads: int,
) -> None:
    """Writes the report into its section of the page."""
    sections = (
        _introduction(dataset),
        _scores_table(naive, results),
        _verdicts(dataset, results),
        _versions_table(results),
        _circumstances(results, seed=seed, threads=threads),
    )
    replace_section(path, "exporters.demo", "\n\n".join(sections))


def _introduction(dataset: Dataset) -> str:
    channels = ", ".join(f"`{name}`" for name in FEATURE_NAMES)
    return f"""# Demonstration models

Made by `python -m exporters.demo`, which also writes this section. `checkpoints/` holds two versions of
`cnn_lstm_hybrid`, trained on hourly EUR/USD bars of 2017 (the file that comes with gym-anytrading, MIT
licence), and `eurusd_test_windows.npz`, windows of the test part with what happened after them. They are
there to load, compare and roll back with realistic tensors. **They are not a trading strategy.**

- Input: {SEQUENCE_LENGTH} bars of {len(FEATURE_NAMES)} channels, each from its own bar and earlier ones only:
  {channels}.
  Clients send them raw; the graph normalises them with the training part's mean and scale.
- Regression: log return over the next {HORIZON} bars, in basis points.
- Classes: `sell` below -{dataset.threshold_bp:.2f} bp, `buy` above {dataset.threshold_bp:.2f} bp, `hold`
  between. The threshold makes a third of the training part `hold`; the other parts have no say in it.

| part | samples | from (UTC) | to (UTC) | sell / hold / buy |
|---|---|---|---|---|
{_part_row("training", dataset.train)}
{_part_row("validation", dataset.validation)}
{_part_row("test", dataset.test)}

The split is chronological, with {HORIZON + SEQUENCE_LENGTH} bars left out at each border, so that no window and
no outcome is shared. The validation part chose the epoch, the horizon and the settings of the training. Test scores
of an earlier setting had been seen by then, so those below may flatter a little."""


def _part_row(name: str, part: Part) -> str:
    shares = np.bincount(part.label, minlength=3) / len(part.label)
    return (
        f"| {name} | {len(part.label):,} | {_minute(part.time[0])} | {_minute(part.time[-1])} "
        f"| {' / '.join(f'{share:.0%}' for share in shares)} |"
    )


def _minute(seconds: np.int64) -> str:
    return datetime.fromtimestamp(int(seconds), tz=UTC).strftime("%Y-%m-%d %H:%M")


def _scores_table(naive: Mapping[str, Scores], results: Sequence[VersionResult]) -> str:
    rows: dict[str, Scores] = {}
    for result in results:
        rows[f"{result.version}, heads"] = result.evaluation.model
        rows[f"{result.version}, ensemble"] = result.evaluation.ensemble
    lines = [
        "## Scores on the test part",
        "",
        "| forecast | accuracy | log loss | Brier score | MAE, bp | 90 % interval covers | its width, bp |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, scores in (rows | dict(naive)).items():
        cells = (
            _cell(scores.accuracy, ".1%"),
            _cell(scores.log_loss, ".4f"),
            _cell(scores.brier, ".4f"),
            _cell(scores.mae_bp, ".2f"),
            _cell(scores.interval_coverage, ".1%"),
            _cell(scores.interval_width_bp, ".1f"),
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "Of the served graph as exported, with its fixed Monte Carlo masks. Log loss in nats; Brier score summed",
        "over the classes. The models' interval is the 5 % to 95 % quantile of the Monte Carlo samples.",
    ]
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _verdicts(dataset: Dataset, results: Sequence[VersionResult]) -> str:
    paragraphs = ["## What that says"]
    for result in results:
        e = result.evaluation
        paragraphs.append(
            f"**{result.version}** {_against(e.log_loss_difference, 'the class shares of training', 'log loss', '')}, "
            f"and {_against(e.brier_difference, 'them', 'Brier score', '')}. As a forecast of the return it "
            f"{_against(e.absolute_error_difference, 'a forecast of zero', 'absolute error', ' bp')}. "
            f"Of the moves past the threshold it has the direction right in {_direction(e)}."
        )
    if all(
        result.evaluation.log_loss_difference.high < 0 <= result.evaluation.direction_error_difference.high
        for result in results
    ):
        paragraphs.append(
            "Together: what the models know beyond the class shares is how likely a move past the threshold is, "
            "not which way it goes."
        )
    coverages = [(result.version, result.evaluation.model.interval_coverage or 0.0) for result in results]
    stated = " and ".join(f"{coverage:.1%} ({version})" for version, coverage in coverages)
    deviations = " and ".join(f"{result.evaluation.monte_carlo_deviation_bp:.2f} bp" for result in results)
    spread = float(np.std(dataset.test.forward_return_bp))
    paragraphs.append(
        f"The 90 % Monte Carlo interval covers {stated} of the outcomes, so it is not an interval for the outcome. "
        "Monte Carlo dropout shows how unsure the model is of its own mean; it holds nothing of the noise of the "
        f"market around that mean. Its standard deviation is {deviations} here, that of the returns {spread:.1f} bp. "
        "Use it to compare requests with each other; an interval for outcomes needs calibration on realised ones."
    )
    paragraphs.append(
        "Differences are paired on the test samples, model minus baseline; the 95 % intervals are from a moving "
        "block bootstrap, since neighbouring outcomes overlap. One market and one quarter of one year say nothing "
        "about others."
    )
    return "\n\n".join(paragraphs)


def _direction(evaluation: Evaluation) -> str:
    errors = evaluation.direction_error_difference
    right, low, high = (0.5 - value for value in (errors.mean, errors.high, errors.low))
    if low <= 0.5 <= high:
        reading = "which cannot be told from a coin"
    else:
        reading = "better than a coin" if low > 0.5 else "worse than a coin"
    return f"{right:.1%} (95 % interval {low:.1%} to {high:.1%}), {reading}"


def _against(difference: Difference, baseline: str, score: str, unit: str) -> str:
    return (
        f"{difference.verdict} {baseline} in {score} ({difference.mean:+.4f}{unit}, "
        f"95 % interval {difference.low:+.4f} to {difference.high:+.4f})"
    )


def _versions_table(results: Sequence[VersionResult]) -> str:
    lines = [
        "## The two versions",
        "",
        "| | " + " | ".join(result.version for result in results) + " |",
        "|---|" + "---|" * len(results),
    ]
    for label, cells in (
        ("filters for each kernel", [str(result.config.cnn_num_filters) for result in results]),
        (
            "LSTM hidden size × layers",
            [f"{r.config.lstm_hidden_dim} × {r.config.lstm_num_layers}" for r in results],
        ),
        ("fusion width", [str(result.config.feature_fusion_dim) for result in results]),
        ("ensemble members", [str(result.config.num_ensemble_models) for result in results]),
        ("parameters", [f"{_parameters(result):,}" for result in results]),
        ("checkpoint", [f"{result.size_bytes / 1024:.0f} KiB" for result in results]),
        ("best epoch of those run", [f"{r.trained.best_epoch} of {r.trained.epochs}" for r in results]),
        ("training and scoring", [f"{result.seconds:.0f} s" for result in results]),
    ):
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _parameters(result: VersionResult) -> int:
    return sum(tensor.numel() for tensor in result.trained.state_dict.values())


def _circumstances(results: Sequence[VersionResult], *, seed: int, threads: int) -> str:
    total = sum(result.seconds for result in results)
    return (
        f"Made in {total:.0f} s with {threads} thread{'s' if threads > 1 else ''} on {processor_name()}, "
        f"{platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}; seed {seed}. On the same machine and "
        "versions the same seed gives the same checkpoints; elsewhere the last digits differ."
    )
