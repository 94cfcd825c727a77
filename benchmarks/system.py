"""A serving system as the benchmarks see it: how to load it, and which processes it consists of.

A system is already running when it gets here; the context manager that starts one yields it. `measure.compare` takes
several and lets them take turns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psutil

from benchmarks.load import LoadResult, run_http

Processes = Callable[[], Mapping[str, Sequence[psutil.Process]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A running system.

    Attributes:
        name: In tables and plots.
        drive: Loads it from so many callers for so many seconds, each caller with one request at a time.
        processes: Its processes now, by part (`api`, `triton`, …); for processor time and memory.
        concurrencies: The only numbers of callers that it is measured with; None for all of the comparison's.
    """

    name: str
    drive: Callable[[int, float], LoadResult]
    processes: Processes
    concurrencies: tuple[int, ...] | None = None


def http_system(
    name: str,
    *,
    url: str,
    path: str,
    bodies: Sequence[bytes],
    content_type: str,
    processes: Processes,
    headers: Mapping[str, str] | None = None,
    concurrencies: tuple[int, ...] | None = None,
) -> System:
    """A system that is asked by POST over HTTP/1.1; the arguments are those of `load.run_http`."""

    def drive(connections: int, seconds: float) -> LoadResult:
        return run_http(
            url,
            path,
            bodies,
            content_type,
            connections=connections,
            seconds=seconds,
            headers=headers,
        )

    return System(name=name, drive=drive, processes=processes, concurrencies=concurrencies)


def process_tree(pid: int) -> list[psutil.Process]:
    """A process and all below it that live."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(processes: Sequence[psutil.Process]) -> dict[int, float]:
    """User and system time by process id, in seconds."""
    found = {}
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        found[process.pid] = times.user + times.system
    return found


def memory_bytes(processes: Sequence[psutil.Process]) -> int:
    """Proportional set size of all together, in bytes: shared pages are counted once."""
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total
