"""Agents as Stable-Baselines3 saves them, with weights that no initialisation gives; and what it says they do."""

import io
import json
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor
from torch.distributions import Normal

from exporters.demo.features import compute_features
from exporters.demo.market_data import find_bars_file, read_bars

THRESHOLDS = (-1 / 3, 1 / 3)
ALGORITHMS: Mapping[str, type[BaseAlgorithm]] = {"PPO": PPO, "A2C": A2C, "SAC": SAC, "TD3": TD3, "DQN": DQN}


class Still(gymnasium.Env):
    """An environment of given spaces in which nothing happens."""

    def __init__(self, observations: spaces.Space, actions: spaces.Space) -> None:
        self.observation_space = observations
        self.action_space = actions

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        del options
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        del action
        return self.observation_space.sample(), 0.0, True, False, {}


def box(low: list[float], high: list[float]) -> spaces.Box:
    return spaces.Box(np.array(low, dtype=np.float32), np.array(high, dtype=np.float32))


def make_agent(
    algorithm: str,
    *,
    actions: spaces.Space | None = None,
    shape: tuple[int, ...] = (12,),
    seed: int = 0,
    spread: float = 0.3,
    policy: str = "MlpPolicy",
    observations: spaces.Space | None = None,
    options: Mapping[str, Any] | None = None,
    **policy_kwargs: Any,
) -> BaseAlgorithm:
    """An untrained agent whose every parameter, biases and log_std too, is moved at random."""
    observations = observations or spaces.Box(-np.inf, np.inf, shape, np.float32)
    cls = ALGORITHMS[algorithm]
    kwargs: dict[str, Any] = {"buffer_size": 1} if issubclass(cls, OffPolicyAlgorithm) else {}
    model = cls(
        policy,
        Still(observations, actions or spaces.Discrete(3)),
        policy_kwargs=policy_kwargs,
        device="cpu",
        **kwargs,
        **(options or {}),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model


@cache
def real_observations(rows: int = 500) -> np.ndarray:
    """Raw features of hourly EUR/USD bars, float32 [rows, 12], spread over the year."""
    features = compute_features(read_bars(find_bars_file()))
    return features[np.linspace(0, len(features) - 1, rows).astype(int)]


def expected(
    model: BaseAlgorithm, observations: np.ndarray, *, temperature: float = 1.0
) -> dict[str, np.ndarray]:
    """Action probabilities [rows, classes], values [rows] and deterministic actions [rows, components] by SB3."""
    actions, _ = model.predict(observations, deterministic=True)
    with torch.no_grad():
        x = torch.as_tensor(observations)
        probs, values = _distribution(model, x, temperature), _values(model, x)
    return {
        "agent_action_probs": probs.numpy(),
        "agent_values": values.numpy(),
        "agent_actions": actions.reshape(len(observations), -1).astype(np.float64),
    }


def _distribution(model: BaseAlgorithm, x: Tensor, temperature: float) -> Tensor:
    cuts = torch.tensor(THRESHOLDS, dtype=torch.float64)
    if isinstance(model, DQN):
        return torch.softmax(model.q_net(x).double() / temperature, dim=1)
    if isinstance(model, SAC):
        mean, log_std, _ = model.actor.get_action_dist_params(x)
        gaussian = Normal(mean[:, :1].double(), log_std[:, :1].double().exp())
        return _masses(gaussian.cdf(torch.atanh(cuts)))
    if isinstance(model, TD3):
        return _masses(Normal(model.actor(x)[:, :1].double(), model.target_policy_noise).cdf(cuts))
    distribution = model.policy.get_distribution(x).distribution
    if isinstance(model.action_space, spaces.Discrete):
        return distribution.probs
    low, high = (float(bound.flat[0]) for bound in (model.action_space.low, model.action_space.high))
    gaussian = Normal(distribution.mean[:, :1].double(), distribution.stddev[:, :1].double())
    return _masses(gaussian.cdf(low + (cuts + 1) / 2 * (high - low)))


def _masses(below: Tensor) -> Tensor:
    ends = torch.zeros(len(below), 1), torch.ones(len(below), 1)
    return torch.diff(torch.cat([ends[0], below, ends[1]], dim=1), dim=1)


def _values(model: BaseAlgorithm, x: Tensor) -> Tensor:
    if isinstance(model, DQN):
        return model.q_net(x).max(dim=1).values
    if isinstance(model, SAC):
        return torch.cat(model.critic(x, model.actor(x, deterministic=True)), dim=1).min(dim=1).values
    if isinstance(model, TD3):
        return torch.cat(model.critic(x, model.actor(x)), dim=1).min(dim=1).values
    return model.policy.predict_values(x)[:, 0]


def plain_state(inputs: int = 4, outputs: int = 3) -> dict[str, Tensor]:
    """A small PPO policy's tensors."""
    generator = torch.Generator().manual_seed(0)

    def layer(name: str, rows: int, columns: int) -> dict[str, Tensor]:
        weight, bias = (
            torch.randn(rows, columns, generator=generator),
            torch.randn(rows, generator=generator),
        )
        return {f"{name}.weight": weight, f"{name}.bias": bias}

    return (
        layer("mlp_extractor.policy_net.0", 8, inputs)
        | layer("mlp_extractor.value_net.0", 8, inputs)
        | layer("action_net", outputs, 8)
        | layer("value_net", 1, 8)
    )


def plain_data(**changes: Any) -> dict[str, Any]:
    """The `data` of a small PPO agent, in the plain parts of what Stable-Baselines3 writes."""
    return {
        "policy_class": {
            ":type:": "<class 'abc.ABCMeta'>",
            "__module__": "stable_baselines3.common.policies",
        },
        "policy_kwargs": {},
        "use_sde": False,
        "clip_range": 0.2,
        "gae_lambda": 0.95,
        "observation_space": {
            ":type:": "<class 'gymnasium.spaces.box.Box'>",
            "_shape": [4],
            "dtype": "float32",
        },
        "action_space": {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>", "n": "3", "start": "0"},
    } | changes


def agent_bytes(
    state: Mapping[str, Tensor] | bytes | None = None,
    data: Mapping[str, Any] | bytes | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """An agent's zip, made by hand."""
    if not isinstance(state, bytes):
        stream = io.BytesIO()
        torch.save(dict(plain_state() if state is None else state), stream)
        state = stream.getvalue()
    if not isinstance(data, bytes):
        data = json.dumps(plain_data() if data is None else data).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("data", data)
        archive.writestr("policy.pth", state)
        archive.writestr("_stable_baselines3_version", "2.9.2")
    return stream.getvalue()


def write_folder(
    folder: Path, agents: Mapping[str, bytes], manifest: Mapping[str, Any] | None = None
) -> Path:
    """A folder of agents' zips, with a manifest or without."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in agents.items():
        (folder / f"{name}.zip").write_bytes(content)
    if manifest is not None:
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def pack(folder: Path, path: Path, prefix: str = "") -> Path:
    """A folder as a zip of zips."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, prefix + file.name)
    return path
