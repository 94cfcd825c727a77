"""Trains an agent on the training part, for a fixed number of steps from a fixed seed."""

from collections.abc import Callable

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from exporters.demo_rl.agents import AgentPlan, TrainedAgent
from exporters.demo_rl.environment import Market, TradingEnvironment, observe

DISCOUNT = 0.9
"""Of rewards per hour; the same for all agents, so that their values can be compared."""

REWARD_UNIT_BP = 10.0
"""Agents learn from rewards in this unit, about the standard deviation of an hourly return; so are their values."""

EPISODE_BARS = 240

STEPS_BETWEEN_REPORTS = 1_000


def train_agent(
    plan: AgentPlan, market: Market, *, seed: int, on_steps: Callable[[int], None]
) -> TrainedAgent:
    """Trains one agent for its plan's steps.

    Args:
        plan: Of the agent.
        market: The training part.
        seed: Of the initial weights, the episodes and exploration.
        on_steps: Called with the steps done so far, now and then.
    """
    environment: VecEnv = DummyVecEnv([lambda: _environment(plan, market)] * plan.environments)
    normalization = None
    if plan.clip_obs is not None:
        normalization = _fit_normalization(environment, market, plan.clip_obs, seed)
        environment = normalization
    with torch.random.fork_rng():
        model = plan.algorithm(
            "MlpPolicy",
            environment,
            policy_kwargs={"net_arch": plan.layers, "activation_fn": plan.activation},
            gamma=DISCOUNT,
            seed=seed,
            device="cpu",
            **plan.options,
        )
        model.learn(plan.steps, callback=_Report(on_steps))
    return TrainedAgent(plan=plan, model=model, normalization=normalization)


def _environment(plan: AgentPlan, market: Market) -> TradingEnvironment:
    return TradingEnvironment(
        market, continuous=plan.continuous, episode_bars=EPISODE_BARS, reward_scale=1 / REWARD_UNIT_BP
    )


def _fit_normalization(environment: VecEnv, market: Market, clip_obs: float, seed: int) -> VecNormalize:
    """Takes the statistics from the whole training part with random positions, and keeps them.

    Running ones would change under the replay buffer, and collapse where an agent keeps its position.
    """
    normalization = VecNormalize(environment, training=False, norm_reward=False, clip_obs=clip_obs)
    positions = np.random.default_rng(seed).integers(-1, 2, len(market.time))
    normalization.obs_rms.update(observe(market.features, positions).astype(np.float64))
    return normalization


class _Report(BaseCallback):
    """Says now and then how far the training is."""

    def __init__(self, on_steps: Callable[[int], None]) -> None:
        super().__init__()
        self._on_steps = on_steps

    def _on_step(self) -> bool:
        if self.num_timesteps % STEPS_BETWEEN_REPORTS < self.training_env.num_envs:
            self._on_steps(self.num_timesteps)
        return True
