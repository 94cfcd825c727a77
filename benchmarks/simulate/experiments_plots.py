"""The pictures of docs/experiments_validation.md."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.simulate.experiments_canaries import WITHIN
from benchmarks.simulate.experiments_goals import VARIANTS, Found
from benchmarks.simulate.experiments_laws import ALIKE, BERNOULLI, NORMAL
from benchmarks.simulate.experiments_sequences import ALPHA, PLANNED, share_of
from control_plane.experiments.moments import Floats


def plot_sequences(found: Found, path: Path) -> None:
    """How many A/A experiments were ever called different, and how many with an effect were found."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    requests = np.arange(0.0, PLANNED + 1, 100)
    for law, colour in ((NORMAL, "C0"), (ALIKE, "C1")):
        one = found.same[law, True]
        _curve(left, requests, one.found, f"always-valid, {law.text}", colour, "-")
        _curve(left, requests, one.naive_t, f"naive t-test, {law.text}", colour, "--")
    left.axhline(ALPHA, color="gray", linestyle=":", linewidth=1)
    left.set(
        title="No difference: ever called one",
        xlabel="requests",
        ylabel="share of experiments",
        ylim=(0, 0.8),
    )
    requests = np.arange(0.0, 2 * PLANNED + 1, 200)
    for law, routing_keys, colour in ((NORMAL, False, "C0"), (BERNOULLI, False, "C2"), (ALIKE, True, "C1")):
        one = found.different[law, routing_keys]
        label = law.text + (", accounts as units" if routing_keys else "")
        _curve(right, requests, one.found, label, colour, "-")
    right.plot(
        [PLANNED], [0.8], marker="o", color="black", linestyle="", label="fixed-horizon test, one look"
    )
    right.axhline(0.8, color="gray", linestyle=":", linewidth=1)
    right.set(title="An effect: always-valid verdict found it", xlabel="requests", ylim=(0, 1))
    _save(figure, (left, right), path)


def plot_canaries(found: Found, path: Path) -> None:
    """How many canaries were rolled back by each of the treatment's requests."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, len(VARIANTS), sharey=True)
    requests = np.arange(0.0, WITHIN + 1, 10)
    for axes, (limit, least) in zip(panels, VARIANTS, strict=True):
        for number, (text, at) in enumerate(found.harmful[limit, least].items()):
            _curve(axes, requests, at, text, f"C{number}", "-")
        _curve(axes, requests, found.harmless["the same model"], "harmless", "black", "--")
        axes.set(
            title=f"limit {limit:g}, steps of {least} requests", xlabel="treatment's requests", ylim=(0, 1)
        )
    panels[0].set_ylabel("share rolled back")
    _save(figure, tuple(panels), path)


def _curve(axes: Axes, requests: Floats, first: Floats, label: str, colour: str, style: str) -> None:
    shares = [share_of(first, by=float(by)) for by in requests]
    axes.plot(requests, shares, label=label, color=colour, linestyle=style, linewidth=1.4)


def _save(figure: Figure, panels: tuple[Axes, ...], path: Path) -> None:
    for axes in panels:
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=7)
    path.parent.mkdir(exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
