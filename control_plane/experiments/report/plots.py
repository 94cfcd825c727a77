"""Plots as inline SVG: text without script, whose colours the page's style sheet gives (`s0` to `s9`). Pure.

Built as a tree of elements, so that whatever a label holds is escaped and the result is well-formed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from control_plane.experiments.sketch import NOT_POSITIVE, Sketch, upper_edge

COLOURS = 10
_WIDTH, _HEIGHT = 640.0, 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 78.0, 24.0, 12.0, 40.0
_MOST_POINTS = 200
_MOST_BINS = 64
_ROW_HEIGHT, _BAR_HEIGHT = 30.0, 16.0
_TIME_UNITS = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"))


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a plot is called, and what it shows for those who don't see it. `plot_id` is unique on the page."""

    plot_id: str
    title: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalPoint:
    """An estimate and its interval at one time, in seconds since the start; without bounds: nothing is valid yet."""

    at_s: float
    middle: float
    lower: float | None
    upper: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One variant's latencies. `colour` is its place among the variants."""

    colour: int
    sketch: Sketch


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Units of one share epoch, by variant, and the shares that were declared."""

    label: str
    counts: tuple[int, ...]
    declared: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Axis:
    """From values to pixels; what lies outside is drawn at the edge."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)


def interval_plot(about: About, points: Sequence[IntervalPoint], tick: Callable[[float], str]) -> str:
    """The interval over time, as a band around its middle, and where no difference is.

    Args:
        about: The plot.
        points: Oldest first.
        tick: Writes a value of the vertical axis.
    """
    step = max(1, math.ceil(len(points) / _MOST_POINTS))
    kept = list(points[::-1][::step])[::-1]
    svg = _begin(about)
    span_s = max((point.at_s for point in kept), default=0.0) or 1.0
    unit_s, unit = next((one for one in _TIME_UNITS if span_s >= 2 * one[0]), (1.0, "seconds"))
    x = _Axis(0.0, span_s / unit_s, _LEFT, _WIDTH - _RIGHT)
    low, high = _bounds(kept)
    y = _Axis(low, high, _HEIGHT - _BOTTOM, _TOP)
    _draw_axes(svg, x, y, [(value, tick(value)) for value in ticks(low, high)], f"{unit} since the start")
    for value in ticks(x.low, x.high):
        _text(svg, x.at(value), y.start + 16, f"{value:g}", "middle")
    _line(svg, (x.start, y.at(0.0)), (x.end, y.at(0.0)), "zero")
    for run in _runs(kept):
        at = [x.at(point.at_s / unit_s) for point in run]
        upper = [y.at(point.upper or 0.0) for point in run]
        lower = [y.at(point.lower or 0.0) for point in run]
        if len(run) == 1:
            _line(svg, (at[0], upper[0]), (at[0], lower[0]), "middle")
            continue
        outline = [*zip(at, upper, strict=True), *reversed(list(zip(at, lower, strict=True)))]
        ET.SubElement(svg, "polygon", {"class": "band", "points": _pairs(outline)})
        middle = [(across, y.at(point.middle)) for across, point in zip(at, run, strict=True)]
        ET.SubElement(svg, "polyline", {"class": "middle", "points": _pairs(middle)})
    return _end(svg)


def latency_plot(about: About, curves: Sequence[Curve]) -> str:
    """How latencies are distributed: the share of requests in each bin of a logarithmic axis, and lines at P95.

    Args:
        about: The plot.
        curves: Of the variants; those without requests are left out.
    """
    seen = [curve for curve in curves if any(index != NOT_POSITIVE for index in curve.sketch.counts)]
    svg = _begin(about)
    if not seen:
        return _end(svg)
    edges = [_outer(curve.sketch) for curve in seen]
    first, last = min(low for low, _ in edges) - 1, max(high for _, high in edges) + 1
    width = math.ceil((last - first + 1) / _MOST_BINS)
    bins = math.ceil((last - first + 1) / width)
    shares = [_binned(curve.sketch, first, width, bins) for curve in seen]
    low, high = math.log(upper_edge(first - 1)), math.log(upper_edge(first - 1 + width * bins))
    x = _Axis(low, high, _LEFT, _WIDTH - _RIGHT)
    y = _Axis(0.0, max(max(one) for one in shares) * 1.05, _HEIGHT - _BOTTOM, _TOP)
    marks = [(value, f"{100.0 * value:.3g} %") for value in ticks(y.low, y.high)]
    _draw_axes(svg, x, y, marks, "latency in ms, logarithmic")
    for value in log_ticks(math.exp(low), math.exp(high)):
        _text(svg, x.at(math.log(value)), y.start + 16, f"{value:g}", "middle")
    for curve, heights in zip(seen, shares, strict=True):
        outline = []
        for place, height in enumerate(heights):
            for edge in (place, place + 1):
                at = x.start + edge / bins * (x.end - x.start)
                outline.append((at, y.at(height)))
        name = f"curve s{curve.colour % COLOURS}"
        ET.SubElement(svg, "polyline", {"class": name, "points": _pairs(outline)})
        p95 = curve.sketch.quantile(0.95)
        if p95:
            _line(svg, (x.at(math.log(p95)), y.start), (x.at(math.log(p95)), y.end), f"quantile {name}")
    return _end(svg)


