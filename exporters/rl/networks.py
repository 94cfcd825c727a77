"""An agent's networks, from the names and shapes of its tensors as Stable-Baselines3's MLP policies have them.

Every tensor must be one of a known policy's: whatever is left over would change what the agent does, and is refused
by name. Source: stable_baselines3/common/policies.py, sac/policies.py, td3/policies.py, dqn/policies.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.errors import ConfigMismatch, UnsupportedCheckpoint, shown

Tensors = Mapping[str, NDArray[Any]]
Array = NDArray[np.float32]

ACTIVATIONS: Mapping[str, str] = {
    "CELU": "celu", "ELU": "elu", "GELU": "gelu", "Hardtanh": "hardtanh", "LeakyReLU": "leaky_relu", "Mish": "mish",
    "ReLU": "relu", "ReLU6": "relu6", "SELU": "selu", "SiLU": "silu", "Sigmoid": "sigmoid", "Softplus": "softplus",
    "Softsign": "softsign", "Tanh": "tanh",
}  # fmt: skip
"""torch's classes, with their default parameters, and the names of the same in `torch.nn.functional`."""
MAX_LAYERS = 32
MAX_CRITICS = 16
_UNUSED = re.compile(r"(?:critic_target|actor_target|q_net_target)\..+")
"""Target networks: training's own."""
_REFUSED = (
    (re.compile(r".*lstm.*"), "a recurrent policy"),
    (re.compile(r".*features_extractor\.(?:.+\.)?cnn\..*"), "a CNN policy"),
    (re.compile(r".*features_extractor\.extractors\..*"), "a multi-input policy"),
    (re.compile(r".*features_extractor\..*"), "a features extractor with weights"),
    (re.compile(r".*running_(?:mean|var)"), "batch normalisation"),
    (re.compile(r"quantile_net\..*"), "QR-DQN's quantiles"),
    (re.compile(r"mlp_extractor\.shared_net\..*"), "layers shared by policy and value (Stable-Baselines3 before 1.8)"),
    (re.compile(r"actor\.log_std"), "gSDE"),
)  # fmt: skip


