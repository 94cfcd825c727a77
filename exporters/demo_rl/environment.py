"""The hourly EUR/USD market as an environment: positions decided at a bar's close, paid for at the next one's.

An observation holds what is known at the close of its bar; the reward is what the position then taken earns
until the next close, less the cost of taking it. So neither depends on anything later.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from exporters.demo.dataset import CLASS_NAMES, Dataset, Part
from exporters.demo.features import BASIS_POINTS, FEATURE_NAMES
from exporters.demo.market_data import Bars

Observations = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

OBSERVATION_NAMES = (*FEATURE_NAMES, "position")
"""Components of an observation: the features of the bar, raw, and the position held when it closes, -1, 0 or 1."""

ACTION_THRESHOLDS = (-1 / 3, 1 / 3)
"""Cut a continuous action in -1 to 1 into sell, hold and buy, as the exported ensemble does."""

SPREAD_BP = 1.0
HALF_SPREAD_BP = SPREAD_BP / 2
"""Cost of each unit by which the position changes: in and out pay half each, a reversal pays the whole spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """A part of the history, oldest bar first.

    `features` float32 [bars, features], raw; `next_return_bp` float64 [bars], the simple return from a bar's close to
    the next one's; `time` int64 [bars], starts in seconds since the epoch.
    """

    features: Observations
    next_return_bp: Values
    time: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Markets:
    """The three parts of the chronological split."""

    train: Market
    validation: Market
    test: Market


def build_markets(bars: Bars, dataset: Dataset) -> Markets:
    """Takes the bars of the parts on which the hybrid is trained and tested, so that both can be compared."""

    def market(part: Part) -> Market:
        following = bars.close[part.last_bar + 1] / bars.close[part.last_bar]
        return Market(
            features=np.ascontiguousarray(part.x[:, :, -1]),
            next_return_bp=BASIS_POINTS * (following - 1),
            time=part.time,
        )

    return Markets(
        train=market(dataset.train), validation=market(dataset.validation), test=market(dataset.test)
    )


def rewards_bp(positions: Positions, held_before: Positions, next_return_bp: Values) -> Values:
    """Rewards in basis points of a fixed notional: what positions earn until the next close, less their cost.

    Args:
        positions: -1, 0 or 1, int64 [steps].
        held_before: the positions before them, int64 [steps].
        next_return_bp: float64 [steps].
    """
    rewards: Values = positions * next_return_bp - HALF_SPREAD_BP * np.abs(positions - held_before)
    return rewards


def observe(features: Observations, positions: Positions) -> Observations:
    """Observations float32 [rows, features + 1]: features [rows, features] and the positions [rows] held."""
    return np.column_stack([features, positions]).astype(np.float32)


def classes_of(actions: npt.NDArray[Any]) -> Positions:
    """Classes int64 [rows] (0 sell, 1 hold, 2 buy) of actions: indices [rows], or continuous ones [rows, 1]."""
    if actions.ndim == 2:
        return np.digitize(actions[:, 0], ACTION_THRESHOLDS).astype(np.int64)
    return actions.astype(np.int64)


class TradingEnvironment(gymnasium.Env[Observations, Any]):
    """One unit of EUR/USD, short, none or long, changed at each close; a class less one is the position.

    Episodes of `episode_bars` begin at random bars with no position; without it the one episode is the whole market.
    The reward is in basis points, times `reward_scale`.
    """

    def __init__(
        self,
        market: Market,
        *,
        continuous: bool,
        episode_bars: int | None = None,
        reward_scale: float = 1.0,
    ) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (len(OBSERVATION_NAMES),), np.float32)
        self.action_space = (
            gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
            if continuous
            else gymnasium.spaces.Discrete(len(CLASS_NAMES))
        )
        self._market = market
        self._reward_scale = reward_scale
        self._last_row = len(market.next_return_bp) - 1
        self._steps = self._last_row if episode_bars is None else episode_bars
        self._row = self._end = 0
        self._position = np.zeros(1, np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begins an episode."""
        super().reset(seed=seed, options=options)
        self._row = int(self.np_random.integers(0, self._last_row - self._steps + 1))
        self._end = self._row + self._steps
        self._position = np.zeros(1, np.int64)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Observations, float, bool, bool, dict[str, Any]]:
        """Takes the action's position until the next close. Episodes are cut short, so they never terminate."""
        position = classes_of(np.asarray(action)[None]) - 1
        reward = rewards_bp(position, self._position, self._market.next_return_bp[self._row : self._row + 1])
        self._position = position
        self._row += 1
        truncated = self._row == self._end
        return self._observation(), float(reward[0]) * self._reward_scale, False, truncated, {}

    def _observation(self) -> Observations:
        observations = observe(self._market.features[self._row : self._row + 1], self._position)
        return observations.reshape(-1)
