"""Scores the agents, their ensemble and what takes no model on a part of the history.

An observation's position is one of three, so the decisions at every bar for all three are computed at once; a walk
then follows them from bar to bar.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr
from stable_baselines3 import DQN, SAC, TD3

from exporters.demo.dataset import BUY, HOLD
from exporters.demo_rl.agents import TrainedAgent
from exporters.demo_rl.environment import (
    ACTION_THRESHOLDS,
    Market,
    Markets,
    Observations,
    Positions,
    Values,
    classes_of,
    observe,
    rewards_bp,
)

HOURS_PER_YEAR = 24 * 5 * 52
"""Hourly bars of a year: the market is open five days a week."""

RANDOM_WALKS = 200
_RANDOM_SEED = 1

Decide = Callable[[Observations], Positions]
"""Classes int64 [rows] for raw observations float32 [rows, components]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What positions earned on a part, in basis points of a fixed notional, costs included.

    `rewards_bp` float64 [steps]. `sharpe`: annualised, None where nothing varies. `trades`: changes of position.
    """

    rewards_bp: Values
    costs_bp: float
    sharpe: float | None
    max_drawdown_bp: float
    trades: int

    @property
    def total_bp(self) -> float:
        """What was earned in all, not compounded."""
        return float(self.rewards_bp.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """One trader's scores on the three parts."""

    train: Score
    validation: Score
    test: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores by name: of the agents, the ensemble (uniform weights, its likeliest class), and what takes no model."""

    agents: Mapping[str, Parts]
    ensemble: Parts
    buy_and_hold: Parts
    flat: Parts
    random: tuple[Score, ...]


def evaluate(agents: Sequence[TrainedAgent], markets: Markets, *, temperature: float) -> Evaluation:
    """Scores everything; random positions on the test part only, `RANDOM_WALKS` times."""
    generator = np.random.default_rng(_RANDOM_SEED)
    returns = markets.test.next_return_bp[:-1]
    return Evaluation(
        agents={agent.plan.name: _parts(markets, deterministic(agent)) for agent in agents},
        ensemble=_parts(markets, greedy(agents, temperature)),
        buy_and_hold=_parts(markets, _always(BUY)),
        flat=_parts(markets, _always(HOLD)),
        random=tuple(score(generator.integers(-1, 2, len(returns)), returns) for _ in range(RANDOM_WALKS)),
    )


def _parts(markets: Markets, decide: Decide) -> Parts:
    def scored(market: Market) -> Score:
        return score(walk(market, decide), market.next_return_bp[:-1])

    return Parts(
        train=scored(markets.train), validation=scored(markets.validation), test=scored(markets.test)
    )


def _always(choice: int) -> Decide:
    return lambda observations: np.full(len(observations), choice, np.int64)


def score(positions: Positions, next_return_bp: Values) -> Score:
    """Scores positions int64 [steps], begun with none, against returns float64 [steps]."""
    before = np.concatenate([[0], positions[:-1]])
    rewards = rewards_bp(positions, before, next_return_bp)
    return Score(
        rewards_bp=rewards,
        costs_bp=float((positions * next_return_bp - rewards).sum()),
        sharpe=sharpe_ratio(rewards),
        max_drawdown_bp=max_drawdown(rewards),
        trades=int(np.count_nonzero(positions != before)),
    )


def sharpe_ratio(rewards: Values) -> float | None:
    """Annualised ratio of mean to standard deviation of hourly rewards float64 [steps], without a riskless rate.

    Source: Sharpe, "The Sharpe Ratio" (1994); scaled by the root of the hours in a year, as if they were independent.
    """
    deviation = float(rewards.std(ddof=1))
    return float(rewards.mean()) / deviation * HOURS_PER_YEAR**0.5 if deviation > 0 else None


def max_drawdown(rewards: Values) -> float:
    """The largest fall of the summed rewards float64 [steps] below their highest point so far, the start included."""
    summed = np.concatenate([[0.0], np.cumsum(rewards)])
    return float((np.maximum.accumulate(summed) - summed).max())


def walk(market: Market, decide: Decide) -> Positions:
    """Positions int64 [bars - 1] that decisions lead to, begun with none; the last bar is only observed."""
    bars = len(market.time) - 1
    choices = np.stack(
        [decide(observe(market.features[:bars], np.full(bars, held))) for held in (-1, 0, 1)], axis=1
    )
    positions = np.zeros(bars, np.int64)
    held = 0
    for bar in range(bars):
        held = positions[bar] = choices[bar, held + 1] - 1
    return positions


def deterministic(agent: TrainedAgent) -> Decide:
    """An agent's own decisions: the action that Stable-Baselines3 predicts."""

    def decide(observations: Observations) -> Positions:
        actions, _ = agent.model.predict(agent.prepare(observations), deterministic=True)
        return classes_of(actions)

    return decide


def greedy(agents: Sequence[TrainedAgent], temperature: float) -> Decide:
    """The likeliest class of the agents' mixture with uniform weights."""

    def decide(observations: Observations) -> Positions:
        mixture = np.mean([class_probs(agent, observations, temperature) for agent in agents], axis=0)
        return np.asarray(mixture.argmax(axis=1), np.int64)

    return decide


def class_probs(agent: TrainedAgent, observations: Observations, temperature: float) -> Values:
    """Probabilities float64 [rows, classes], as the exported ensemble has them, from the agent's own networks.

    PPO and A2C: their distribution. DQN: softmax of its action values over the temperature. SAC: its squashed
    Gaussian's mass in each class's interval. TD3: that of a Gaussian around its action, as wide as its target noise.
    """
    model = agent.model
    tensor = torch.from_numpy(agent.prepare(observations))
    with torch.no_grad():
        if isinstance(model, SAC):
            mean, log_std, _ = model.actor.get_action_dist_params(tensor)
            return _interval_mass(mean[:, 0], log_std[:, 0].exp(), np.arctanh(ACTION_THRESHOLDS))
        if isinstance(model, TD3):
            action = model.actor(tensor)[:, 0]
            noise = torch.full_like(action, model.target_policy_noise)
            return _interval_mass(action, noise, np.array(ACTION_THRESHOLDS))
        if isinstance(model, DQN):
            return torch.softmax(model.q_net(tensor).double() / temperature, dim=1).numpy()
        distribution = model.policy.get_distribution(tensor)  # type: ignore[operator]
        return np.asarray(distribution.distribution.probs, np.float64)


def q_temperature(agents: Sequence[TrainedAgent], market: Market) -> float:
    """A temperature on the scale of DQN's action values: their mean deviation over the actions of an observation."""
    observations = observe(market.features, np.zeros(len(market.time), np.int64))
    with torch.no_grad():
        deviations = [
            agent.model.q_net(torch.from_numpy(agent.prepare(observations))).std(dim=1).mean()
            for agent in agents
            if isinstance(agent.model, DQN)
        ]
    return round(float(np.mean(deviations)), 4)


def _interval_mass(mean: torch.Tensor, deviation: torch.Tensor, cuts: Values) -> Values:
    z = (cuts - mean.double().numpy()[:, None]) / deviation.double().numpy()[:, None]
    edges = np.concatenate([np.zeros((len(z), 1)), ndtr(z), np.ones((len(z), 1))], axis=1)
    return np.diff(edges, axis=1)
