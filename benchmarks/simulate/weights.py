"""Do the weights learn which agent is the best, and do they follow when another one becomes it?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.simulate import page, weights_plots
from benchmarks.simulate.bandit import APART, BATCH, LAWS, SOFT, SURE, Law, Trial, simulate
from control_plane.ensembles.credit import Floats
from control_plane.ensembles.policies import PolicySettings, RewardKind, WeightsPolicy

RUNS, RUNS_QUICK = 100, 20
SEED = 5
HALF_LIFE = 2000
"""Rewards, which come one a second."""
_THOMPSON = PolicySettings()
_FORGETTING = PolicySettings(half_life_hours=HALF_LIFE / 3600)
_SOFTMAX = PolicySettings(policy=WeightsPolicy.SOFTMAX, temperature=0.05)
_SHARP = PolicySettings(policy=WeightsPolicy.SOFTMAX, temperature=0.02)

Key = tuple[str, str]
"""Law and variant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """How one variant learned, of the best agent's weight and the regret beside uniform weights'."""

    at_5000: Floats
    """Weight over the 500 rewards before the 5,000th, float64 [runs]."""
    regret: Floats
    """At the end, as a share of that of uniform weights, float64 [runs]."""
    at_end: Floats
    """Weight over the last 500, float64 [runs]."""


def learning_trials(law: Law) -> dict[str, Trial]:
    """What is tried where one agent stays the best."""
    plain = Trial(law=law, settings=_THOMPSON, gap=0.1, rewards=20_000)
    trials = {
        "thompson": plain,
        "thompson, rewards 100 late": replace(plain, delay=100),
        f"thompson, half-life {HALF_LIFE:,}": replace(plain, settings=_FORGETTING),
        "softmax, temperature 0.05": replace(plain, settings=_SOFTMAX),
        "softmax, temperature 0.02": replace(plain, settings=_SHARP),
    }
    if law is SOFT:
        return trials  # the rest differs little from the other law of three actions
    trials |= {
        "thompson, floor 0.03": replace(plain, settings=PolicySettings(floor=0.03)),
        "thompson, credit capped at 1": replace(plain, cap=1.0),
        "thompson, credit not capped": replace(plain, cap=math.inf),
        "thompson, Σc for the count": replace(plain, counts_credit=True),
    }
    if law is SURE:
        trials["thompson, rewards 0 or 1"] = replace(plain, settings=PolicySettings(reward=RewardKind.BINARY))
    return trials


def change_trials(law: Law) -> dict[str, Trial]:
    """What is tried where another agent becomes the best half-way."""
    plain = Trial(law=law, settings=_FORGETTING, gap=0.2, rewards=10_000, changes_at=5000)
    return {
        f"thompson, half-life {HALF_LIFE:,}": plain,
        "thompson, no forgetting": replace(plain, settings=_THOMPSON),
        f"softmax, half-life {HALF_LIFE:,}": replace(
            plain, settings=PolicySettings(policy=WeightsPolicy.SOFTMAX, half_life_hours=HALF_LIFE / 3600)
        ),
        "softmax, no forgetting": replace(plain, settings=_SOFTMAX),
        f"thompson, half-life {HALF_LIFE:,}, Σc for the count": replace(plain, counts_credit=True),
    }


def run(*, quick: bool) -> bool:
    """All trials; whether the stated figures hold where agents share actions, as the product's do."""
    runs = RUNS_QUICK if quick else RUNS
    learned = _simulate(
        {(law.text, name): trial for law in LAWS for name, trial in learning_trials(law).items()}, runs
    )
    changed = _simulate(
        {(law.text, name): trial for law in LAWS for name, trial in change_trials(law).items()}, runs
    )
    learning = {key: summarise(weights) for key, weights in learned.items()}
    tables = learning_table(learning), change_table(changed)
    print("\n".join(tables))
    goals = goals_table(learning, changed)
    print(page.table(("figure", "asked", *(law.text for law in LAWS)), goals[0]))
    if not quick:
        weights_plots.plot_weights(learned, changed, page.IMAGES / "ensembles_weights.svg")
        weights_plots.plot_regret(learned, page.IMAGES / "ensembles_regret.svg")
        page.write("weights", _section(goals[0], tables))
    return goals[1]


def _simulate(trials: Mapping[Key, Trial], runs: int) -> dict[Key, Floats]:
    found = {}
    for number, (key, trial) in enumerate(trials.items(), 1):
        print(f"  {number}/{len(trials)} {key[0]}: {key[1]}", flush=True)
        found[key] = simulate(trial, runs=runs, seed=SEED)
    return found


