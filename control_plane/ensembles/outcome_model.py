"""What reward each action was to be expected to bring, from the past of the log only.

The doubly robust estimate stays unbiased whatever the model says, as long as the model at an entry knows nothing of
that entry or of later ones. So the log is cut into batches, each a quarter as long as all that came before it,
which the batch's model is fitted to.

The context itself isn't logged, only what the agents made of it: their probabilities are the features of a ridge
regression for each action.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from control_plane.ensembles.confidence import Integers
from control_plane.ensembles.credit import Floats

BURN_IN = 25
"""Entries at the start that only teach the first model."""
GROWTH = 1.25
SMALLEST_BATCH = 10
FEWEST_OF_ACTION = 5
"""Rewards of an action, below which the mean over all actions stands for its mean."""
NOISE_TO_SIGNAL = 10.0
"""Prior of the slopes: the reward's noise has ten times the variance of what the features explain."""


def batches(count: int) -> list[slice]:
    """The batches of a log of `count` entries, the burn-in left out; oldest first."""
    start, found = BURN_IN, []
    while start < count:
        stop = min(count, start + max(SMALLEST_BATCH, int(start * (GROWTH - 1.0))))
        found.append(slice(start, stop))
        start = stop
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeModel:
    """Of one batch: reward ≈ intercept_a + slope_a · agents' probabilities, for each action a."""

    intercepts: Floats
    """float64 [actions]"""
    slopes: Floats
    """float64 [features, actions]"""
    noise: Floats
    """float64 [actions]: variance around the prediction."""

    def predict(self, agent_probs: Floats) -> Floats:
        """Expected rewards, float64 [entries, actions], from float64 [entries, agents, actions]."""
        return self.intercepts + agent_probs.reshape(len(agent_probs), -1) @ self.slopes


def past_only_models(
    agent_probs: Floats, actions: Integers, rewards: Floats
) -> Iterator[tuple[slice, OutcomeModel]]:
    """Each batch with the model of all that came before it.

    Args:
        agent_probs: float64 [entries, agents, actions].
        actions: int64 [entries], taken.
        rewards: float64 [entries].
    """
    count, _, n_actions = agent_probs.shape
    # 1, features, reward: their products, summed for each action, are all that a regression needs.
    offset = float(rewards[:BURN_IN].mean())  # small numbers, so that squares keep their digits
    features = agent_probs.reshape(count, -1)
    rows = np.concatenate((np.ones((count, 1)), features, rewards[:, None] - offset), axis=1)
    sums = np.zeros((n_actions, rows.shape[1], rows.shape[1]))
    seen = 0
    for batch in batches(count):
        for action in range(n_actions):
            of_action = rows[seen : batch.start][actions[seen : batch.start] == action]
            sums[action] += of_action.T @ of_action
        seen = batch.start
        model = fit(sums)
        yield batch, replace(model, intercepts=model.intercepts + offset)


def fit(sums: Floats) -> OutcomeModel:
    """The ridge regressions.

    Args:
        sums: float64 [actions, 1 + features + 1, 1 + features + 1], Σ of outer products of (1, features, reward).
    """
    n_actions, size, _ = sums.shape
    counts, totals = sums[:, 0, 0], sums[:, 0, -1]
    pooled_mean = float(totals.sum() / counts.sum())
    pooled_noise = max(0.0, float(sums[:, -1, -1].sum() / counts.sum()) - pooled_mean**2)
    intercepts, noise = np.full(n_actions, pooled_mean), np.full(n_actions, pooled_noise)
    slopes = np.zeros((size - 2, n_actions))
    for action in np.flatnonzero(counts >= FEWEST_OF_ACTION):
        n = counts[action]
        center = sums[action, 0] / n
        spread = sums[action] / n - np.outer(center, center)  # covariances of features and reward
        features, with_reward = spread[1:-1, 1:-1], spread[1:-1, -1]
        ridge = NOISE_TO_SIGNAL * float(np.trace(features)) / n
        if ridge > 0.0:
            slopes[:, action] = np.linalg.solve(features + ridge * np.eye(size - 2), with_reward)
        intercepts[action] = center[-1] - center[1:-1] @ slopes[:, action]
        residual = max(0.0, float(spread[-1, -1] - with_reward @ slopes[:, action]))
        noise[action] = (n * residual + FEWEST_OF_ACTION * pooled_noise) / (n + FEWEST_OF_ACTION)
    return OutcomeModel(intercepts=intercepts, slopes=slopes, noise=noise)
