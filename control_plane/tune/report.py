"""What a measurement found, for people and for programs."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from control_plane.models.tuning.configurations import Configuration, Trial
from control_plane.models.tuning.measurement import Curve
from control_plane.models.tuning.tuner import described


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of it."""

    model: str
    """Triton's name of the version."""
    curve: Curve
    """Of the configuration that the version has at the end."""
    is_stored: bool
    """Whether the choice is in the version's card now."""
    trials: Sequence[Trial] = ()
    """Of a search: the former configuration first."""
    best: Trial | None = None
    is_applied: bool = False
    """Whether the best configuration is the version's now."""
    plot: Path | None = None
    remarks: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        chosen = self.curve.chosen
        return {
            "model": self.model,
            "objective_p95_ms": self.curve.objective_p95_ms,
            "points": [described(point) for point in self.curve.points],
            "skipped_rows": list(self.curve.skipped_rows),
            "chosen": described(chosen) if chosen is not None else None,
            "is_stored": self.is_stored,
            "configurations": [_trial_document(trial) for trial in self.trials],
            "best_configuration": asdict(self.best.configuration) if self.best is not None else None,
            "is_applied": self.is_applied,
            "plot": str(self.plot) if self.plot is not None else None,
            "remarks": self.remarks,
        }


def print_report(report: Report, console: Console) -> None:
    """The tables, and what follows from them."""
    curve = report.curve
    console.print(curve_table(report.model, curve))
    if curve.skipped_rows:
        rows = ", ".join(str(one) for one in curve.skipped_rows)
        console.print(
            f"Not measured, since one call alone takes longer than that, or time was up: {rows} rows."
        )
    if report.trials:
        console.print(trials_table(report.trials, report.best))
    for line in _conclusion(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def curve_table(model: str, curve: Curve) -> Table:
    """A row for each point; the chosen one is marked."""
    table = Table(title=f"{model}: P95 of a request ≤ {curve.objective_p95_ms:g} ms", title_justify="left")
    for title in ("", "rows", "in flight", "p50 ms", "p95 ms", "request p95 ms", "rows/s"):
        table.add_column(title, justify="right")
    for point in curve.points:
        is_chosen = point == curve.chosen
        table.add_row(
            "→" if is_chosen else "",
            str(point.size.rows),
            str(point.size.calls_in_flight),
            _number(point.p50_ms),
            _number(point.p95_ms),
            _number(point.request_p95_ms),
            f"{point.rows_per_s:,.0f}",
            style="bold green" if is_chosen else _dim(point.request_p95_ms > curve.objective_p95_ms),
        )
    return table


def trials_table(trials: Iterable[Trial], best: Trial | None) -> Table:
    """A row for each configuration; the best one is marked."""
    table = Table(title="Configurations tried; the first is the present one", title_justify="left")
    for title in ("", "instances", "threads", "rows", "in flight", "request p95 ms", "rows/s"):
        table.add_column(title, justify="right")
    for trial in trials:
        is_best = trial is best
        chosen = trial.curve.chosen if trial.curve is not None else None
        found = (
            (trial.failure or "no size meets the objective", "", "", "")
            if chosen is None
            else (
                str(chosen.size.rows),
                str(chosen.size.calls_in_flight),
                _number(chosen.request_p95_ms),
                f"{chosen.rows_per_s:,.0f}",
            )
        )
        threads = trial.configuration.intra_op_threads
        table.add_row(
            "→" if is_best else "",
            str(trial.configuration.instance_count),
            "–" if threads is None else str(threads),
            *found,
            style="bold green" if is_best else "",
        )
    return table


def in_words(configuration: Configuration) -> str:
    """E.g. `2 instances, 1 thread each`."""
    instances = _counted(configuration.instance_count, "instance")
    threads = configuration.intra_op_threads
    return instances if threads is None else f"{instances}, {_counted(threads, 'thread')} each"


def _conclusion(report: Report) -> list[str]:
    chosen = report.curve.chosen
    lines = []
    if chosen is None:
        lines.append(
            f"No size meets P95 ≤ {report.curve.objective_p95_ms:g} ms, so nothing was stored: the dispatcher goes on "
            "as before. Ask for a longer --p95-ms."
        )
    else:
        lines.append(
            f"Chosen: {_counted(chosen.size.rows, 'row')} a call, "
            f"{_counted(chosen.size.calls_in_flight, 'call')} in flight, "
            f"{chosen.rows_per_s:,.0f} rows/s."
        )
        if report.is_stored:
            lines.append(f"Stored in the card of {report.model}; the dispatchers of all workers follow.")
    lines += report.remarks
    if report.plot is not None:
        lines.append(f"Plot: {report.plot}")
    return lines


def _trial_document(trial: Trial) -> dict[str, Any]:
    chosen = trial.curve.chosen if trial.curve is not None else None
    return {
        **asdict(trial.configuration),
        "chosen": described(chosen) if chosen is not None else None,
        "points": [described(point) for point in trial.curve.points] if trial.curve is not None else [],
        "failure": trial.failure,
    }


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _number(value_ms: float) -> str:
    return f"{value_ms:,.2f}" if value_ms < 100 else f"{value_ms:,.0f}"


def _dim(is_beyond: bool) -> str:  # noqa: FBT001  a table's cell
    return "dim" if is_beyond else ""
