"""What an ensemble computes, agent by agent and in double precision: the merged graph is verified against this.

Written for reading, not for speed, and without a line of the merged graph's, so that a mistake there shows.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from exporters.rl.agents import Agent, Algorithm, Box
from exporters.rl.ensemble import Ensemble
from exporters.rl.networks import Mlp


class ReferenceEnsemble(nn.Module):
    """x float32 [batch, features] and weights [batch, agents] to the five outputs, float32."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, x: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """As the class says."""
        answers = [_act(agent, self.ensemble, x.double()) for agent in self.ensemble.agents]
        probs = torch.stack([answer[0] for answer in answers], dim=1)
        values = torch.stack([answer[1] for answer in answers], dim=1)
        length = self.ensemble.action_length
        actions = torch.stack(
            [functional.pad(answer[2], (0, length - answer[2].shape[1])) for answer in answers], dim=1
        )
        mixture = (weights.double()[:, :, None] * probs).sum(dim=1)
        value = (weights.double() * values).sum(dim=1, keepdim=True)
        return tuple(output.float() for output in (mixture, value, probs, values, actions))


def _act(agent: Agent, ensemble: Ensemble, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An agent's action probabilities [batch, classes], state value [batch] and raw action [batch, components]."""
    observation = _standardized(agent, x)
    networks = agent.networks
    outputs = _run(networks.policy, observation)
    if not isinstance(agent.actions, Box):
        probs = torch.softmax(outputs / (agent.temperature or 1.0), dim=1)
        is_dqn = agent.algorithm is Algorithm.DQN
        value = outputs.max(dim=1).values if is_dqn else _run(networks.values[0], observation)[:, 0]
        return probs, value, outputs.argmax(dim=1, keepdim=True).double()
    box = agent.actions
    low, high = torch.tensor(box.low).double(), torch.tensor(box.high).double()
    means = outputs[:, : box.size]
    cuts = torch.tensor(ensemble.thresholds, dtype=torch.float64)
    if networks.log_std is not None:
        deviation = torch.from_numpy(networks.log_std).double().exp()[:1]
        probs = _masses(means[:, :1], deviation, low[0] + 0.5 * (cuts + 1) * (high[0] - low[0]))
        value = _run(networks.values[0], observation)[:, 0]
        return probs, value, means.clamp(low, high)
    action = torch.tanh(means)
    if agent.algorithm is Algorithm.SAC:
        deviation = outputs[:, box.size : box.size + 1].clamp(-20, 2).exp()
        probs = _masses(means[:, :1], deviation, torch.atanh(cuts))
    else:
        probs = _masses(action[:, :1], torch.tensor(agent.target_noise), cuts)
    critics = [_run(critic, torch.cat([observation, action], dim=1)) for critic in networks.values]
    return probs, torch.cat(critics, dim=1).min(dim=1).values, low + 0.5 * (action + 1) * (high - low)


def _standardized(agent: Agent, x: Tensor) -> Tensor:
    statistics = agent.statistics
    if statistics is None:
        return x
    mean, var = (torch.tensor(part, dtype=torch.float64) for part in (statistics.mean, statistics.var))
    scaled = (x - mean) / torch.sqrt(var + statistics.epsilon)
    return scaled.clamp(-statistics.clip_obs, statistics.clip_obs)


def _run(mlp: Mlp, hidden: Tensor) -> Tensor:
    activation = getattr(functional, mlp.activation)
    for layer, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
        if layer:
            hidden = activation(hidden)
        hidden = functional.linear(hidden, torch.from_numpy(weight).double(), torch.from_numpy(bias).double())
    return hidden


def _masses(mean: Tensor, deviation: Tensor, cuts: Tensor) -> Tensor:
    """A Gaussian's mass below the first cut, between cuts, and above the last: [batch, cuts + 1]."""
    below = 0.5 * (1 + torch.erf((cuts - mean) / (deviation * math.sqrt(2))))
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    return torch.diff(torch.cat([zero, below, one], dim=1), dim=1)
