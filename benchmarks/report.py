"""Puts what was measured into docs/performance.md: tables between its markers, and the plots.

    python -m benchmarks.report

Reads benchmarks/results/*.json; what has no file yet is left as it is. Measures nothing.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.arguments import no_options
from benchmarks.results import FOLDER

PAGE = Path(__file__).parent.parent / "docs/performance.md"
IMAGES = Path(__file__).parent.parent / "docs/images"
Results = Mapping[str, Any]

GOALS = ("data_plane", "peers", "full_size", "batches", "memory", "queue_bound", "degrade", "overload")
"""The results whose figures stand in the page's first table, in this order."""


def main() -> int:
    """Writes the page and the plots."""
    known = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    text = PAGE.read_text()
    for name, make in SECTIONS.items():
        if (table := make(known)) is not None:
            text = between(text, name, table)
    PAGE.write_text(text)
    IMAGES.mkdir(exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "model-serving"  # the same figures give the same file
    for name, title in (("data_plane", "REST against Triton"), ("peers", "against other servers")):
        if name in known:
            plot(known[name]["summaries"], title, IMAGES / f"performance_{name}.svg")
    return 0


def between(text: str, name: str, content: str) -> str:
    """The text with what stands between a section's markers replaced.

    Raises:
        ValueError: the page has no such markers.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{PAGE.name} has no section {name}")
    return f"{head}{begin}{content}{end}{tail}"


def goals(known: Mapping[str, Results]) -> str | None:
    """All figures with their targets."""
    lines = ["| figure | measured (least … greatest) | target |", "| --- | --- | --- |"]
    for name in GOALS:
        lines += [
            figure_line(figure)
            for figure in known.get(name, {}).get("figures", ())
            if name != "peers" or figure["target"] is not None  # the rest is in the peers' own table
        ]
    return "\n".join(lines) + "\n" if len(lines) > 2 else None


def figure_line(figure: Mapping[str, Any]) -> str:
    """A row of the table."""
    value, unit = figure["value"], f" {figure['unit']}" if figure["unit"] else ""
    measured = f"{number(value['median'])}{unit} ({number(value['low'])} … {number(value['high'])})"
    if figure["target"] is None:
        return f"| {figure['text']} | {measured} | reported |"
    sense = {"<=": "≤", ">=": "≥"}[figure["sense"]]
    missed = "" if figure["is_met"] else ", **missed**"
    return f"| {figure['text']} | {measured} | {sense} {figure['target']:g}{missed} |"


def systems_table(name: str, callers: Sequence[int]) -> Callable[[Mapping[str, Results]], str | None]:
    """A table of the systems of one file at some numbers of callers."""

    def make(known: Mapping[str, Results]) -> str | None:
        if name not in known:
            return None
        lines = [
            "| system | callers | answers/s (least … greatest) | p50, ms | p99, ms | CPU, µs an answer | memory, MB |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in known[name]["summaries"]:
            if row["connections"] in callers:
                rate = row["requests_per_s"]
                cpu = ", ".join(f"{part} {value:,.0f}" for part, value in row["cpu_us"].items() if value >= 1)
                memory = sum(row["peak_memory_bytes"].values()) / 1e6
                lines.append(
                    f"| {row['system']} | {row['connections']} | {rate['median']:,.0f} ({rate['low']:,.0f} … "
                    f"{rate['high']:,.0f}) | {row['p50_ms']['median']:.2f} | {row['p99_ms']['median']:.1f} | {cpu} | "
                    f"{memory:,.0f} |"
                )
        return "\n".join(lines) + "\n"

    return make


def machine(known: Mapping[str, Results]) -> str | None:
    """Where and with what it was measured."""
    found = known.get("data_plane", {}).get("machine")
    if found is None:
        return None
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    generators = ", ".join(f"{name} {version}" for name, version in found["generators"].items())
    return (
        f"{found['processor']}, {found['cores']} cores, {found['memory_bytes'] / 2**30:.0f} GiB; {found['system']}; "
        f"Python {found['python']}; {packages}; {generators}.\n"
    )


SECTIONS: dict[str, Callable[[Mapping[str, Results]], str | None]] = {
    "goals": goals,
    "machine": machine,
    "data plane": systems_table("data_plane", (1, 8, 32)),
    "peers": systems_table("peers", (1, 8, 32)),
}


def plot(summaries: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Throughput and p99 against the callers, one line a system."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(1, 2)
    for system in dict.fromkeys(row["system"] for row in summaries):
        rows = sorted(
            (row for row in summaries if row["system"] == system), key=lambda row: row["connections"]
        )
        callers = [row["connections"] for row in rows]
        style = {"marker": "o", "markersize": 3, "linewidth": 2 if system.startswith("REST") else 1}
        for axis, field in ((axes[0], "requests_per_s"), (axes[1], "p99_ms")):
            axis.plot(callers, [row[field]["median"] for row in rows], label=system, **style)
    for axis, label in ((axes[0], "answers a second"), (axes[1], "p99, ms")):
        axis.set(xscale="log", xlabel="callers", ylabel=label)
        axis.set_xticks([1, 2, 4, 8, 16, 32, 64], [str(number) for number in (1, 2, 4, 8, 16, 32, 64)])
        axis.grid(visible=True, alpha=0.3)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, metadata={"Date": None})


def number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    no_options(__doc__)
    sys.exit(main())