def split_plot(about: About, splits: Sequence[Split]) -> str:
    """Observed shares as bars, declared ones as ticks across them; a row for each share epoch."""
    height = _TOP + _ROW_HEIGHT * len(splits) + _BOTTOM
    svg = _begin(about, height=height)
    x = _Axis(0.0, 1.0, _LEFT, _WIDTH - _RIGHT)
    for row, split in enumerate(splits):
        top = _TOP + row * _ROW_HEIGHT
        _text(svg, x.start - 8, top + _BAR_HEIGHT - 3, split.label, "end")
        total, begin, edge = sum(split.counts), 0.0, 0.0
        for place, (count, declared) in enumerate(zip(split.counts, split.declared, strict=True)):
            share = count / total if total else 0.0
            box = {"x": _pixel(x.at(begin)), "y": _pixel(top), "height": _pixel(_BAR_HEIGHT)}
            box |= {"width": _pixel(x.at(begin + share) - x.at(begin)), "class": f"bar s{place % COLOURS}"}
            ET.SubElement(svg, "rect", box)
            begin, edge = begin + share, edge + declared
            if place < len(split.counts) - 1:
                _line(svg, (x.at(edge), top - 5), (x.at(edge), top + _BAR_HEIGHT + 5), "declared")
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        _text(svg, x.at(value), height - _BOTTOM + 12, f"{100 * value:g} %", "middle")
    _text(svg, (x.start + x.end) / 2, height - 8, "share of units; lines: as declared", "middle")
    return _end(svg)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values from low to high: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / wanted
    if not (math.isfinite(raw) and raw > 0.0):
        return []
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(one * scale for one in (1.0, 2.0, 5.0, 10.0) if one * scale >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values of a logarithmic axis: 1, 2, 5, 10, …; more where it spans little, fewer where it spans much."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [float(f"{digit * 10.0**decade:.12g}") for decade in decades for digit in digits]
        inside = [value for value in found if low <= value <= high]
        if len(inside) >= 3:
            return inside[:: math.ceil(len(inside) / 10)]
    return ticks(low, high)


def _bounds(points: Sequence[IntervalPoint]) -> tuple[float, float]:
    """What the vertical axis spans: 0, and the later half of the intervals; earlier ones, wider, leave the plot."""
    known = [point for point in points if point.lower is not None and point.upper is not None]
    later = known[len(known) // 2 :]
    lows = [point.lower for point in later if point.lower is not None]
    highs = [point.upper for point in later if point.upper is not None]
    low, high = min([0.0, *lows]), max([0.0, *highs])
    margin = 0.15 * (high - low) or 1.0
    return low - margin, high + margin


def _runs(points: Sequence[IntervalPoint]) -> list[list[IntervalPoint]]:
    """Stretches of points with bounds."""
    runs: list[list[IntervalPoint]] = [[]]
    for point in points:
        if point.lower is not None and point.upper is not None:
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _outer(sketch: Sketch) -> tuple[int, int]:
    """The buckets between which nearly all values lie."""
    indices, upto = sketch.cumulative()
    total = int(upto[-1])
    inside = [
        int(index)
        for index, count in zip(indices, upto, strict=True)
        if index != NOT_POSITIVE and 0.001 * total <= count
    ]
    above = next(int(index) for index, count in zip(indices, upto, strict=True) if count >= 0.999 * total)
    return inside[0], max(above, inside[0])


def _binned(sketch: Sketch, first: int, width: int, bins: int) -> list[float]:
    """The share of requests in each bin; those beyond the last are in none."""
    shares, total = [0.0] * bins, sketch.count
    for index, count in sketch.counts.items():
        if 0 <= (place := (index - first) // width) < bins:
            shares[place] += count / total
    return shares


def _begin(about: About, *, height: float = _HEIGHT) -> ET.Element:
    names = f"{about.plot_id}-title", f"{about.plot_id}-summary"
    size = {"viewBox": f"0 0 {_WIDTH:g} {height:g}", "class": "plot"}
    svg = ET.Element("svg", size | {"role": "img", "aria-labelledby": " ".join(names)})
    ET.SubElement(svg, "title", {"id": names[0]}).text = about.title
    ET.SubElement(svg, "desc", {"id": names[1]}).text = about.summary
    return svg


def _end(svg: ET.Element) -> str:
    return ET.tostring(svg, encoding="unicode")


def _draw_axes(svg: ET.Element, x: _Axis, y: _Axis, marks: Sequence[tuple[float, str]], below: str) -> None:
    for value, label in marks:
        _line(svg, (x.start, y.at(value)), (x.end, y.at(value)), "grid")
        _text(svg, x.start - 6, y.at(value) + 4, label, "end")
    _line(svg, (x.start, y.start), (x.end, y.start), "axis")
    _text(svg, (x.start + x.end) / 2, y.start + 34, below, "middle")


def _line(svg: ET.Element, begin: tuple[float, float], end: tuple[float, float], name: str) -> None:
    ends = {"x1": begin[0], "y1": begin[1], "x2": end[0], "y2": end[1]}
    ET.SubElement(svg, "line", {"class": name} | {key: _pixel(value) for key, value in ends.items()})


def _text(svg: ET.Element, x: float, y: float, text: str, anchor: str) -> None:
    place = {"x": _pixel(x), "y": _pixel(y), "text-anchor": anchor}
    ET.SubElement(svg, "text", place).text = text


def _pairs(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_pixel(x)},{_pixel(y)}" for x, y in points)


def _pixel(value: float) -> str:
    return f"{value:.1f}"
