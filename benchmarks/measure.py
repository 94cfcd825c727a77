"""Comparisons: the systems take turns within one run, several times, and medians and their spread come out."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.load import LoadResult
from benchmarks.system import System, cpu_seconds, memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The median of several measurements, and the least and the greatest of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} … {self.high:.3g})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One window of load on one system.

    Attributes:
        system: Its name.
        repeat: The round, from 0; windows of one round are neighbours in time.
        load: What the generator saw.
        cpu_us: Processor microseconds for each answer, by part of the system.
        memory_bytes: Proportional set size after the window, by part of the system.
    """

    system: str
    repeat: int
    load: LoadResult
    cpu_us: dict[str, float]
    memory_bytes: dict[str, int]


def spread(values: Iterable[float]) -> Spread:
    """Median, least and greatest.

    Raises:
        statistics.StatisticsError: there are none.
    """
    known = list(values)
    return Spread(median=statistics.median(known), low=min(known), high=max(known))


def compare(
    systems: Sequence[System],
    concurrencies: Sequence[int],
    *,
    repeats: int = 3,
    seconds: float = 2.0,
    warm_up_s: float = 1.0,
    note: Callable[[Measurement], None] | None = None,
) -> list[Measurement]:
    """Measures all systems at all numbers of callers, `repeats` times; the first of each turn changes.

    Args:
        systems: Running ones, different names.
        concurrencies: Numbers of callers.
        repeats: Rounds over everything.
        seconds: Length of each window.
        warm_up_s: Load on each system before the first window, at 8 callers or its nearest; 0 for none.
        note: Is called with each measurement.
    """
    cells = [
        (repeat, connections, system)
        for repeat in range(repeats)
        for connections in concurrencies
        for system in turned(systems, repeat)
        if system.concurrencies is None or connections in system.concurrencies
    ]
    measured = []
    with progress() as bar:
        task = bar.add_task("warm-up", total=len(cells) + len(systems))
        for system in systems:
            if warm_up_s > 0:
                allowed = system.concurrencies or tuple(concurrencies)
                system.drive(min(allowed, key=lambda number: abs(number - 8)), warm_up_s)
            bar.advance(task)
        for repeat, connections, system in cells:
            bar.update(task, description=f"{system.name}, {connections} callers")
            measured.append(measure(system, connections, seconds=seconds, repeat=repeat))
            if note is not None:
                note(measured[-1])
            bar.advance(task)
    return measured


def measure(system: System, connections: int, *, seconds: float, repeat: int = 0) -> Measurement:
    """One window of load, with the system's processor time and memory."""
    before = {part: cpu_seconds(processes) for part, processes in system.processes().items()}
    load = system.drive(connections, seconds)
    parts = system.processes()
    cpu_us = {}
    for part, processes in parts.items():
        earlier = before.get(part, {})
        used = sum(after - earlier.get(pid, 0.0) for pid, after in cpu_seconds(processes).items())
        cpu_us[part] = 1e6 * used / max(1, load.answered)
    return Measurement(
        system=system.name,
        repeat=repeat,
        load=load,
        cpu_us=cpu_us,
        memory_bytes={part: memory_bytes(processes) for part, processes in parts.items()},
    )


def turned(things: Sequence[System], by: int) -> list[System]:
    """The systems in order, beginning with another."""
    by %= max(1, len(things))
    return [*things[by:], *things[:by]]


def select(measured: Iterable[Measurement], system: str, connections: int) -> list[Measurement]:
    """Those of one system and one number of callers, by round."""
    found = [row for row in measured if row.system == system and row.load.connections == connections]
    return sorted(found, key=lambda row: row.repeat)


def ratio(
    over: Sequence[Measurement], under: Sequence[Measurement], value: Callable[[LoadResult], float]
) -> Spread:
    """A figure of one over that of another, taken within each round.

    Raises:
        ValueError: they were not measured in the same rounds.
    """
    if not over or [row.repeat for row in over] != [row.repeat for row in under]:
        raise ValueError("nothing to compare: measured in different rounds, or not at all")
    return spread(value(a.load) / value(b.load) for a, b in zip(over, under, strict=True))


def summary(measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    """For each system and number of callers: medians and spread of all that was measured, ready for JSON."""
    cells = dict.fromkeys((row.system, row.load.connections) for row in measured)
    rows = []
    for system, connections in cells:
        group = select(measured, system, connections)
        first = group[0]
        figures = {
            field.name: asdict(spread(getattr(row.load, field.name) for row in group))
            for field in fields(LoadResult)
            if field.name in ("requests_per_s", "p50_ms", "p90_ms", "p99_ms", "max_ms")
        }
        rows.append(
            {
                "system": system,
                "connections": connections,
                "generator": first.load.generator,
                "windows": len(group),
                "answered": sum(row.load.answered for row in group),
                "refused": sum(row.load.refused for row in group),
                "failed": sum(row.load.failed for row in group),
                **figures,
                "cpu_us": {
                    part: statistics.median(row.cpu_us.get(part, 0.0) for row in group)
                    for part in first.cpu_us
                },
                "generator_cpu_us": statistics.median(
                    1e6 * row.load.generator_cpu_s / max(1, row.load.answered) for row in group
                ),
                "peak_memory_bytes": {
                    part: max(row.memory_bytes.get(part, 0) for row in group) for part in first.memory_bytes
                },
            }
        )
    return rows


def progress() -> Progress:
    """A bar for the terminal."""
    return Progress(
        TextColumn("{task.description:<40.40}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )


def thread_us(stage: Callable[[], object], *, repeats: int = 9, each: int = 5_000) -> list[float]:
    """Processor microseconds of one call in this thread, in each of the repeats."""
    found = []
    for _ in range(repeats):
        started = time.thread_time()
        for _ in range(each):
            stage()
        found.append((time.thread_time() - started) / each * 1e6)
    return found
