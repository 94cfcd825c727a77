"""The five agents of the demonstration ensemble: how each is made, and what a trained one is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from exporters.demo_rl.environment import Observations


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlan:
    """How an agent is made. `clip_obs`: of its normalised observations; None: it takes them raw."""

    name: str
    algorithm: type[PPO | A2C | SAC | TD3 | DQN]
    continuous: bool
    hidden: Mapping[str, tuple[int, ...]] | tuple[int, ...]
    activation: type[nn.Module]
    clip_obs: float | None
    environments: int
    steps: int
    options: Mapping[str, Any]

    @property
    def layers(self) -> Any:
        """The sizes of the hidden layers as Stable-Baselines3 takes them."""
        if isinstance(self.hidden, Mapping):
            return {network: list(sizes) for network, sizes in self.hidden.items()}
        return list(self.hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedAgent:
    """An agent, and the statistics that its observations are normalised with."""

    plan: AgentPlan
    model: BaseAlgorithm
    normalization: VecNormalize | None

    def prepare(self, observations: Observations) -> Observations:
        """What the model takes for raw observations float32 [rows, components]."""
        if self.normalization is None:
            return observations
        normalized: Observations = self.normalization.normalize_obs(observations)  # type: ignore[assignment]
        return normalized


PLANS = (
    AgentPlan(
        name="ppo",
        algorithm=PPO,
        continuous=False,
        hidden={"pi": (64, 64), "vf": (64, 64)},
        activation=nn.Tanh,
        clip_obs=10.0,
        environments=8,
        steps=60_000,
        options={"n_steps": 256, "batch_size": 256, "n_epochs": 4, "learning_rate": 3e-4, "ent_coef": 0.01},
    ),
    AgentPlan(
        name="a2c",
        algorithm=A2C,
        continuous=False,
        hidden={"pi": (32, 32), "vf": (64, 32)},
        activation=nn.ELU,
        clip_obs=5.0,
        environments=8,
        steps=60_000,
        options={"n_steps": 16, "learning_rate": 5e-4, "ent_coef": 0.01},
    ),
    AgentPlan(
        name="sac",
        algorithm=SAC,
        continuous=True,
        hidden={"pi": (32, 32), "qf": (64, 64)},
        activation=nn.ReLU,
        clip_obs=5.0,
        environments=4,
        steps=20_000,
        options={"batch_size": 256, "learning_starts": 2_000, "learning_rate": 3e-4, "buffer_size": 20_000},
    ),
    AgentPlan(
        name="td3",
        algorithm=TD3,
        continuous=True,
        hidden={"pi": (64, 32), "qf": (64, 32)},
        activation=nn.SiLU,
        clip_obs=5.0,
        environments=4,
        steps=20_000,
        options={
            "batch_size": 256,
            "learning_starts": 2_000,
            "learning_rate": 3e-4,
            "buffer_size": 20_000,
            "action_noise": NormalActionNoise(np.zeros(1), np.full(1, 0.3)),
        },
    ),
    AgentPlan(
        name="dqn",
        algorithm=DQN,
        continuous=False,
        hidden=(64, 64),
        activation=nn.ReLU,
        clip_obs=None,
        environments=4,
        steps=60_000,
        options={
            "learning_starts": 2_000,
            "learning_rate": 3e-4,
            "buffer_size": 60_000,
            "exploration_fraction": 0.5,
        },
    ),
)
