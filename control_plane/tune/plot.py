"""The curve as a picture: throughput and latency against the rows of a call. Needs the extra `plots`."""

from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

from control_plane.models.tuning.choice import Point
from control_plane.models.tuning.measurement import Curve

MISSING = "No plot was drawn, since matplotlib isn't installed: pip install 'model-serving[plots]'"
_CHOSEN = "#d62728"


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def ending_fault(path: Path) -> str | None:
    """What is wrong with a picture's ending, told before anything is measured; None where it is fine, or nobody can
    tell without matplotlib.
    """
    if not can_plot():
        return None
    from matplotlib.backend_bases import FigureCanvasBase  # noqa: PLC0415  as below

    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") in formats:
        return None
    return f"{path} has no ending of a picture: {', '.join(f'.{name}' for name in sorted(formats))}."


def write_plot(path: Path, model: str, curve: Curve) -> None:
    """Writes the picture, in the format that the file's ending names.

    Raises:
        OSError: the file can't be written.
        ValueError: there is no such format.
    """
    # 0.4 s and 40 MB that the server itself never needs.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context({"svg.hashsalt": model, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        throughput, latency = figure.subplots(2, 1, sharex=True)
        for calls, points in _by_calls(curve.points).items():
            rows = [point.size.rows for point in points]
            style = "o-" if len(points) > 1 else "o"
            label = f"{calls} in flight"
            throughput.plot(rows, [point.rows_per_s for point in points], style, markersize=4, label=label)
            latency.plot(rows, [point.request_p95_ms for point in points], style, markersize=4, label=label)
        latency.axhline(
            curve.objective_p95_ms,
            color="gray",
            linestyle="--",
            label=f"objective, {curve.objective_p95_ms:g} ms",
        )
        if (chosen := curve.chosen) is not None:
            ring = {"s": 130, "facecolors": "none", "edgecolors": _CHOSEN, "linewidths": 1.8, "zorder": 3}
            label = f"chosen: {chosen.size.rows} rows, {chosen.size.calls_in_flight} in flight"
            throughput.scatter([chosen.size.rows], [chosen.rows_per_s], label=label, **ring)
            latency.scatter([chosen.size.rows], [chosen.request_p95_ms], **ring)
        throughput.set_title(model)
        throughput.set_ylabel("rows a second")
        throughput.set_ylim(bottom=0)
        latency.set_ylabel("P95 of a request, ms")
        latency.set_xlabel("rows of a call")
        latency.set_xscale("log", base=2)
        latency.set_yscale("log", base=2)
        latency.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        latency.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for axes in (throughput, latency):
            axes.grid(visible=True, alpha=0.3)
            axes.legend(fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the date, the same curve is the same file.
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _by_calls(points: tuple[Point, ...]) -> dict[int, list[Point]]:
    found: defaultdict[int, list[Point]] = defaultdict(list)
    for point in points:
        found[point.size.calls_in_flight].append(point)
    return dict(sorted(found.items()))