def summarise(weights: Floats) -> Learning:
    """Of the weights in force at each batch, float64 [batches, runs, agents]."""
    best = weights[:, :, 0]
    return Learning(
        at_5000=best[4500 // BATCH : 5000 // BATCH].mean(axis=0),
        regret=(1 - best).mean(axis=0) / (1 - 1 / weights.shape[-1]),
        at_end=best[-500 // BATCH :].mean(axis=0),
    )


def leads(weights: Floats, agent: int) -> Floats:
    """Whether that agent has the greatest weight of the batch, bool [runs]; weights float64 [runs, agents]."""
    return np.asarray(weights.argmax(axis=-1) == agent)


def learning_table(learning: Mapping[Key, Learning]) -> str:
    """One row a variant."""
    rows = [
        (
            law,
            name,
            f"{found.at_5000.mean():.2f} ({np.quantile(found.at_5000, 0.05):.2f})",
            share(found.at_5000 > 0.5),
            f"{found.regret.mean():.2f} ({np.quantile(found.regret, 0.95):.2f})",
            share(found.regret <= 0.5),
            f"{found.at_end.mean():.2f}",
            share(found.at_end < 0.1),
        )
        for (law, name), found in learning.items()
    ]
    header = (
        *("agents", "policy", "weight at 5,000 (5 % quantile)", "above ½"),
        *("regret at 20,000 (95 %)", "at most ½", "weight at 20,000", "below 0.1"),
    )
    return page.table(header, rows)


def change_table(changed: Mapping[Key, Floats]) -> str:
    """One row a variant."""
    rows = [
        (
            law,
            name,
            share(leads(weights[5000 // BATCH - 1], 0)),
            share(leads(weights[-1], 1)),
            f"{weights[-500 // BATCH :, :, 1].mean():.2f}",
            f"{first:,}" if (first := _overtakes(weights)) else "not by 10,000",
        )
        for (law, name), weights in changed.items()
    ]
    header = (
        *("agents", "policy", "best leads at 5,000", "new best leads at 10,000"),
        *("its weight then", "its mean weight is the greatest from"),
    )
    return page.table(header, rows)


def goals_table(
    learning: Mapping[Key, Learning], changed: Mapping[Key, Floats]
) -> tuple[list[tuple[str, ...]], bool]:
    """The stated figures, and whether they hold where agents share actions."""
    kept = [learning[law.text, "thompson"] for law in LAWS]
    moved = [changed[law.text, f"thompson, half-life {HALF_LIFE:,}"] for law in LAWS]
    above = [float((found.at_5000 > 0.5).mean()) for found in kept]
    regret = [float(found.regret.mean()) for found in kept]
    leading = [float(leads(weights[-1], 1).mean()) for weights in moved]
    rows: list[tuple[str, ...]] = [
        (
            "runs with the best agent's weight at 5,000 above ½",
            "≥ 95 %",
            *(f"{value:.0%}" for value in above),
        ),
        ("regret at 20,000 over that of uniform weights", "≤ 0.5", *(f"{value:.2f}" for value in regret)),
        (
            "runs in which the new best agent leads at 10,000",
            "≥ 95 %",
            *(f"{value:.0%}" for value in leading),
        ),
    ]
    shared = [index for index, law in enumerate(LAWS) if law is not APART]
    held = all(above[i] >= 0.95 and leading[i] >= 0.95 for i in shared) and max(regret) <= 0.5
    return rows, held


def share(which: Floats) -> str:
    """As a percentage."""
    return f"{np.mean(which):.0%}"


def _overtakes(weights: Floats) -> int:
    """After how many rewards the second agent's mean weight is the greatest to the end; 0: never."""
    ahead = weights.mean(axis=1).argmax(axis=-1) == 1
    return 0 if not ahead[-1] else int((len(ahead) - ahead[::-1].argmin()) * BATCH)


def _section(goals: list[tuple[str, ...]], tables: tuple[str, str]) -> str:
    return f"""\
{RUNS} runs each; weights are computed again after every {BATCH} rewards. Of five agents one is better than the others
by a tenth (learning) or a fifth (change) of the standard deviation of the reward's noise. Three laws of what they do:

- **{SURE.text}**: each agent plays its favourite action with probability 0.94; the best agent's favourite is right in
  2/3 of the cases, the others' in 1/3, independently. The product's case: several agents often say the same.
- **{SOFT.text}**: probabilities are the softmax of random preferences; the best agent also prefers what is right.
- **{APART.text}**: each agent always plays an action of its own, so that a reward tells of one agent only. The
  hardest case: a five-armed bandit.

{page.table(("figure", "asked", *(law.text for law in LAWS)), goals)}
![weights over time](images/ensembles_weights.svg)

![regret over time](images/ensembles_regret.svg)

**One agent stays the best.** Weights are the best agent's: the mean over the 500 rewards before. Regret is divided by
that of uniform weights. "Below 0.1" are runs that trust a wrong agent in the end.

{tables[0]}
**Another agent becomes the best** after 5,000 rewards.

{tables[1]}
{page.machine()}
"""
