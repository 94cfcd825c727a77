"""The merged graph's parts: networks, observations as agents see them, and what follows for all agents at once."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from exporters.rl.agents import Agent, Algorithm, Box
from exporters.rl.networks import Mlp
from exporters.rl.normalization import ObservationStatistics

LOG_STD_RANGE = (-20.0, 2.0)
"""SAC's own bounds. Source: stable_baselines3/sac/policies.py, `LOG_STD_MIN`, `LOG_STD_MAX`."""
ACTIVATION_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "celu": functional.celu, "elu": functional.elu, "gelu": functional.gelu, "hardtanh": functional.hardtanh,
    "leaky_relu": functional.leaky_relu, "mish": functional.mish, "relu": torch.relu, "relu6": functional.relu6,
    "selu": functional.selu, "sigmoid": torch.sigmoid, "silu": functional.silu, "softplus": functional.softplus,
    "softsign": functional.softsign, "tanh": torch.tanh,
}  # fmt: skip
"""By the names of `exporters.rl.networks.ACTIVATIONS`."""
_FAR = 8
"""Deviations from zero beyond which a mean's rounding to float32 would show."""
_PRODUCT = 256
"""Probabilities in a row up to which a product orders them faster than a gather."""
_LAYOUT = 1 << 14
"""Likewise, of ones and zeros for actions."""


