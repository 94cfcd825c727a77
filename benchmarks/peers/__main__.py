"""Our REST API against other ways to serve the same graph.

    python -m benchmarks.peers [--quick] [--only FOLDER …]
    python -m benchmarks.peers --try [--only FOLDER …]

Every peer is started alone, round after round, beside our deployment, and the two take turns at each number of callers:
so a ratio is taken from windows of load that are neighbours in time, and an idle peer burns nobody's processor.
`--try` compares the settings of each peer that catalog.py lists instead. See README.md.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from benchmarks import bodies, deployment, results
from benchmarks.bodies import Window
from benchmarks.measure import Measurement, Spread, measure, progress, ratio, select, spread, summary
from benchmarks.peers.catalog import IN_PROCESS, PEERS, Peer
from benchmarks.peers.environments import prepare, versions
from benchmarks.peers.running import PeerFailed, check, in_process, running
from benchmarks.results import Figure
from benchmarks.system import System
from tests.support.server import Server

VERSION = "v1.0"
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
QUICK_CONCURRENCIES = (1, 8, 32)
WARM_UP_CALLERS = (32, 1)
CHECKED_WINDOWS = 16
OURS = deployment.REST_JSON
PLAIN = "FastAPI"


def main() -> int:
    """Measures, writes results/peers.json (with --try results/peers_tried.json), prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1, 8 and 32 callers, one round; to results/tmp")
    parser.add_argument("--try", action="store_true", dest="is_trial", help="compare each peer's settings")
    parser.add_argument("--only", nargs="+", choices=[peer.folder for peer in PEERS], help="some peers")
    parser.add_argument("--repeats", type=int, help="rounds; default 3, quick 1")
    parser.add_argument("--seconds", type=int, default=1, help="length of a window")
    arguments = parser.parse_args()
    console = Console()
    wanted = [peer for peer in PEERS if not arguments.only or peer.folder in arguments.only]
    ready, skipped = prepare([IN_PROCESS, *wanted], console)
    is_short = arguments.quick or arguments.is_trial
    repeats = arguments.repeats or (1 if arguments.quick else 3)
    concurrencies = QUICK_CONCURRENCIES if is_short else CONCURRENCIES
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as name:
        bench = Bench(Path(name), console, concurrencies, repeats=repeats, seconds=arguments.seconds)
        if arguments.is_trial:
            bench.try_settings([peer for peer in ready if peer is not IN_PROCESS])
        else:
            bench.compare(ready, skipped)
        bench.write(
            "peers_tried" if arguments.is_trial else "peers",
            skipped,
            folder=results.FOLDER / "tmp" if arguments.quick or arguments.only else results.FOLDER,
        )
    return 0


class Bench:
    """One run, and what it has measured so far."""

    def __init__(
        self, folder: Path, console: Console, concurrencies: Sequence[int], *, repeats: int, seconds: float
    ) -> None:
        self._folder = folder
        self._console = console
        self._concurrencies = concurrencies
        self._repeats = repeats
        self._seconds = seconds
        self._windows: list[Window] = [window[None] for window in bodies.demo_windows()]
        self._bodies = bodies.json_bodies(self._windows, VERSION)
        self._measured: list[Measurement] = []
        self._peers: list[Peer] = []

    def compare(self, peers: Sequence[Peer], skipped: dict[str, str]) -> None:
        """Measures the peers beside our deployment."""
        self._peers = list(peers)
        with deployment.deployment(self._folder) as server, progress() as bar:
            turns = self._repeats * len(peers)
            task = bar.add_task("", total=turns * (1 + len(self._concurrencies)))
            ours = deployment.rest_system(server, self._windows, VERSION, OURS)
            expected = [deployment.ask_once(server, body) for body in self._bodies[:CHECKED_WINDOWS]]
            for turn in range(turns):
                peer = peers[turn % len(peers)]
                if peer.name in skipped:
                    continue
                bar.update(task, description=f"round {turn // len(peers) + 1}: {peer.name}")
                try:
                    with ExitStack() as stack:
                        theirs = self._start(stack, peer, server, expected)
                        bar.advance(task)
                        self._take_turns(turn, [ours, theirs], lambda: bar.advance(task))
                except PeerFailed as error:
                    bar.console.print(f"[red]{peer.name} is left out:[/red] {error}")
                    skipped[peer.name] = str(error)

    def _start(
        self, stack: ExitStack, peer: Peer, server: Server, expected: Sequence[dict[str, object]]
    ) -> System:
        model = model_of(server.repository)
        if peer is IN_PROCESS:
            return stack.enter_context(in_process(model=model, windows=self._windows, folder=self._folder))
        url, system = stack.enter_context(
            running(peer, peer.settings[0], model=model, bodies=self._bodies, folder=self._folder)
        )
        check(peer.name, url, self._bodies[:CHECKED_WINDOWS], expected)
        return system

    def _take_turns(self, turn: int, pair: Sequence[System], done: Callable[[], None]) -> None:
        for system in pair:
            for callers in WARM_UP_CALLERS:
                system.drive(callers, 1)
        for index, callers in enumerate(self._concurrencies):
            for system in pair if (turn + index) % 2 == 0 else reversed(pair):
                self._measured.append(measure(system, callers, seconds=self._seconds, repeat=turn))
            done()

    def try_settings(self, peers: Sequence[Peer]) -> None:
        """Measures every setting of each peer, each alone, in turns."""
        self._peers = list(peers)
        deployment.publish_demo(self._folder / "model_repository")
        model = model_of(self._folder / "model_repository")
        with progress() as bar:
            task = bar.add_task("", total=self._repeats * sum(len(peer.settings) for peer in peers))
            for repeat in range(self._repeats):
                for peer in peers:
                    for setting in peer.settings:
                        name = f"{peer.name}: {setting.label}"
                        bar.update(task, description=name)
                        try:
                            with running(
                                peer,
                                setting,
                                model=model,
                                bodies=self._bodies,
                                folder=self._folder,
                                name=name,
                            ) as (_, system):
                                for callers in WARM_UP_CALLERS:
                                    system.drive(callers, 1)
                                self._measured += [
                                    measure(system, callers, seconds=self._seconds, repeat=repeat)
                                    for callers in self._concurrencies
                                ]
                        except RuntimeError as error:
                            bar.console.print(f"[red]{name} failed:[/red] {error}")
                        bar.advance(task)

    def write(self, name: str, skipped: dict[str, str], *, folder: Path) -> None:
        """The result's file and the tables."""
        results.write(
            name,
            what="demo v1.0, one row a request, all uncertainty, JSON; other servers of the same graph",
            figures=figures_of(self._measured),
            summaries=summary(self._measured),
            settings={
                "repeats": self._repeats,
                "window_s": self._seconds,
                "peers": {
                    peer.name: {"setting": peer.settings[0].label, "versions": versions(peer)}
                    for peer in self._peers
                },
            },
            details={"left_out": skipped},
            folder=folder,
        )


