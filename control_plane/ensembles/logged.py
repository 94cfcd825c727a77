"""The log that off-policy evaluation reads."""

from dataclasses import dataclass

import numpy as np

from control_plane.ensembles.confidence import Booleans, Integers
from control_plane.ensembles.credit import Floats

SUM_TOLERANCE = 1e-3
"""By which the sum of probabilities may miss 1: agents compute in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Rewarded requests, oldest first.

    Attributes:
        agent_probs: float64 [entries, agents, actions].
        weights: float64 [entries, agents], in force when the action was chosen.
        action: int64 [entries], taken.
        propensity: float64 [entries], with which the action was drawn: Σ_k weights_k · agent_probs_k(action).
        reward: float64 [entries].
        sampled: bool [entries]: drawn with that propensity; neither greedy nor overridden by the caller.
    """

    agent_probs: Floats
    weights: Floats
    action: Integers
    propensity: Floats
    reward: Floats
    sampled: Booleans

    def only(self, chosen: Booleans) -> "Log":
        """Some of the entries."""
        return Log(
            agent_probs=self.agent_probs[chosen],
            weights=self.weights[chosen],
            action=self.action[chosen],
            propensity=self.propensity[chosen],
            reward=self.reward[chosen],
            sampled=self.sampled[chosen],
        )


def check(log: Log) -> None:
    """Whether the log's arrays can be a log.

    Raises:
        ValueError: says which, what was expected and what was got.
    """
    if log.agent_probs.ndim != 3:
        raise ValueError(
            f"agent_probs: expected [entries, agents, actions], got {list(log.agent_probs.shape)}"
        )
    entries, agents, actions = log.agent_probs.shape
    shapes = dict.fromkeys(("action", "propensity", "reward", "sampled"), (entries,))
    for name, shape in {"weights": (entries, agents), **shapes}.items():
        if (got := getattr(log, name).shape) != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(got)}")
    if not np.isfinite(log.reward).all():
        raise ValueError("reward: expected finite numbers, got NaN or infinity")
    if not ((log.action >= 0) & (log.action < actions)).all():
        raise ValueError(f"action: expected 0 to {actions - 1}, got {log.action.min()} to {log.action.max()}")
    for name, shares in (("agent_probs", log.agent_probs), ("weights", log.weights)):
        if not ((shares >= 0.0).all() and (abs(shares.sum(axis=-1) - 1.0) <= SUM_TOLERANCE).all()):
            raise ValueError(f"{name}: expected numbers that aren't negative and sum to 1 in each entry")
    drawn = log.propensity[np.asarray(log.sampled, np.bool_)]
    if not ((drawn > 0.0) & (drawn <= 1.0 + SUM_TOLERANCE)).all():
        raise ValueError("propensity: expected more than 0 and at most 1 in each sampled entry")