class Network(nn.Module):
    """An `Mlp`: [batch, inputs] to [batch, outputs]."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.activation = ACTIVATION_FUNCTIONS[mlp.activation]
        self.layers = nn.ModuleList()
        for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
            linear.bias = nn.Parameter(torch.from_numpy(bias), requires_grad=False)
            self.layers.append(linear)

    def forward(self, units: Tensor) -> Tensor:
        """As the class says."""
        for place, layer in enumerate(self.layers):
            units = layer(units if place == 0 else self.activation(units))
        return units


class LeastValue(nn.Module):
    """The least value that several networks give: [batch, inputs] to [batch, 1]."""

    def __init__(self, mlps: Sequence[Mlp]) -> None:
        super().__init__()
        self.networks = nn.ModuleList([Network(mlp) for mlp in mlps])

    def forward(self, inputs: Tensor) -> Tensor:
        """As the class says."""
        values = [network(inputs) for network in self.networks]
        least: Tensor = values[0]
        for value in values[1:]:
            least = torch.minimum(least, value)
        return least


class Views(nn.Module):
    """The observation as VecNormalize shows it to each agent: [batch, features] to as many of the same as there are
    distinct statistics, all standardised in one go. None are no statistics.

    A mean far from zero is subtracted in two parts: a price's differences are in the digits that float32 rounds off.
    """

    def __init__(self, distinct: Sequence[ObservationStatistics | None]) -> None:
        super().__init__()
        used = [each for each in distinct if each is not None]
        self.place = [None if each is None else used.index(each) for each in distinct]
        self.sizes = [len(each.mean) for each in used]
        mean = np.array([value for each in used for value in each.mean])
        scale = np.sqrt([value + each.epsilon for each in used for value in each.var])
        limit = np.array([each.clip_obs for each in used for _ in each.mean])
        coarse = mean.astype(np.float32)
        self.clip = float(limit[0]) if used and (limit == limit[0]).all() else None
        self.is_far = bool((np.abs(mean) > _FAR * scale).any())
        for name, values in (
            ("coarse", coarse),
            ("fine", mean - coarse),
            ("scale", scale),
            ("limit", limit),
        ):
            self.register_buffer(name, torch.from_numpy(values.astype(np.float32)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """As the class says, in the order of the statistics."""
        if not self.sizes:
            return [x] * len(self.place)
        shown = joined([x] * len(self.sizes)) - self.get_buffer("coarse")
        if self.is_far:
            shown = shown - self.get_buffer("fine")
        shown = shown / self.get_buffer("scale")
        if self.clip is not None:
            shown = shown.clamp(-self.clip, self.clip)
        else:
            limit = self.get_buffer("limit")
            shown = torch.minimum(torch.maximum(shown, -limit), limit)
        parts = [shown] if len(self.sizes) == 1 else torch.split(shown, self.sizes, dim=1)
        return [x if place is None else parts[place] for place in self.place]


class BoxBounds(nn.Module):
    """Actions of several Boxes side by side, [batch, components], held to their bounds."""

    def __init__(self, boxes: Sequence[Box]) -> None:
        super().__init__()
        low = np.array([bound for box in boxes for bound in box.low])
        high = np.array([bound for box in boxes for bound in box.high])
        self.is_unit = bool((low == -1).all() and (high == 1).all())
        for name, values in (("low", low), ("high", high)):
            self.register_buffer(name, torch.from_numpy(values).float())
        self.register_buffer("reach", torch.from_numpy((high - low) / 2).float())
        self.register_buffer("middle", torch.from_numpy((high + low) / 2).float())

    def clipped(self, means: Tensor) -> Tensor:
        """PPO's and A2C's, cut off at the bounds."""
        return torch.minimum(torch.maximum(means, self.get_buffer("low")), self.get_buffer("high"))

    def rescaled(self, scaled: Tensor) -> Tensor:
        """SAC's and TD3's, from their scale of -1 to 1."""
        if self.is_unit:
            return scaled
        return scaled * self.get_buffer("reach") + self.get_buffer("middle")


class Masses(nn.Module):
    """What of Gaussians lies below the first threshold, between thresholds, and above the last.

    [batch, agents * thresholds] distances of the thresholds from the means, in standard deviations times the square
    root of two, to probabilities [batch, agents, classes].
    """

    def __init__(self, agents: int, thresholds: int) -> None:
        super().__init__()
        between = torch.zeros(thresholds, thresholds + 1)
        for index in range(thresholds):
            between[index, index], between[index, index + 1] = 0.5, -0.5
        ends = torch.zeros(thresholds + 1)
        ends[0] = ends[-1] = 0.5
        self.shape = (agents, thresholds)
        self.register_buffer("between", between)
        self.register_buffer("ends", ends)

    def forward(self, distances: Tensor) -> Tensor:
        """As the class says."""
        errors = torch.erf(distances).reshape(-1, *self.shape)
        masses = torch.matmul(errors, self.get_buffer("between")) + self.get_buffer("ends")
        return masses.clamp(min=0.0)  # an approximate erf may fall by its last digit


class FixedDistances(nn.Module):
    """For `Masses`, of agents whose deviations don't depend on the observation: PPO, A2C and TD3.

    PPO's and A2C's Gaussian is around the mean, on the scale of the bounds; TD3's is its target noise around the
    action, on the scale of -1 to 1. `columns`: each agent's first component among `width` in all.
    """

    def __init__(self, columns: Sequence[tuple[Agent, int]], width: int, thresholds: Sequence[float]) -> None:
        super().__init__()
        cuts = np.array(thresholds)
        slopes = np.zeros((len(columns), cuts.size, width))
        edges = np.zeros((len(columns), cuts.size))
        for index, (agent, column) in enumerate(columns):
            is_noisy = agent.algorithm is Algorithm.TD3
            deviation = agent.target_noise if is_noisy else _deviation(agent)
            inverse = 1 / (math.sqrt(2) * (deviation or 1.0))
            slopes[index, :, column] = -inverse
            edges[index] = (cuts if is_noisy else _on_bounds(cuts, agent)) * inverse
        self.register_buffer("slopes", torch.from_numpy(slopes.reshape(edges.size, width)).float())
        self.register_buffer("edges", torch.from_numpy(edges.ravel()).float())

    def forward(self, centres: Tensor) -> Tensor:
        """[batch, width] to [batch, agents * thresholds]."""
        return functional.linear(centres, self.get_buffer("slopes"), self.get_buffer("edges"))


class SquashedDistances(nn.Module):
    """For `Masses`, of SAC's agents: their Gaussian lies before the tanh, and so do the thresholds.

    [batch, components] means, and of the same logarithms of deviations, to [batch, agents * thresholds].
    """

    def __init__(self, agents: Sequence[Agent], thresholds: Sequence[float]) -> None:
        super().__init__()
        cuts = np.arctanh(np.array(thresholds))
        sizes = [agent.action_size for agent in agents]
        first = np.zeros((len(agents), cuts.size, sum(sizes)))
        for index in range(len(agents)):
            first[index, :, sum(sizes[:index])] = -1.0
        self.register_buffer(
            "first", torch.from_numpy(first.reshape(len(agents) * cuts.size, sum(sizes))).float()
        )
        self.register_buffer("edges", torch.from_numpy(np.tile(cuts, len(agents))).float())
        self.register_buffer("half_log_2", torch.full((len(agents) * cuts.size,), -math.log(2) / 2))

    def forward(self, means: Tensor, log_stds: Tensor) -> Tensor:
        """As the class says."""
        first = self.get_buffer("first")
        away = functional.linear(means, first, self.get_buffer("edges"))
        inverse = functional.linear(log_stds.clamp(*LOG_STD_RANGE), first, self.get_buffer("half_log_2"))
        return away * torch.exp(inverse)


class ActionLayout(nn.Module):
    """Actions side by side, in the order of `laid`, to [batch, agents, length]: shorter ones are filled up with zeros.

    As a product with ones and zeros, which is exact, unless that had very many zeros.
    """

    def __init__(self, agents: Sequence[Agent], laid: Sequence[int], length: int) -> None:
        super().__init__()
        sizes = [agent.actions.size if isinstance(agent.actions, Box) else 1 for agent in agents]
        starts = {index: sum(sizes[other] for other in laid[:place]) for place, index in enumerate(laid)}
        columns = torch.full((len(agents), length), sum(sizes))  # the one behind the last is a zero
        for index, size in enumerate(sizes):
            columns[index, :size] = torch.arange(starts[index], starts[index] + size)
        self.shape = (len(agents), length)
        self.is_product = sum(sizes) * columns.numel() <= _LAYOUT
        ones = torch.eye(sum(sizes) + 1)[columns.ravel()].T[:-1] if self.is_product else torch.zeros(0)
        self.register_buffer("ones", ones.contiguous())
        self.register_buffer("columns", columns.ravel())

    def forward(self, actions: Tensor) -> Tensor:
        """As the class says."""
        if self.is_product:
            return torch.matmul(actions, self.get_buffer("ones")).reshape(-1, *self.shape)
        filled = torch.cat([actions, actions[:, :1] * 0], dim=1)
        return filled.index_select(1, self.get_buffer("columns")).reshape(-1, *self.shape)


class Mixture(nn.Module):
    """Puts the agents' probabilities in order, and mixes them.

    Weights [batch, agents], and probabilities [batch, agents, classes] whose agent `order[i]` is the i-th to come, to
    the mixture [batch, classes] and the probabilities in order. As products with ones and zeros, which are exact:
    ONNX Runtime takes five times as long for a sum over a middle axis, and twice as long for a gather.
    """

    def __init__(self, order: Sequence[int], classes: int) -> None:
        super().__init__()
        agents = len(order)
        size = agents * classes
        self.shape = (agents, classes)
        self.is_ordered = list(order) == list(range(agents))
        self.is_product = size <= _PRODUCT
        self.register_buffer("order", torch.tensor(order))
        rows = torch.tensor(order)[:, None] * classes + torch.arange(classes)
        self.register_buffer("move", torch.eye(size)[rows.ravel()].T if self.is_product else torch.zeros(0))
        self.register_buffer("repeat", torch.eye(agents).repeat_interleave(classes, dim=1))
        self.register_buffer("add", torch.eye(classes).repeat(agents, 1))

    def forward(self, weights: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """As the class says."""
        if not (self.is_ordered or self.is_product):
            probs = probs.index_select(1, self.get_buffer("order"))
        flat = probs.reshape(-1, self.shape[0] * self.shape[1])
        if not self.is_ordered and self.is_product:
            flat = torch.matmul(flat, self.get_buffer("move"))
        repeated = torch.matmul(weights, self.get_buffer("repeat"))
        mixture = torch.matmul(repeated * flat, self.get_buffer("add"))
        return mixture, flat.reshape(-1, *self.shape)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts side by side on axis 1."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _on_bounds(cuts: NDArray[np.float64], agent: Agent) -> NDArray[np.float64]:
    assert isinstance(agent.actions, Box)  # noqa: S101 - only such agents have thresholds
    low, high = agent.actions.low[0], agent.actions.high[0]
    return low + (cuts + 1) / 2 * (high - low)


def _deviation(agent: Agent) -> float:
    log_std = agent.networks.log_std
    assert log_std is not None  # noqa: S101 - PPO and A2C on a Box have one
    return float(np.exp(np.float64(log_std[0])))
