"""Writes the agents' section of docs/demo_models.md from the results, in words that follow from the figures."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from exporters.demo.evaluation import BLOCK_SAMPLES, block_bootstrap
from exporters.demo.features import FEATURE_NAMES
from exporters.demo.page import processor_name, replace_section
from exporters.demo_rl.agents import TrainedAgent
from exporters.demo_rl.environment import HALF_SPREAD_BP, SPREAD_BP, Values
from exporters.demo_rl.evaluation import HOURS_PER_YEAR, RANDOM_WALKS, Evaluation, Parts, Score
from exporters.demo_rl.training import DISCOUNT, EPISODE_BARS, REWARD_UNIT_BP


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Circumstances of a run; `seconds` is wall time of training and scoring."""

    seed: int
    threads: int
    seconds: float
    size_bytes: int
    observations: int
    temperature: float


def write_report(path: Path, agents: Sequence[TrainedAgent], evaluation: Evaluation, run: Run) -> None:
    """Writes the report into its section of the page."""
    sections = (
        _introduction(run),
        _scores_table(evaluation),
        _verdicts(evaluation),
        _agents_table(agents),
        _circumstances(run),
    )
    replace_section(path, "exporters.demo_rl", "\n\n".join(sections))


def _introduction(run: Run) -> str:
    return f"""## The ensemble of RL agents

Made by `python -m exporters.demo_rl`, which also writes this section. `checkpoints/rl_ensemble-v1.0.zip`
({run.size_bytes / 1024:.0f} KiB) holds five agents trained with Stable-Baselines3 on the training part above, and
`eurusd_test_observations.npz` {run.observations} observations of the test part with the return of the hour after each.
**They are not a trading strategy** either: they are there to serve, to weigh against each other, and to learn weights
from.

- Observation: the {len(FEATURE_NAMES)} channels above at one bar, raw, and as its last component `position`, what is
  held when the bar closes (-1, 0 or 1). A client of the served model sends its own position there; in the file it is
  the one to which the ensemble's decisions had led.
- Action: the position until the next close, `sell` short, `hold` none, `buy` long, of one unit of notional. SAC and
  TD3 act between -1 and 1, cut at ±1/3, in training as in serving.
- Reward: position times the return to the next close in basis points, less {HALF_SPREAD_BP:g} bp for each unit by which
  the position changes: half a spread of {SPREAD_BP:g} bp, so that a reversal costs {SPREAD_BP:g} bp. The prices are
  asks. Swaps, slippage and closing the last position cost nothing here.
- Training: episodes of {EPISODE_BARS} bars from random starts, discount {DISCOUNT:g} an hour, rewards (and so the
  served `value`) in units of {REWARD_UNIT_BP:g} bp.
- Probabilities: PPO and A2C have their own. DQN's are the softmax of its action values over a temperature of
  {run.temperature:g}, their mean deviation over the actions on the training part. SAC's and TD3's are the mass of a
  Gaussian in each interval: SAC's squashed one, and one around TD3's action as wide as its target noise."""


def _scores_table(evaluation: Evaluation) -> str:
    rows = {
        **{name: parts.test for name, parts in evaluation.agents.items()},
        "ensemble": evaluation.ensemble.test,
        "buy and hold": evaluation.buy_and_hold.test,
        "flat": evaluation.flat.test,
    }
    hours = len(evaluation.flat.test.rewards_bp)
    head = (
        "",
        "return, bp",
        "return, %",
        "costs, bp",
        "Sharpe ratio",
        "largest drawdown, bp",
        "trades",
        "mean, bp",
    )
    table = (
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(_score_row(name, row) for name, row in rows.items()),
        _random_row(evaluation.random),
    )
    notes = f"""{hours} hours. Each agent takes the action that Stable-Baselines3 predicts deterministically, the
ensemble the likeliest class of the agents' mean probabilities (uniform weights). Returns are sums on a fixed
notional, not compounded, costs subtracted. The Sharpe ratio is of hourly rewards, times √{HOURS_PER_YEAR:,}
(24 hours, 5 days, 52 weeks), with no riskless rate. A trade is a change of position. The mean is of an hour, its
95 % interval from a moving block bootstrap of {BLOCK_SAMPLES} hours. Random positions are drawn anew each hour."""
    return "\n".join(("### On the test part, after costs", "", *table, "", notes))


def _score_row(name: str, score: Score) -> str:
    cells = (
        f"{score.total_bp:+.1f}",
        f"{score.total_bp / 100:+.2f}",
        f"{score.costs_bp:.1f}",
        "–" if score.sharpe is None else f"{score.sharpe:+.2f}",
        f"{score.max_drawdown_bp:.1f}",
        f"{score.trades}",
        _interval(score.rewards_bp),
    )
    return f"| {name} | {' | '.join(cells)} |"