class PolicyKind(StrEnum):
    """Kinds of policy that the tensors alone tell apart."""

    ACTOR_CRITIC = "PPO or A2C"
    SAC = "SAC"
    TD3 = "TD3"
    DQN = "DQN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """Linear layers with an activation between them. `weights`: float32 [outputs, inputs] each; `biases`: [outputs]."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    activation: str

    @property
    def inputs(self) -> int:
        """Size of its input."""
        return int(self.weights[0].shape[1])

    @property
    def outputs(self) -> int:
        """Size of its output."""
        return int(self.weights[-1].shape[0])

    @property
    def hidden(self) -> tuple[int, ...]:
        """Sizes of its hidden layers."""
        return tuple(int(weight.shape[0]) for weight in self.weights[:-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """An agent's networks.

    `policy` gives logits (PPO, A2C), action values (DQN), means (Box; before the tanh of SAC and TD3), and for SAC
    behind the means as many logarithms of standard deviations. `values`: the value head, or the critics.
    `log_std`: float32 [components] of PPO's and A2C's Gaussian.
    """

    kind: PolicyKind
    policy: Mlp
    values: tuple[Mlp, ...] = ()
    log_std: Array | None = None


def policy_kind(tensors: Tensors) -> PolicyKind:
    """Tells the kind of policy.

    Raises:
        UnsupportedCheckpoint: none that is served; names what it is, or its first tensors.
    """
    for pattern, what in _REFUSED:
        name = next((name for name in tensors if pattern.fullmatch(name)), None)
        if name is not None:
            raise UnsupportedCheckpoint(
                f"The policy has {what}, which isn't served.",
                expected="an MlpPolicy of PPO, A2C, SAC, TD3 or DQN",
                got=f"the tensor {shown(name)}",
                remedy="Train it with MlpPolicy, or export it as ONNX and publish it as a type of its own.",
            )
    for head, kind in (
        ("action_net.weight", PolicyKind.ACTOR_CRITIC),
        ("actor.log_std.weight", PolicyKind.SAC),
        ("actor.mu.0.weight", PolicyKind.TD3),
        ("q_net.q_net.0.weight", PolicyKind.DQN),
    ):
        if head in tensors:
            return kind
    raise UnsupportedCheckpoint(
        "The policy isn't one of a known algorithm.",
        expected="an MlpPolicy of PPO, A2C, SAC, TD3 or DQN",
        got="the tensors " + ", ".join(map(shown, list(tensors)[:6])),
        remedy="Export it as ONNX and publish it as a type of its own.",
    )


def build_networks(tensors: Tensors, kind: PolicyKind, activation: str) -> Networks:
    """Takes the networks out of the tensors.

    Args:
        tensors: of `policy.pth`.
        kind: of the policy.
        activation: of its hidden layers, as in `ACTIVATIONS`.

    Raises:
        UnsupportedCheckpoint: a tensor is missing, left over or not of floating point.
        ConfigMismatch: two layers' sizes disagree.
    """
    taker = _Taker({name: value for name, value in tensors.items() if _UNUSED.fullmatch(name) is None})
    match kind:
        case PolicyKind.ACTOR_CRITIC:
            log_std = taker.vector("log_std") if "log_std" in tensors else None
            policy = taker.mlp("mlp_extractor.policy_net", activation, head="action_net")
            values = (taker.mlp("mlp_extractor.value_net", activation, head="value_net"),)
            networks = Networks(kind=kind, policy=policy, values=values, log_std=log_std)
        case PolicyKind.SAC:
            means = taker.mlp("actor.latent_pi", activation, head="actor.mu")
            deviations = taker.linear("actor.log_std")
            networks = Networks(
                kind=kind, policy=_joined(means, *deviations), values=taker.critics(activation)
            )
        case PolicyKind.TD3:
            networks = Networks(
                kind=kind, policy=taker.mlp("actor.mu", activation), values=taker.critics(activation)
            )
        case PolicyKind.DQN:
            networks = Networks(kind=kind, policy=taker.mlp("q_net.q_net", activation))
    taker.finish()
    return networks


def _joined(means: Mlp, weight: Array, bias: Array) -> Mlp:
    last = means.weights[-1]
    if weight.shape != last.shape:
        raise ConfigMismatch(
            "The policy's heads disagree.",
            expected=f"actor.log_std of shape {list(last.shape)}, as actor.mu",
            got=f"shape {list(weight.shape)}",
        )
    return Mlp(
        weights=(*means.weights[:-1], np.concatenate([last, weight])),
        biases=(*means.biases[:-1], np.concatenate([means.biases[-1], bias])),
        activation=means.activation,
    )


class _Taker:
    """Takes tensors by name, and says at the end what is left over."""

    def __init__(self, tensors: dict[str, NDArray[Any]]) -> None:
        self._tensors = tensors

    def take(self, name: str, dimensions: int) -> Array:
        value = self._tensors.pop(name, None)
        if value is None or value.ndim != dimensions or value.dtype.kind != "f" or not value.size:
            raise UnsupportedCheckpoint(
                f"The policy's tensor {shown(name)} isn't as its kind has it.",
                expected=f"floating point of {dimensions} dimensions",
                got="none" if value is None else f"{value.dtype} {list(value.shape)}",
                remedy="Train it with the MlpPolicy of Stable-Baselines3 1.8 or later.",
            )
        with np.errstate(over="ignore"):
            single = value.astype(np.float32)
        if not np.isfinite(single).all():
            raise UnsupportedCheckpoint(f"The tensor {shown(name)} is beyond what float32 holds.")
        return single

    def vector(self, name: str) -> Array:
        value = self._tensors.get(name)
        if value is not None and value.ndim == 2:  # one row for each feature: only gSDE has that
            raise UnsupportedCheckpoint(
                "The policy has gSDE, which isn't served.",
                expected=f"{name} with one value for each component",
                got=f"shape {list(value.shape)}",
                remedy="Train without gSDE.",
            )
        return self.take(name, 1)

    def linear(self, prefix: str) -> tuple[Array, Array]:
        weight = self.take(f"{prefix}.weight", 2)
        bias = self.take(f"{prefix}.bias", 1)
        if bias.shape[0] != weight.shape[0]:
            raise _mismatch(f"{prefix}.bias", f"{weight.shape[0]} values", f"{bias.shape[0]}")
        return weight, bias

    def mlp(self, prefix: str, activation: str, *, head: str | None = None) -> Mlp:
        """Layers `prefix.0`, `prefix.2`, …, with activations between, and the layer `head` behind them."""
        places = []
        for place in range(0, 2 * MAX_LAYERS, 2):
            if f"{prefix}.{place}.weight" not in self._tensors:
                break
            places.append(f"{prefix}.{place}")
        layers = [self.linear(place) for place in (*places, *((head,) if head else ()))]
        if not layers:
            self.take(f"{prefix}.0.weight", 2)
        for (before, _), (after, _) in pairwise(layers):
            if before.shape[0] != after.shape[1]:
                raise _mismatch(prefix, f"a layer with {before.shape[0]} inputs", f"{after.shape[1]}")
        return Mlp(
            weights=tuple(weight for weight, _ in layers),
            biases=tuple(bias for _, bias in layers),
            activation=activation,
        )

    def critics(self, activation: str) -> tuple[Mlp, ...]:
        """`critic.qf0`, `critic.qf1`, …, one value each."""
        critics = [self.mlp("critic.qf0", activation)]
        while f"critic.qf{len(critics)}.0.weight" in self._tensors and len(critics) < MAX_CRITICS:
            critics.append(self.mlp(f"critic.qf{len(critics)}", activation))
        for critic in critics:
            if critic.outputs != 1 or critic.inputs != critics[0].inputs:
                raise UnsupportedCheckpoint(
                    "The policy's critics aren't those of SAC or TD3.",
                    expected="one value from each, of the same inputs",
                    got=f"{critic.outputs} values of {critic.inputs} inputs",
                    remedy="Other algorithms' critics (TQC, for one) aren't served.",
                )
        return tuple(critics)

    def finish(self) -> None:
        if self._tensors:
            raise UnsupportedCheckpoint(
                "The policy has tensors that its kind doesn't have.",
                expected="an MlpPolicy as Stable-Baselines3 saves it",
                got=", ".join(map(shown, sorted(self._tensors)[:6])),
                remedy="Train it with the unchanged MlpPolicy.",
            )


def _mismatch(where: str, expected: str, got: str) -> ConfigMismatch:
    return ConfigMismatch(f"The layers of {where} don't fit each other.", expected=expected, got=got)
