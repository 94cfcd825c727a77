"""The graph that is exported: all agents of an ensemble, for the weights that come with an observation.

Each network runs alone; what follows runs for all agents of a kind at once, since an operator costs more than its
arithmetic there. Measured with ONNX Runtime and TorchScript on one thread, batched products of networks of equal
sizes took up to twice as long as one network after the other: they keep ONNX Runtime from fusing bias and activation
into a product and from packing its weights ahead. `exporters.rl.reference` has the same agent by agent.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from exporters.rl.agents import Agent, Algorithm, Box, Discrete
from exporters.rl.ensemble import Ensemble
from exporters.rl.networks import Mlp
from exporters.rl.parts import (
    ActionLayout,
    BoxBounds,
    FixedDistances,
    LeastValue,
    Masses,
    Mixture,
    Network,
    SquashedDistances,
    Views,
    joined,
)


class MergedEnsemble(nn.Module):
    """All agents: x float32 [batch, features] and weights [batch, agents] to the five outputs, in their order.

    Agents are known by their index; `discrete`, `clipped` (PPO and A2C on a Box), `noisy` (TD3) and `soft` (SAC) are
    those of each kind.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        agents = ensemble.agents
        every = range(len(agents))
        self.discrete = [i for i in every if isinstance(agents[i].actions, Discrete)]
        self.clipped = [i for i in every if agents[i].networks.log_std is not None]
        self.noisy = [i for i in every if agents[i].algorithm is Algorithm.TD3]
        self.soft = [i for i in every if agents[i].algorithm is Algorithm.SAC]
        self.sizes = [agent.action_size for agent in agents]
        self.classes = ensemble.classes

        distinct = list(dict.fromkeys(agent.statistics for agent in agents))
        self.view_of = [distinct.index(agent.statistics) for agent in agents]
        self.views = Views(distinct)
        self.policies = nn.ModuleList([Network(agent.networks.policy) for agent in agents])
        self.critics = nn.ModuleList([self._critics(agents, i) for i in every])
        self.has_head = [bool(agent.networks.values) for agent in agents]

        temperatures = [agents[i].temperature or 1.0 for i in self.discrete]
        self.is_tempered = any(temperature != 1 for temperature in temperatures)
        self.register_buffer("coolness", 1 / torch.tensor(temperatures)[:, None])
        self.clip = BoxBounds(_boxes(agents, self.clipped))
        self.scale = BoxBounds(_boxes(agents, [*self.soft, *self.noisy]))
        cuts = ensemble.thresholds
        self.fixed = FixedDistances(*_columns(agents, self.clipped, self.soft, self.noisy), cuts)
        self.squashed = SquashedDistances([agents[i] for i in self.soft], cuts)
        self.masses = Masses(len(self.clipped) + len(self.noisy) + len(self.soft), len(cuts))
        order = [*self.discrete, *self.clipped, *self.noisy, *self.soft]
        self.mixture = Mixture([order.index(i) for i in every], ensemble.classes)
        laid = [*self.discrete, *self.clipped, *self.soft, *self.noisy]
        self.layout = ActionLayout(agents, laid, ensemble.action_length)

    def forward(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """As the class says."""
        views = self.views(x)
        outputs = [policy(views[view]) for policy, view in zip(self.policies, self.view_of, strict=True)]
        probs: list[Tensor] = []
        actions: list[Tensor] = []
        if self.discrete:
            scores = joined([outputs[i] for i in self.discrete]).reshape(-1, len(self.discrete), self.classes)
            actions.append(scores.argmax(dim=2).to(x.dtype))
            if self.is_tempered:
                scores = scores * self.get_buffer("coolness")
            probs.append(torch.softmax(scores, dim=2))
        centres: list[Tensor] = []
        if self.clipped:
            centres += [outputs[i] for i in self.clipped]
            actions.append(self.clip.clipped(joined(centres)))
        heads = [outputs[i].split(self.sizes[i], dim=1) for i in self.soft]
        means = [head[0] for head in heads]
        scaled = x
        if self.soft or self.noisy:
            scaled = torch.tanh(joined([*means, *(outputs[i] for i in self.noisy)]))
            centres.append(scaled)
            actions.append(self.scale.rescaled(scaled))
        distances: list[Tensor] = []
        if self.clipped or self.noisy:
            distances.append(self.fixed(joined(centres)))
        if self.soft:
            distances.append(self.squashed(joined(means), joined([head[1] for head in heads])))
        if distances:
            probs.append(self.masses(joined(distances)))
        action_probs, agent_probs = self.mixture(weights, joined(probs))
        agent_values = joined(self._values(views, outputs, scaled))
        value = (weights * agent_values).sum(dim=1, keepdim=True)
        return action_probs, value, agent_probs, agent_values, self.layout(joined(actions))

    def _values(self, views: Sequence[Tensor], outputs: Sequence[Tensor], scaled: Tensor) -> list[Tensor]:
        """Each agent's state value, [batch, 1]: its value head's, its largest action value, or its least critic's."""
        squashed = [*self.soft, *self.noisy]
        wide = {
            view: torch.cat([views[view], scaled], dim=1)
            for view in dict.fromkeys(self.view_of[i] for i in squashed)
        }
        wide_for = {i: wide[self.view_of[i]] for i in squashed}
        values = []
        for i, least in enumerate(self.critics):
            if i in wide_for:
                values.append(least(wide_for[i]))
            elif self.has_head[i]:
                values.append(least(views[self.view_of[i]]))
            else:
                values.append(outputs[i].amax(dim=1, keepdim=True))
        return values

    def _critics(self, agents: Sequence[Agent], index: int) -> nn.Module:
        """An agent's value networks. Critics take the actions of all of SAC's and TD3's agents side by side, and those
        of other agents meet weights of zero: one input for all costs less than one for each.
        """
        squashed = [*self.soft, *self.noisy]
        if index not in squashed:
            return LeastValue(agents[index].networks.values)
        start = sum(self.sizes[i] for i in squashed[: squashed.index(index)])
        width = sum(self.sizes[i] for i in squashed)
        features = agents[index].observation_size
        return LeastValue([_widened(mlp, features, start, width) for mlp in agents[index].networks.values])


def _boxes(agents: Sequence[Agent], indices: Sequence[int]) -> list[Box]:
    return [box for i in indices if isinstance(box := agents[i].actions, Box)]


def _columns(
    agents: Sequence[Agent], clipped: Sequence[int], soft: Sequence[int], noisy: Sequence[int]
) -> tuple[list[tuple[Agent, int]], int]:
    """The agents of `FixedDistances` with their first columns, and the number of columns."""
    starts: dict[int, int] = {}
    width = 0
    for i in (*clipped, *soft, *noisy):
        starts[i] = width
        width += agents[i].action_size
    return [(agents[i], starts[i]) for i in (*clipped, *noisy)], width


def _widened(mlp: Mlp, features: int, start: int, width: int) -> Mlp:
    """A critic that takes the observation and all agents' actions, of which its own agent's begin at `start`."""
    first = mlp.weights[0]
    wide = np.zeros((first.shape[0], features + width), dtype=np.float32)
    wide[:, :features] = first[:, :features]
    wide[:, features + start : features + start + first.shape[1] - features] = first[:, features:]
    return replace(mlp, weights=(wide, *mlp.weights[1:]))
