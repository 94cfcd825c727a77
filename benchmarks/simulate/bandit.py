"""An ensemble that learns from made-up rewards: many runs side by side, on the code that serves.

Axes: runs, requests (of one batch), agents, actions.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from control_plane.ensembles import credit
from control_plane.ensembles.credit import CREDIT_CAP, Decay, Floats, combine, contribution
from control_plane.ensembles.policies import PolicySettings, RewardKind, learned_weights

AGENTS = ("a2c", "dqn", "ppo", "sac", "td3")
BATCH = 50
"""Rewards between two computations of the weights."""
_ACCURATE, _OTHERWISE = 2 / 3, 1 / 3
_SHARPNESS = 1.5
_SKILL = 2.0
Draw = Callable[[np.random.Generator, int, int, int], tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """What agents do and what actions are worth; always five agents, four of them equally good.

    Attributes:
        text: What it is, for the page.
        draw: (random numbers, runs, requests, which agent is best) → agents' probabilities [runs, requests, agents,
            actions] and how right each action is [runs, requests, actions].
        edge: How much more of what is right the best agent gets than the others, on average.
    """

    text: str
    draw: Draw
    edge: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One setting of a simulation.

    Attributes:
        law: What agents do.
        settings: The policy.
        gap: How much better the best agent is than all others, in standard deviations of the reward's noise.
        rewards: How many come.
        changes_at: From which reward on another agent is the best; None: never.
        delay: How many requests come before a reward is known.
        cap: The most credit.
        counts_credit: Whether Σc is taken for the number of rewards, instead of Kish's effective one.
    """

    law: Law
    settings: PolicySettings
    gap: float
    rewards: int
    changes_at: int | None = None
    delay: int = 0
    cap: float = CREDIT_CAP
    counts_credit: bool = False


def simulate(trial: Trial, *, runs: int, seed: int) -> Floats:
    """The weights in force at each batch, float64 [batches, runs, agents]; agent 0 is the best, from a change on 1."""
    random = np.random.default_rng(seed)
    hours = trial.settings.half_life_hours
    decay = Decay(half_life_s=None if hours is None else hours * 3600)
    # One reward a second; the rewards lie on both sides of a period's end.
    begun_s = 0.0 if hours is None else 640 * hours * 3600 - trial.rewards / 3
    weights = np.full((runs, len(AGENTS)), 1 / len(AGENTS))
    periods: dict[int, Floats] = {}
    pending: deque[tuple[int, Floats]] = deque()
    seen = []
    for begin in range(0, trial.rewards, BATCH):
        seen.append(weights)
        best = 0 if trial.changes_at is None or begin < trial.changes_at else 1
        probs, right = trial.law.draw(random, runs, BATCH, best)
        actions = choose(np.einsum("ra,rbak->rbk", weights, probs), random)
        worth = np.take_along_axis(right, actions[..., np.newaxis], -1)[..., 0] * (trial.gap / trial.law.edge)
        if trial.settings.reward is RewardKind.BINARY:  # noise of standard deviation 1/2, about
            rewards = (random.random(worth.shape) < 0.5 + worth / 2).astype(np.float64)
        else:
            rewards = worth + random.standard_normal(worth.shape)
        shares = credit.credits(probs, weights[:, np.newaxis], actions, cap=trial.cap)
        times_s = begun_s + begin + np.arange(BATCH)
        for period in dict.fromkeys(map(decay.period, times_s)):
            inside = [decay.period(time_s) == period for time_s in times_s]
            factors = np.array([decay.factor(time_s) for time_s in times_s[inside]])
            pending.append(
                (period, contribution(shares[:, inside], rewards[:, inside], factors[np.newaxis]).sum(axis=1))
            )
        while len(pending) * BATCH > trial.delay:
            period, sums = pending.popleft()
            periods[period] = periods.get(period, 0.0) + sums
        if periods:
            weights = learn(trial, combine(periods, decay, float(times_s[-1])))
    return np.array(seen)


def learn(trial: Trial, statistics: Floats) -> Floats:
    """The weights of each run, float64 [runs, agents]."""
    if trial.counts_credit:
        statistics = statistics.copy()
        statistics[..., 1] = statistics[..., 0]
    return np.array([learned_weights(trial.settings, AGENTS, one)[0] for one in statistics])


def choose(probs: Floats, random: np.random.Generator) -> npt.NDArray[np.intp]:
    """One action for each row, drawn with these probabilities [..., actions]."""
    below = random.random((*probs.shape[:-1], 1)) * probs.sum(axis=-1, keepdims=True)
    return (probs.cumsum(axis=-1) <= below).sum(axis=-1).clip(max=probs.shape[-1] - 1)


def _apart(_: np.random.Generator, runs: int, requests: int, best: int) -> tuple[Floats, Floats]:
    agents = len(AGENTS)
    probs = np.broadcast_to(np.eye(agents), (runs, requests, agents, agents))
    return probs, np.broadcast_to(np.eye(agents)[best], (runs, requests, agents))


def _sure(random: np.random.Generator, runs: int, requests: int, best: int) -> tuple[Floats, Floats]:
    """Favourites are played with 0.94, other actions with 0.03; the best agent's favourite is right more often."""
    shape, agents = (runs, requests), len(AGENTS)
    right = random.integers(3, size=(*shape, 1))
    accuracy = np.where(np.arange(agents) == best, _ACCURATE, _OTHERWISE)
    wrong = (right + random.integers(1, 3, size=(*shape, agents))) % 3
    favourite = np.where(random.random((*shape, agents)) < accuracy, right, wrong)
    return 0.03 + 0.91 * np.eye(3)[favourite], np.eye(3)[right[..., 0]]


def _soft(random: np.random.Generator, runs: int, requests: int, best: int) -> tuple[Floats, Floats]:
    """Softmax of random preferences; the best prefers what is right."""
    shape, agents = (runs, requests), len(AGENTS)
    right = np.eye(3)[random.integers(3, size=shape)]
    liking = _SHARPNESS * random.standard_normal((*shape, agents, 3))
    liking[:, :, best] += _SKILL * right
    powers = np.exp(liking)
    return powers / powers.sum(axis=-1, keepdims=True), right


SURE = Law(text="3 actions, sure agents", draw=_sure, edge=0.91 * (_ACCURATE - _OTHERWISE))
SOFT = Law(text="3 actions, soft agents", draw=_soft, edge=0.3046)  # from 10^6 draws, ± 0.0003
APART = Law(text="5 actions, one for each agent", draw=_apart, edge=1.0)
LAWS = (SURE, SOFT, APART)
