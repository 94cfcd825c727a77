"""Four times more requests than the server can answer: what it still answers, and how late.

    python -m benchmarks.overload

Capacity is the most that callers in a closed loop get, over several numbers of callers; its p99 is that of the number
that got it. Then requests come in an open loop, four times as many, and each says by `timeout_ms` that an answer later
than twice the p99 at capacity is of no use; what can't be done by then is refused with 503. The same without a
deadline, where only the queue's bound of 1,000 requests refuses, stands in the details of the first round. For the demo
and for the full-size hybrid.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import bodies, deployment, results
from benchmarks.arguments import no_options
from benchmarks.bodies import Window
from benchmarks.deployment import PREDICT, publish_full_size
from benchmarks.load import LoadResult, run_open_http
from benchmarks.measure import Spread, progress, spread
from benchmarks.results import Figure
from tests.support.server import Server

FULL_SIZE = "v-full"
CALLERS = (8, 32, 64)
ROUNDS = 3
CLOSED_S, OPEN_S = 2, 3
TIMES = 4.0
CONNECTIONS = 1_500


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round on one model: at capacity, overloaded with deadlines, overloaded without."""

    capacity: LoadResult
    timeout_ms: float
    overloaded: LoadResult
    unbounded: LoadResult | None

    @property
    def goodput(self) -> float:
        """Answers a second under overload over those at capacity."""
        return self.overloaded.requests_per_s / self.capacity.requests_per_s

    @property
    def lateness(self) -> float:
        """The p99 of those answered under overload over that at capacity."""
        return self.overloaded.p99_ms / self.capacity.p99_ms


def main() -> int:
    """Measures, writes results/overload.json, prints."""
    models = {"demo v1.0": "v1.0", "full-size hybrid": FULL_SIZE}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        deployment.deployment(
            Path(name), prepare=lambda repository: publish_full_size(repository, FULL_SIZE)
        ) as server,
        progress() as bar,
    ):
        windows = {"v1.0": bodies.demo_windows(), FULL_SIZE: bodies.random_windows(32, 50, 60)}
        rounds: dict[str, list[Round]] = {name: [] for name in models}
        task = bar.add_task("overload", total=ROUNDS * len(models))
        for _ in range(ROUNDS):
            for model, version in models.items():
                is_first = not rounds[model]
                rounds[model].append(run_round(server, windows[version], version, is_first=is_first))
                bar.advance(task)
    figures = [figure for name, done in rounds.items() for figure in figures_of(name, done)]
    results.write(
        "overload",
        what=f"{TIMES:g} times the capacity in an open loop, JSON, all uncertainty; deadline twice the p99 at capacity",
        figures=figures,
        settings={"rounds": ROUNDS, "closed_s": CLOSED_S, "open_s": OPEN_S, "connections": CONNECTIONS},
        details={name: [asdict(one) for one in done] for name, done in rounds.items()},
    )
    show(rounds)
    return 0


def run_round(server: Server, windows: Sequence[Window], version: str, *, is_first: bool) -> Round:
    """Capacity, then overload; in the first round also without a deadline."""
    capacity = find_capacity(server, windows, version)
    timeout_ms = 2 * capacity.p99_ms
    rate_per_s = TIMES * capacity.requests_per_s
    return Round(
        capacity=capacity,
        timeout_ms=timeout_ms,
        overloaded=offer(server, windows, version, rate_per_s, timeout_ms=timeout_ms),
        unbounded=offer(server, windows, version, rate_per_s) if is_first else None,
    )


def find_capacity(
    server: Server, windows: Sequence[Window], version: str, callers: Sequence[int] = CALLERS
) -> LoadResult:
    """The closed loop with the greatest throughput."""
    system = deployment.rest_system(server, windows, version)
    system.drive(callers[0], 1)
    return max((system.drive(number, CLOSED_S) for number in callers), key=lambda load: load.requests_per_s)


def offer(
    server: Server, windows: Sequence[Window], version: str, rate_per_s: float, **options: Any
) -> LoadResult:
    """An open loop; `options` go into each request."""
    return run_open_http(
        server.url,
        PREDICT,
        bodies.json_bodies(windows, version, **options),
        bodies.JSON_TYPE,
        rate_per_s=rate_per_s,
        connections=CONNECTIONS,
        seconds=OPEN_S,
        deadline_ms=options.get("timeout_ms"),
    )


def figures_of(name: str, rounds: Sequence[Round]) -> list[Figure]:
    """The two figures of a model."""
    key = name.split(maxsplit=1)[0].replace("-", "_")
    values: dict[str, Spread] = {
        "goodput": spread(one.goodput for one in rounds),
        "lateness": spread(one.lateness for one in rounds),
    }
    return [
        Figure(
            key=f"goodput_{key}",
            text=f"Overload at 4 times capacity, {name}: goodput over peak throughput",
            value=values["goodput"],
            sense=">=",
            target=0.9,
        ),
        Figure(
            key=f"lateness_{key}",
            text=f"Overload at 4 times capacity, {name}: p99 of those answered over p99 at capacity",
            value=values["lateness"],
            sense="<=",
            target=2,
        ),
    ]


def show(rounds: dict[str, list[Round]]) -> None:
    """Prints what is behind the figures."""
    for name, done in rounds.items():
        for one in done:
            print(f"{name}, at capacity: {line(one.capacity)}")
            print(f"  overloaded, {one.timeout_ms:.0f} ms: {line(one.overloaded)}")
            if one.unbounded is not None:
                print(f"  overloaded, no deadline: {line(one.unbounded)}")


def line(load: LoadResult) -> str:
    """A result in one line."""
    return (
        f"{load.answered} answered, {load.refused} refused, {load.timed_out} timed out, {load.failed} failed, "
        f"{load.requests_per_s:.0f}/s, p50 {load.p50_ms:.1f} ms, p99 {load.p99_ms:.1f} ms, {load.connections} callers, "
        f"generator {100 * load.generator_cpu_s / load.seconds:.0f} % of a core"
    )


if __name__ == "__main__":
    no_options(__doc__)
    raise SystemExit(main())
