"""One agent: its zip read, its networks rebuilt, and what its zip and the manifest say held against each other."""

import hashlib
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

import numpy as np

from exporters.checkpoints.archive import open_zip_safely, read_entry
from exporters.checkpoints.reader import read_state
from exporters.errors import ConfigMismatch, ExportError, InvalidConfig, UnsupportedCheckpoint, shown
from exporters.rl.bundle import MAX_FILE_BYTES, POLICY, Bundle
from exporters.rl.manifest import MAX_CLASSES, AgentEntry
from exporters.rl.networks import (
    ACTIVATIONS,
    Networks,
    PolicyKind,
    Tensors,
    build_networks,
    policy_kind,
)
from exporters.rl.normalization import ObservationStatistics, read_statistics
from exporters.rl.saved_data import MAX_DATA_BYTES, SavedData, SavedSpace, read_saved_data

DEFAULT_TARGET_NOISE = 0.2
MAX_COMPONENTS = 256
"""Of a Box action."""
_DEFAULT_ACTIVATION = {PolicyKind.ACTOR_CRITIC: "tanh"}
_OWN_MODULES = "stable_baselines3"


class Algorithm(StrEnum):
    """Algorithms whose agents are served."""

    PPO = "PPO"
    A2C = "A2C"
    SAC = "SAC"
    TD3 = "TD3"
    DQN = "DQN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrete:
    """So many actions, by index."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Actions of real components within bounds, which are float32's."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def size(self) -> int:
        """Number of components."""
        return len(self.low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """An agent that can be merged. `temperature` is DQN's, `target_noise` TD3's; `sha256` is of its zip."""

    name: str
    algorithm: Algorithm
    networks: Networks
    actions: Discrete | Box
    statistics: ObservationStatistics | None
    temperature: float | None
    target_noise: float | None
    sha256: str = ""

    @property
    def observation_size(self) -> int:
        """Number of features of an observation, flattened."""
        return self.networks.policy.inputs

    @property
    def action_size(self) -> int:
        """Number of actions, or of a Box's components."""
        return self.actions.count if isinstance(self.actions, Discrete) else self.actions.size


@contextmanager
def errors_about(agent: str) -> Iterator[None]:
    """Lets errors say which agent they are about."""
    try:
        yield
    except ExportError as error:
        raise type(error)(
            f"Agent {agent}: {error.detail}", expected=error.expected, got=error.got, remedy=error.remedy
        ) from error


def read_agent(bundle: Bundle, entry: AgentEntry, *, q_temperature: float) -> Agent:
    """Reads an agent.

    Args:
        bundle: the ensemble's files.
        entry: what the manifest and the request say of it.
        q_temperature: of DQN's softmax, where the entry has none of its own.

    Raises:
        UnsafeCheckpoint: its `policy.pth` would run code when unpickled.
        CorruptCheckpoint: missing, damaged, or not an agent's zip.
        UnsupportedCheckpoint: a policy or space that isn't served, tensors that aren't finite.
        ConfigMismatch: the manifest and the zip disagree.
        InvalidConfig: something that only the manifest could say is missing or out of range.
    """
    with errors_about(entry.name):
        content = bundle.read(entry.file or "")
        data, tensors = _open(content, entry.file or "")
        kind = policy_kind(tensors)
        algorithm = _algorithm(kind, data, entry)
        _check_policy_class(data, entry)
        _check_observations(data.observation_space)
        networks = build_networks(tensors, kind, _activation(kind, data, entry))
        actions = _actions(networks, data.action_space, entry)
        _check_sizes(networks, actions, data.observation_space)
        statistics = None if entry.normalization is None else read_statistics(entry.normalization, bundle)
        if statistics is not None and len(statistics.mean) != networks.policy.inputs:
            raise ConfigMismatch(
                "The normalisation isn't of the agent's observations.",
                expected=f"{networks.policy.inputs} means",
                got=f"{len(statistics.mean)} means",
            )
        return Agent(
            name=entry.name,
            algorithm=algorithm,
            networks=networks,
            actions=actions,
            statistics=statistics,
            temperature=_temperature(algorithm, entry, q_temperature),
            target_noise=_target_noise(algorithm, entry, data),
            sha256=hashlib.sha256(content).hexdigest(),
        )