def model_of(repository: Path) -> Path:
    """The graph that Triton and the peers share."""
    return repository / f"{bodies.TYPE}-{VERSION}/1/model.onnx"


def versus(measured: Sequence[Measurement], peer: str, callers: int, field: str) -> Spread:
    """Our figure over the peer's, each from the same turns."""
    theirs = select(measured, peer, callers)
    turns = {row.repeat for row in theirs}
    ours = [row for row in select(measured, OURS, callers) if row.repeat in turns]
    return ratio(ours, theirs, lambda load: float(getattr(load, field)))


def figures_of(measured: Sequence[Measurement]) -> list[Figure]:
    """The figures with a target, and those of each peer. Empty when our deployment wasn't measured."""
    names = list(dict.fromkeys(row.system for row in measured))
    if OURS not in names:
        return []
    servers = [name for name in names if name not in (OURS, IN_PROCESS.name)]
    figures = []
    for callers, target in ((8, 2.5), (32, 3.0)):
        ratios = {name: versus(measured, name, callers, "requests_per_s") for name in servers}
        best = min(ratios, key=lambda name: ratios[name].median, default=None)
        if best is not None:
            figures.append(
                Figure(
                    key=f"best_peer_{callers}",
                    text=f"REST JSON, {callers} callers: throughput over that of the best peer ({best})",
                    value=ratios[best],
                    sense=">=",
                    target=target,
                )
            )
    if PLAIN in servers:
        figures.append(
            Figure(
                key="plain_one_caller",
                text="REST JSON, 1 caller: p50 over that of plain FastAPI + pydantic + ONNX Runtime",
                value=versus(measured, PLAIN, 1, "p50_ms"),
                sense="<=",
                target=1.0,
            )
        )
    for callers in (1, 8, 32):
        figures += [
            Figure(
                key=f"{name.lower().replace(' ', '_')}_{callers}",
                text=f"REST JSON, {callers} {'caller' if callers == 1 else 'callers'}: throughput over that of {name}",
                value=versus(measured, name, callers, "requests_per_s"),
            )
            for name in servers
        ]
    if IN_PROCESS.name in names:
        figures.append(
            Figure(
                key="in_process_one_caller",
                text="REST JSON, 1 caller: p50 less that of raw ONNX Runtime in process",
                value=spread([cost_of_serving_ms(measured)]),
                unit="ms",
            )
        )
    return figures


def cost_of_serving_ms(measured: Sequence[Measurement]) -> float:
    """What the way to the model and back adds to one request, in milliseconds: difference of the median p50s."""
    ours, floor = (
        statistics.median(row.load.p50_ms for row in select(measured, name, 1))
        for name in (OURS, IN_PROCESS.name)
    )
    return ours - floor


if __name__ == "__main__":
    raise SystemExit(main())
