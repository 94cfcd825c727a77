"""How the report writes figures. Pure."""

import math
from datetime import UTC, datetime

from control_plane.experiments.design import Metric, MetricKind
from control_plane.experiments.sequential import Interval

NOTHING = "–"
"""Where there is no figure."""
_TINY_P = 0.001


def number(value: float | None, digits: int = 4) -> str:
    """Few digits, with thousands apart."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if abs(value) >= 10 ** (digits - 1) or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(share: float | None, digits: int = 3) -> str:
    """A share of one."""
    return NOTHING if share is None else f"{100.0 * share:.{digits}g} %"


def p_value(p: float | None) -> str:
    """A p-value."""
    if p is None:
        return NOTHING
    return f"< {_TINY_P:g}" if p < _TINY_P else f"{p:.3f}"


def level(metric: Metric, value: float | None) -> str:
    """One variant's mean."""
    if metric.kind is MetricKind.LATENCY:
        return NOTHING if value is None else f"{number(value)} ms"
    return percent(value) if metric.kind.binary else number(value)


def in_unit(metric: Metric, difference: float) -> float:
    """A difference on the scale in which it is told: per cent for a latency, percentage points for a rate."""
    if metric.kind is MetricKind.LATENCY:
        return 100.0 * math.expm1(min(difference, _LARGEST_LOG))
    return 100.0 * difference if metric.kind.binary else difference


def unit(metric: Metric) -> str:
    """That scale's name; empty for a plain mean."""
    return "%" if metric.kind is MetricKind.LATENCY else "points" if metric.kind.binary else ""


def change(metric: Metric, difference: float | None) -> str:
    """E.g. "+3.1 %", "-0.4 points", "+0.012"."""
    if difference is None:
        return NOTHING
    return f"{in_unit(metric, difference):+.3g} {unit(metric)}".rstrip()


def interval(metric: Metric, found: Interval) -> str:
    """From … to …"""
    if found.lower is None or found.upper is None:
        return NOTHING
    return (
        f"{in_unit(metric, found.lower):+.3g} to {in_unit(metric, found.upper):+.3g} {unit(metric)}".rstrip()
    )


def moment(wall_s: float) -> str:
    """A time, to the second."""
    return f"{datetime.fromtimestamp(wall_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


_LARGEST_LOG = 700.0
"""exp of more overflows."""
