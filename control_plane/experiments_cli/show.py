"""What the commands print: experiments, and the results of one with its intervals drawn in characters. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from control_plane.experiments.design import Direction, Metric, MetricKind
from control_plane.experiments.report import words
from control_plane.experiments.sequential import Interval

_BLOCKS = "▁▂▃▄▅▆▇█"
_STYLES = {"treatment_better": "green", "treatment_worse": "red"}
AXIS_WIDTH, TREND_WIDTH = 21, 16


def print_list(document: Mapping[str, Any], console: Console) -> None:
    """All experiments."""
    table = Table()
    for name in ("experiment", "status", "mode", "model", "shares now", "requests", "ends"):
        table.add_column(name, justify="right" if name == "requests" else "left")
    for one in document["experiments"].values():
        table.add_row(
            *map(
                escape,
                (
                    one["experiment_id"],
                    one["status"],
                    one["mode"],
                    one["model_type"],
                    ", ".join(f"{name} {words.percent(share)}" for name, share in one["shares"].items()),
                    f"{one['total_requests']:,}",
                    (one["end_time"] or "when stopped")[:16],
                ),
            )
        )
    if document["experiments"]:
        console.print(table)
    else:
        console.print("There are no experiments.")


def print_results(results: Mapping[str, Any], timeline: Mapping[str, Any], console: Console) -> None:
    """One experiment: its verdict first."""
    found = results["significance"]
    verdict = found["verdict"]
    _say(console, f"{results['experiment_id']}: {results['mode']}, {results['status']}", style="bold")
    word = "no verdict" if verdict is None else verdict.replace("_", " ")
    _say(console, f"Verdict: {word}.", style=_STYLES.get(verdict or "", "red" if found["mismatched"] else ""))
    for line in found["sentences"]:
        _say(console, line)
    if results["reason"]:
        _say(console, f"Why shares changed last: {results['reason']}.")
    console.print(_variants(results))
    console.print(_comparisons(found, timeline["points"]))
    for line in _checks(found):
        _say(console, line)


def axis(found: Interval, middle: float, width: int = AXIS_WIDTH) -> str:
    """An interval against 0, which is in the middle: `    ├──●──┤│         `."""
    if found.lower is None or found.upper is None:
        return ""
    reach = max(abs(found.lower), abs(found.upper)) or 1.0
    lower, at, upper = (
        round((value / reach + 1) / 2 * (width - 1)) for value in (found.lower, middle, found.upper)
    )
    cells = [" "] * width
    cells[lower : upper + 1] = ["─"] * (upper + 1 - lower)
    cells[lower], cells[upper] = "├", "┤"
    cells[width // 2] = "┼" if lower < width // 2 < upper else "│"
    cells[at] = "●"
    return "".join(cells)


def trend(intervals: Sequence[Interval], width: int = TREND_WIDTH) -> str:
    """How an interval narrowed: a block as high as it is wide for each time, the widest first; `·` before the first."""
    step = max(1, -(-len(intervals) // width))
    kept = list(intervals[::-1][::step])[::-1]
    widths = [_width(one) for one in kept]
    widest = max((one for one in widths if one is not None), default=0.0)
    return "".join("·" if one is None else _block(one, widest) for one in widths)


def _block(width: float, widest: float) -> str:
    return _BLOCKS[round(width / widest * (len(_BLOCKS) - 1))] if widest > 0.0 else _BLOCKS[0]


def _width(found: Interval) -> float | None:
    return None if found.lower is None or found.upper is None else found.upper - found.lower


def _variants(results: Mapping[str, Any]) -> Table:
    table = Table(title="Variants; latencies in ms", title_justify="left")
    is_shadow = results["mode"] == "shadow"
    counts = ("requests", "units", "errors", *(("shed",) if is_shadow else ()))
    headers = ("variant", "version", "share", *counts, "mean", "P50", "P95", "P99")
    for name in headers:
        table.add_column(name, justify="left" if name in headers[:2] else "right")
    for name, one in results["variants"].items():
        latencies = (one[f"{field}_latency_ms"] for field in ("avg", "p50", "p95", "p99"))
        table.add_row(
            escape(name),
            escape(one["model_config"]["version"]),
            words.percent(one["share"]),
            *(f"{one[field]:,}" for field in counts),
            *(words.number(value) for value in latencies),
        )
    return table


def _comparisons(found: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> Table:
    control = found["control"]
    level = f"{100 * (1 - found['alpha']):g} %"
    title = f"Differences from {escape(control)}, with {level} intervals that hold at any time"
    table = Table(title=title, title_justify="left")
    for name in ("metric", control, "treatment", "difference", "interval", "against 0", "its width", "p"):
        table.add_column(escape(name), no_wrap=name in ("against 0", "its width"))
    metrics = {one["name"]: _metric(one) for one in found["metrics"]}
    several = len({one["variant"] for one in found["comparisons"]}) > 1
    for one in found["comparisons"]:
        metric, interval = metrics[one["metric"]], Interval(**one["interval"])
        earlier = list(_over_time(points, one["variant"], one["metric"]))
        table.add_row(
            escape(f"{one['metric']} of {one['variant']}" if several else one["metric"]),
            words.NOTHING if metric.treatment_only else words.level(metric, one["control"]),
            words.level(metric, one["treatment"]),
            words.change(metric, one["difference"] if one["standard_error"] is not None else None),
            words.interval(metric, interval) if one["started"] else "too early",
            axis(interval, one["difference"]),
            trend([*earlier, interval]) if one["started"] else "",
            words.p_value(one["p_always_valid"]),
            style=_STYLES.get(one["verdict"] or "", ""),
        )
    return table


def _over_time(points: Sequence[Mapping[str, Any]], variant: str, metric: str) -> Iterator[Interval]:
    for point in points:
        for one in point["comparisons"]:
            if (one["variant"], one["metric"]) == (variant, metric):
                yield Interval(lower=one["lower"], upper=one["upper"])


def _checks(found: Mapping[str, Any]) -> Iterator[str]:
    checks = found["ratio_checks"]
    if checks:
        last = checks[-1]
        counts = " : ".join(f"{count:,}" for count in last["counts"])
        expected = " : ".join(f"{count:,.0f}" for count in last["expected"])
        state = "broken" if found["mismatched"] else "as declared"
        p = words.p_value(last["p_any_time"])
        yield f"Split: {state} (units {counts}, expected {expected}, p at any time {p})."
    for one in found["guardrails"]:
        yield f"Guardrail {one['metric']} of {one['variant']}: {one['reason'] or 'holds'}."
    notes = [
        f"{one['metric']} of {one['variant']}: {text}."
        for one in found["comparisons"]
        for text in one["warnings"]
    ]
    yield from notes


def _metric(document: Mapping[str, Any]) -> Metric:
    return Metric(
        name=document["name"],
        kind=MetricKind(document["kind"]),
        direction=Direction(document["direction"]),
        treatment_only=document["treatment_only"],
    )


def _say(console: Console, line: str, *, style: str = "") -> None:
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
