"""The results' files: one JSON for each script, with the machine, the figures of the page, and all that was seen."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from benchmarks.measure import Spread

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure of the page's table.

    Attributes:
        key: Short and constant.
        text: What it is.
        value: Median and spread over the rounds.
        sense: Whether it is to be at most (`<=`) or at least (`>=`) the target; None: reported only.
        target: The target.
        unit: Of the value, "" for a ratio.
    """

    key: str
    text: str
    value: Spread
    sense: Literal["<=", ">="] | None = None
    target: float | None = None
    unit: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        if self.sense is None or self.target is None:
            return None
        return self.value.median <= self.target if self.sense == "<=" else self.value.median >= self.target


def write(
    name: str,
    *,
    what: str,
    figures: Sequence[Figure],
    summaries: Sequence[dict[str, Any]] = (),
    settings: dict[str, Any] | None = None,
    details: dict[str, Any] | None = None,
    folder: Path = FOLDER,
) -> Path:
    """Writes `results/<name>.json` and prints the figures.

    Args:
        name: Of the file.
        what: One line on what was measured.
        figures: Those with a place in the page's table.
        summaries: `measure.summary`.
        settings: How it was measured.
        details: Whatever else was seen.
        folder: Where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "what": what,
        "machine": describe(),
        "settings": settings or {},
        "figures": [{**asdict(figure), "is_met": figure.is_met} for figure in figures],
        "summaries": list(summaries),
        "details": details or {},
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    show(figures, summaries)
    return path


def show(figures: Sequence[Figure], summaries: Sequence[dict[str, Any]]) -> None:
    """Prints both as tables."""
    console = Console(width=150)
    if summaries:
        table = Table(
            *("system", "callers", "requests/s", "from … to", "p50 ms", "p99 ms", "worst ms", "failed"),
            *("CPU µs/request", "generator"),
        )
        for row in summaries:
            rate = row["requests_per_s"]
            table.add_row(
                row["system"],
                str(row["connections"]),
                f"{rate['median']:,.0f}",
                f"{rate['low']:,.0f} … {rate['high']:,.0f}",
                f"{row['p50_ms']['median']:.2f}",
                f"{row['p99_ms']['median']:.2f}",
                f"{row['max_ms']['high']:.1f}",
                str(row["failed"]),
                ", ".join(f"{part} {value:,.0f}" for part, value in row["cpu_us"].items()),
                f"{row['generator']} {row['generator_cpu_us']:,.0f}",
            )
        console.print(table)
    table = Table("figure", "median (from … to)", "target", "met")
    for figure in figures:
        target = "reported" if figure.target is None else f"{figure.sense} {figure.target:g}"
        met = {None: "", True: "yes", False: "no"}[figure.is_met]
        table.add_row(figure.text, f"{figure.value} {figure.unit}".strip(), target, met)
    console.print(table)