def _open(content: bytes, file: str) -> tuple[SavedData, Tensors]:
    if not content.startswith(b"PK"):
        raise UnsupportedCheckpoint(
            f"{shown(file)} isn't a zip.",
            expected="a zip that Stable-Baselines3 saved",
            got=f"a file that begins with {content[:12]!r}",
            remedy="Save the agent with model.save(…).",
        )
    with open_zip_safely(io.BytesIO(content), len(content)) as archive:
        names = archive.namelist()
        policies = [name for name in names if PurePosixPath(name).name == POLICY]
        if len(policies) != 1:
            raise UnsupportedCheckpoint(
                f"{shown(file)} isn't one agent's zip.",
                expected=f"one {POLICY}, and data",
                got=", ".join(map(shown, names[:6])) or "an empty archive",
                remedy="Save the agent with model.save(…); archives of archives may be one deep.",
            )
        base = policies[0].removesuffix(POLICY)
        data = read_saved_data(
            read_entry(archive, f"{base}data", limit_bytes=MAX_DATA_BYTES, compressed=True)
        )
        policy = read_entry(archive, policies[0], limit_bytes=MAX_FILE_BYTES, compressed=True)
    return data, read_state(policy, name=POLICY)


def _algorithm(kind: PolicyKind, data: SavedData, entry: AgentEntry) -> Algorithm:
    if kind is PolicyKind.ACTOR_CRITIC:
        # both have the same networks; PPO alone clips
        found = Algorithm.PPO if "clip_range" in data.keys else Algorithm.A2C
        fits = entry.algorithm in (Algorithm.PPO, Algorithm.A2C)
        if entry.algorithm is None and ("cg_max_steps" in data.keys or "gae_lambda" not in data.keys):
            raise UnsupportedCheckpoint(
                "The agent's algorithm isn't known.",
                expected="PPO or A2C, by the attributes in data",
                got="TRPO" if "cg_max_steps" in data.keys else "an actor and a critic without gae_lambda",
                remedy='If it acts as PPO\'s policy does, say so: "algorithm": "PPO" in manifest.json.',
            )
    else:
        found = Algorithm(kind.value)
        fits = entry.algorithm == found
    if entry.algorithm is None:
        return found
    if not fits:
        raise ConfigMismatch(
            "The manifest gives the agent another algorithm than its tensors are of.",
            expected=kind.value,
            got=entry.algorithm,
            remedy="Correct algorithm in manifest.json, or leave it out.",
        )
    return Algorithm(entry.algorithm)


def _check_policy_class(data: SavedData, entry: AgentEntry) -> None:
    module = data.policy_module
    if module is None or module.partition(".")[0] == _OWN_MODULES or entry.algorithm is not None:
        return
    raise UnsupportedCheckpoint(
        "The policy is of a class that isn't Stable-Baselines3's, and may compute something else.",
        expected="MlpPolicy",
        got=f"a class of the module {shown(module)}",
        remedy='If it acts as MlpPolicy does, say so by naming its "algorithm" in manifest.json.',
    )


def _check_observations(space: SavedSpace | None) -> None:
    if space is None:
        return
    if space.kind != "Box":
        what = "A multi-input policy" if space.kind in ("Dict", "Tuple") else "A policy on such observations"
        raise UnsupportedCheckpoint(
            f"{what} isn't served.",
            expected="a Box of observations",
            got=f"observations of {shown(space.kind)}",
            remedy="Train it on a Box, one-hot where needed.",
        )
    if space.dtype == "uint8" and space.shape is not None and len(space.shape) == 3:
        raise UnsupportedCheckpoint(
            "A policy on images isn't served.",
            expected="observations of features",
            got=f"uint8 {list(space.shape)}",
        )


def _activation(kind: PolicyKind, data: SavedData, entry: AgentEntry) -> str:
    if data.activation is not None:
        saved = ACTIVATIONS.get(data.activation)
        if saved is None:
            raise UnsupportedCheckpoint(
                "The policy's activation isn't one that is served.",
                expected=", ".join(ACTIVATIONS),
                got=shown(data.activation),
            )
    elif data.has_policy_kwargs:
        saved = _DEFAULT_ACTIVATION.get(kind, "relu")
    else:
        saved = None
    stated = entry.activation
    if stated is not None and stated not in ACTIVATIONS.values():
        raise InvalidConfig(
            "activation isn't one that is served.",
            expected=", ".join(ACTIVATIONS.values()),
            got=shown(stated),
        )
    if saved is not None and stated is not None and saved != stated:
        raise ConfigMismatch("activation isn't the policy's.", expected=saved, got=stated)
    if (chosen := saved or stated) is None:
        raise InvalidConfig(
            "The zip doesn't say in plain text which activation the policy has.",
            expected='"activation": "tanh" in manifest.json, or another of '
            + ", ".join(ACTIVATIONS.values()),
            got="no policy_kwargs",
        )
    return chosen