def _random_row(scores: Sequence[Score]) -> str:
    totals = np.array([score.total_bp for score in scores])
    sharpe = np.mean([score.sharpe or 0.0 for score in scores])
    low, high = np.quantile(totals, (0.05, 0.95))
    return (
        f"| random, mean of {RANDOM_WALKS} (5 % to 95 %) | {totals.mean():+.1f} ({low:+.0f} to {high:+.0f}) "
        f"| {totals.mean() / 100:+.2f} | {np.mean([score.costs_bp for score in scores]):.1f} | {sharpe:+.2f} "
        f"| {np.mean([score.max_drawdown_bp for score in scores]):.1f} "
        f"| {np.mean([score.trades for score in scores]):.0f} | – |"
    )


def _interval(rewards: Values) -> str:
    mean = block_bootstrap(rewards)
    return f"{mean.mean:+.3f} ({mean.low:+.3f} to {mean.high:+.3f})"


def _verdicts(evaluation: Evaluation) -> str:
    named = {f"`{name}`": parts for name, parts in evaluation.agents.items()}
    named["the ensemble"] = evaluation.ensemble
    groups: dict[str, list[str]] = {}
    for name, parts in named.items():
        groups.setdefault(_against_zero(parts.test.rewards_bp), []).append(name)
    sentences = [f"{_list(names)} {verdict} being flat." for verdict, names in groups.items()]
    difference = evaluation.ensemble.test.rewards_bp - evaluation.buy_and_hold.test.rewards_bp
    sentences.append(
        f"The ensemble {_against_zero(difference)} buying and holding: {_interval(difference)} bp an hour."
    )
    agents = list(evaluation.agents.values())
    train, validation, test = (
        [getattr(parts, part).total_bp for parts in agents] for part in ("train", "validation", "test")
    )
    fitted = (
        f"The agents made {_range(train)} bp on the training part, {_range(validation)} bp on the validation part "
        f"and {_range(test)} bp on the test part."
    )
    if min(train) > max(validation + test):
        fitted += " What they learned is the training part, not the market."
    caution = f"One market, {len(difference)} hours and one seed say little about the algorithms."
    paragraphs = (
        "### What that says of the agents",
        " ".join(sentences) + " All at 95 %.",
        f"{fitted} {caution}",
        _parts_table(evaluation),
    )
    return "\n\n".join(paragraphs)


def _against_zero(differences: Values) -> str:
    mean = block_bootstrap(differences)
    if mean.low > 0:
        return "earned more than"
    return "earned less than" if mean.high < 0 else "cannot be told from"


def _list(names: Sequence[str]) -> str:
    text = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return text[0].upper() + text[1:]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):+.0f} to {max(values):+.0f}"


def _parts_table(evaluation: Evaluation) -> str:
    named: dict[str, Parts] = {
        **evaluation.agents,
        "ensemble": evaluation.ensemble,
        "buy and hold": evaluation.buy_and_hold,
    }
    lines = [
        "| return, bp (Sharpe ratio) | training | validation | test |",
        "|---|---|---|---|",
    ]
    for name, parts in named.items():
        cells = [
            f"{score.total_bp:+.0f} ({'–' if score.sharpe is None else format(score.sharpe, '+.2f')})"
            for score in (parts.train, parts.validation, parts.test)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _agents_table(agents: Sequence[TrainedAgent]) -> str:
    lines = [
        "### The five agents",
        "",
        "| | actions | hidden layers | activation | observations normalised | steps |",
        "|---|---|---|---|---|---|",
    ]
    for agent in agents:
        plan = agent.plan
        clipped = "no" if plan.clip_obs is None else f"VecNormalize, clipped at ±{plan.clip_obs:g}"
        lines.append(
            f"| {plan.algorithm.__name__} (`{plan.name}`) | {'Box, -1 to 1' if plan.continuous else 'discrete'} "
            f"| {_layers(agent)} | {plan.activation.__name__} | {clipped} | {plan.steps:,} |"
        )
    return "\n".join(lines)


def _layers(agent: TrainedAgent) -> str:
    layers = agent.plan.layers
    if isinstance(layers, list):
        layers = {"": layers}
    return ", ".join(f"{name} {' × '.join(map(str, sizes))}".strip() for name, sizes in layers.items())


def _circumstances(run: Run) -> str:
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("stable-baselines3", "gymnasium", "torch", "numpy")
    )
    return (
        f"Made in {run.seconds:.0f} s with {run.threads} thread{'s' if run.threads > 1 else ''} on {processor_name()}, "
        f"{platform.system()}, Python {platform.python_version()}, {packages}; seed {run.seed}. Steps and settings "
        "were chosen on the training and validation parts. On the same machine and versions the same seed gives the "
        "same agents; elsewhere the last digits differ, and with them decisions."
    )
