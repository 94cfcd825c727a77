"""Twice more requests than a large model can answer in time: refused, or answered by a cheaper version.

    python -m benchmarks.degrade

The full-size hybrid with the demo's twelve channels, and the demo v1.0 as its fallback. Capacity is the most that
callers in a closed loop get; the deadline is twice the median latency there. Then requests with inputs that are all
different come in an open loop, twice as many as that, with `on_overload` reject and degrade in turns. What counts is
the share of the requests that were answered within the deadline, by the client's clock.
"""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from benchmarks import bodies, deployment, results
from benchmarks.arguments import no_options
from benchmarks.bodies import Window
from benchmarks.deployment import PREDICT, publish_full_size
from benchmarks.load import LoadResult, run_open_http
from benchmarks.measure import progress, spread
from benchmarks.overload import find_capacity
from benchmarks.results import Figure
from tests.support.server import Server

FULL_SIZE, FALLBACK = "v-full", "v1.0"
CALLERS = (8, 16, 32)
ROUNDS = 3
OPEN_S = 5
TIMES = 2.0
CONNECTIONS = 500
MARK = "0.1234567890123"
_FIRST_NUMBER = re.compile(rb'("data":\[+)[^,\]]+')


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round: at capacity, and twice as many with each of the two ways."""

    capacity: LoadResult
    timeout_ms: float
    reject: LoadResult
    degrade: LoadResult

    @property
    def gain(self) -> float:
        """The share answered in time with degrade over that with reject."""
        return in_time(self.degrade) / in_time(self.reject)


def main() -> int:
    """Measures, writes results/degrade.json, prints."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        deployment.deployment(
            Path(name), prepare=lambda repository: publish_full_size(repository, FULL_SIZE, channels=12)
        ) as server,
        progress() as bar,
    ):
        windows = bodies.demo_windows()
        give_fallback(server)
        cheaper = find_capacity(server, windows, FALLBACK, CALLERS)
        rounds = []
        task = bar.add_task("degrade", total=ROUNDS)
        for _ in range(ROUNDS):
            rounds.append(run_round(server, windows))
            bar.advance(task)
    speed = spread(cheaper.requests_per_s / one.capacity.requests_per_s for one in rounds)
    gain = spread(one.gain for one in rounds)
    results.write(
        "degrade",
        what="full-size hybrid with the demo v1.0 as fallback, twice its capacity in an open loop, inputs all "
        "different; deadline twice the median at capacity",
        figures=[
            Figure(key="fallback_speed", text="Capacity of the fallback over the version's", value=speed),
            Figure(
                key="degrade_gain",
                text="Overload at 2 times capacity: share answered in time with degrade over reject",
                value=gain,
                sense=">=",
                target=1.5,
            ),
        ],
        settings={"rounds": ROUNDS, "open_s": OPEN_S, "connections": CONNECTIONS},
        details={"rounds": [asdict(one) for one in rounds]},
    )
    for one in rounds:
        print(
            f"capacity {one.capacity.requests_per_s:.0f}/s, deadline {one.timeout_ms:.0f} ms: in time "
            f"{in_time(one.reject):.0%} with reject, {in_time(one.degrade):.0%} with degrade"
        )
    return 0


def give_fallback(server: Server) -> None:
    """Names the fallback in the card, and waits until both are loaded.

    Raises:
        httpx.HTTPStatusError: it was refused.
    """
    with httpx.Client(base_url=f"{server.url}/api/v1", timeout=120) as client:
        place = f"/models/{bodies.TYPE}/{FULL_SIZE}/serving"
        client.put(place, json={"fallback": FALLBACK}).raise_for_status()
        names = [{"model_type": bodies.TYPE, "version": version} for version in (FULL_SIZE, FALLBACK)]
        client.post("/models/warmup", json=names).raise_for_status()


def run_round(server: Server, windows: Sequence[Window]) -> Round:
    """Capacity, then both ways."""
    capacity = find_capacity(server, windows, FULL_SIZE, CALLERS)
    timeout_ms = 2 * capacity.p50_ms

    def offer(on_overload: str) -> LoadResult:
        content = bodies.json_bodies(windows, FULL_SIZE, timeout_ms=timeout_ms, on_overload=on_overload)
        return run_open_http(
            server.url,
            PREDICT,
            [_FIRST_NUMBER.sub(rb"\g<1>" + MARK.encode(), body, count=1) for body in content],
            bodies.JSON_TYPE,
            rate_per_s=TIMES * capacity.requests_per_s,
            connections=CONNECTIONS,
            seconds=OPEN_S,
            deadline_ms=timeout_ms,
            distinct=MARK,
        )

    return Round(capacity=capacity, timeout_ms=timeout_ms, reject=offer("reject"), degrade=offer("degrade"))


def in_time(load: LoadResult) -> float:
    """The share of the offered requests that was answered in time."""
    return (load.in_time or 0) / (load.offered or 1)


if __name__ == "__main__":
    no_options(__doc__)
    raise SystemExit(main())