def _actions(networks: Networks, space: SavedSpace | None, entry: AgentEntry) -> Discrete | Box:
    outputs = networks.policy.outputs
    is_box = networks.kind in (PolicyKind.SAC, PolicyKind.TD3) or networks.log_std is not None
    kind = "box" if is_box else "discrete"
    if entry.action_space not in (None, kind):
        raise ConfigMismatch("action_space isn't the policy's.", expected=kind, got=str(entry.action_space))
    if space is not None and space.kind != ("Box" if is_box else "Discrete"):
        raise UnsupportedCheckpoint(
            f"A policy on the action space {shown(space.kind)} isn't served.",
            expected="Discrete, or Box for SAC, TD3, PPO and A2C",
            got=shown(space.kind),
        )
    if is_box:
        size = outputs // 2 if networks.kind is PolicyKind.SAC else outputs
        if size > MAX_COMPONENTS:
            raise UnsupportedCheckpoint(
                "The policy's actions are too long.",
                expected=f"at most {MAX_COMPONENTS} components",
                got=str(size),
            )
        low, high = (
            _bound(key, getattr(entry, key), None if space is None else getattr(space, key), size)
            for key in ("low", "high")
        )
        if not all(first < second for first, second in zip(low, high, strict=True)):
            raise InvalidConfig(
                "The bounds of the action space aren't in order.",
                expected="low < high",
                got=f"{low}, {high}"[:200],
            )
        return Box(low=low, high=high)
    if entry.low is not None or entry.high is not None:
        raise ConfigMismatch("low and high are for a Box.", expected="none", got="bounds of discrete actions")
    if space is not None and space.start != 0:
        raise UnsupportedCheckpoint(
            "Discrete actions that don't begin at 0 aren't served.",
            expected="start 0",
            got=f"start {space.start}",
        )
    if space is not None and space.count not in (None, outputs):
        raise ConfigMismatch(
            "The policy's head isn't of its action space.",
            expected=f"{space.count} actions",
            got=f"{outputs} outputs",
        )
    if not 2 <= outputs <= MAX_CLASSES:
        raise UnsupportedCheckpoint(
            "The policy's number of actions isn't served.", expected=f"2 to {MAX_CLASSES}", got=str(outputs)
        )
    return Discrete(count=outputs)


def _bound(
    key: str, stated: tuple[float, ...] | None, saved: tuple[float, ...] | None, size: int
) -> tuple[float, ...]:
    if saved is not None and stated is not None and not np.allclose(saved, stated, rtol=1e-6, atol=1e-7):
        raise ConfigMismatch(
            f"{key} isn't the action space's.", expected=str(list(saved))[:100], got=str(list(stated))[:100]
        )
    values = saved if stated is None else stated
    if values is None:
        raise InvalidConfig(
            f"The zip doesn't say in plain text what {key} of the action space is.",
            expected=f'"{key}" in manifest.json, with {size} numbers',
            got="neither",
        )
    singles = np.array(values, dtype=np.float64).astype(np.float32)
    if len(singles) != size or not np.isfinite(singles).all():
        raise ConfigMismatch(
            f"{key} isn't of the policy's actions.", expected=f"{size} finite numbers", got=str(values)[:100]
        )
    return tuple(float(str(single)) for single in singles)  # the shortest text that is the same in float32


def _check_sizes(networks: Networks, actions: Discrete | Box, space: SavedSpace | None) -> None:
    features = networks.policy.inputs
    if space is not None and space.shape is not None and math.prod(space.shape) != features:
        raise ConfigMismatch(
            "The policy isn't of its observation space.",
            expected=f"{math.prod(space.shape)} features, from the shape {list(space.shape)}",
            got=f"a first layer of {features}",
        )
    is_critic = networks.kind in (PolicyKind.SAC, PolicyKind.TD3)
    wanted = features + (actions.size if is_critic and isinstance(actions, Box) else 0)
    for network in networks.values:
        if network.inputs != wanted or network.outputs != 1:
            raise ConfigMismatch(
                "The value network isn't of the policy's observations and actions.",
                expected=f"{wanted} inputs and one output",
                got=f"{network.inputs} inputs and {network.outputs} outputs",
            )
    if (
        networks.log_std is not None
        and isinstance(actions, Box)
        and networks.log_std.shape != (actions.size,)
    ):
        raise ConfigMismatch(
            "log_std isn't of the policy's actions.",
            expected=f"{actions.size} values",
            got=str(list(networks.log_std.shape)),
        )


def _temperature(algorithm: Algorithm, entry: AgentEntry, default: float) -> float | None:
    if algorithm is Algorithm.DQN:
        return entry.temperature or default
    if entry.temperature is not None:
        raise InvalidConfig("temperature is for DQN.", got=f"a temperature for {algorithm}")
    return None


def _target_noise(algorithm: Algorithm, entry: AgentEntry, data: SavedData) -> float | None:
    if algorithm is not Algorithm.TD3:
        if entry.target_noise is not None:
            raise InvalidConfig("target_noise is for TD3.", got=f"a target_noise for {algorithm}")
        return None
    noise = entry.target_noise or data.target_noise or DEFAULT_TARGET_NOISE
    if not (math.isfinite(noise) and 1e-6 <= noise <= 1e6):
        raise InvalidConfig("target_noise is out of range.", expected="from 1e-6 to 1e6", got=str(noise))
    return noise
