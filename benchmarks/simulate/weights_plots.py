"""The pictures of the weights that learn."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.simulate.bandit import BATCH, LAWS, SURE
from control_plane.ensembles.credit import Floats

Found = Mapping[tuple[str, str], Floats]


def plot_weights(learned: Found, changed: Found, path: Path) -> None:
    """The best agent's weight: learned by Thompson sampling under each law; and after a change by each policy."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for law in LAWS:
        _band(left, learned[law.text, "thompson"][:, :, 0], law.text)
    left.set(title="thompson, gap 0.1: the best agent's weight", ylabel="mean, and 5 % to 95 % of runs")
    for (law, name), weights in changed.items():
        if law == SURE.text and "Σc" not in name:
            _band(right, weights[:, :, 1], name)
    right.axvline(5000, color="gray", linestyle="--", linewidth=1)
    right.set(title="sure agents, gap 0.2: weight of the best from 5,000 on")
    for axes in (left, right):
        axes.axhline(0.2, color="gray", linestyle=":", linewidth=1)
        axes.set_ylim(0, 1)
    _save(figure, (left, right), path)


def plot_regret(learned: Found, path: Path) -> None:
    """Cumulative regret in standard deviations of the noise: one panel a law."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, len(LAWS), sharey=True)
    for axes, law in zip(panels, LAWS, strict=True):
        for name in ("thompson", "softmax, temperature 0.05", "softmax, temperature 0.02"):
            _band(axes, 0.1 * BATCH * (1 - learned[law.text, name][:, :, 0]).cumsum(axis=0), name)
        end = len(learned[law.text, "thompson"]) * BATCH
        axes.plot([0, end], [0, 0.08 * end], color="black", linewidth=1, label="uniform")
        axes.plot([0, end], [0, 0.04 * end], color="gray", linestyle="--", linewidth=1, label="half of it")
        axes.set(title=law.text)
    panels[0].set_ylabel("regret, mean, and 5 % to 95 % of runs")
    _save(figure, tuple(panels), path)


def _band(axes: Axes, values: Floats, label: str) -> None:
    rewards = np.arange(len(values)) * BATCH
    shown = slice(None, None, max(1, len(values) // 80))  # keeps the file small
    low, high = np.quantile(values, (0.05, 0.95), axis=1)
    (line,) = axes.plot(rewards[shown], values.mean(axis=1)[shown], label=label)
    axes.fill_between(
        rewards[shown], low[shown], high[shown], color=line.get_color(), alpha=0.15, linewidth=0
    )


def _save(figure: Figure, panels: tuple[Axes, ...], path: Path) -> None:
    for axes in panels:
        axes.set_xlabel("rewards")
        axes.grid(visible=True, alpha=0.3)
    panels[0].legend(fontsize=7)
    if len(panels) == 2:
        panels[1].legend(fontsize=7)
    path.parent.mkdir(exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
