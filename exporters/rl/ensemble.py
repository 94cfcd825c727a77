"""All agents of an ensemble, checked against each other, and what the card says of them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from exporters.errors import ConfigMismatch
from exporters.rl.agents import Agent, Box, Discrete, read_agent
from exporters.rl.bundle import Bundle
from exporters.rl.manifest import RequestConfig, read_manifest

DEFAULT_CLASS_NAMES = ("sell", "hold", "buy")
DEFAULT_THRESHOLDS = (-1 / 3, 1 / 3)
DEFAULT_Q_TEMPERATURE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """Agents that act as one.

    `thresholds` cut a Box's first component, on the scale where its bounds are -1 and 1, into the classes.
    """

    agents: tuple[Agent, ...]
    class_names: tuple[str, ...]
    thresholds: tuple[float, ...]
    q_temperature: float
    feature_names: tuple[str, ...] | None = None
    weights_policy: Mapping[str, Any] | None = None

    @property
    def observation_size(self) -> int:
        """Number of features of an observation."""
        return self.agents[0].observation_size

    @property
    def classes(self) -> int:
        """Number of discrete actions."""
        return len(self.class_names)

    @property
    def action_length(self) -> int:
        """Components of `agent_actions`: the longest agent's; a discrete action is one, its index."""
        return max(agent.actions.size if isinstance(agent.actions, Box) else 1 for agent in self.agents)

    def config(self) -> dict[str, Any]:
        """The card's `config`, as JSON values."""
        config: dict[str, Any] = {
            "observation_size": self.observation_size,
            "class_names": list(self.class_names),
            "action_thresholds": list(self.thresholds),
            "q_temperature": self.q_temperature,
            "agents": [_described(agent) for agent in self.agents],
        }
        config["agents_digest"] = self._digest(config)
        if self.feature_names is not None:
            config["feature_names"] = list(self.feature_names)
        if self.weights_policy is not None:
            config["weights_policy"] = dict(self.weights_policy)
        return config

    def _digest(self, config: Mapping[str, Any]) -> str:
        """Of all that decides the agents' probabilities: what was learned of them holds in any format."""
        facts = {
            "config": {key: value for key, value in config.items() if key != "class_names"},
            "zips": [agent.sha256 for agent in self.agents],
            "statistics": [
                None if agent.statistics is None else asdict(agent.statistics) for agent in self.agents
            ],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read_ensemble(bundle: Bundle, config: Mapping[str, Any] | None) -> Ensemble:
    """Reads all agents.

    Args:
        bundle: the ensemble's files.
        config: the request's configuration.

    Raises:
        ExportError: as `read_manifest` and `read_agent`; or agents that can't act as one.
    """
    manifest = read_manifest(bundle, config)
    temperature = manifest.q_temperature or DEFAULT_Q_TEMPERATURE
    agents = tuple(read_agent(bundle, entry, q_temperature=temperature) for entry in manifest.agents)
    _check_observations(agents, manifest)
    thresholds = _thresholds(agents, manifest)
    return Ensemble(
        agents=agents,
        class_names=_class_names(agents, manifest, thresholds),
        thresholds=thresholds,
        q_temperature=temperature,
        feature_names=manifest.feature_names,
        weights_policy=manifest.weights_policy,
    )


def _described(agent: Agent) -> dict[str, Any]:
    networks = agent.networks
    hidden: dict[str, Any] = {"policy": list(networks.policy.hidden)}
    if networks.values:
        hidden["value"] = list(networks.values[0].hidden)
    if len(networks.values) > 1:
        hidden["critics"] = len(networks.values)
    box = agent.actions if isinstance(agent.actions, Box) else None
    return {
        "name": agent.name,
        "algorithm": agent.algorithm.value,
        "action_space": "discrete" if box is None else "box",
        "action_size": agent.action_size,
        "low": None if box is None else list(box.low),
        "high": None if box is None else list(box.high),
        "hidden": hidden,
        "activation": networks.policy.activation,
        "normalization": agent.statistics is not None,
        "temperature": agent.temperature,
        "target_noise": agent.target_noise,
    }


def _check_observations(agents: tuple[Agent, ...], manifest: RequestConfig) -> None:
    sizes = {agent.name: agent.observation_size for agent in agents}
    wanted = manifest.observation_size or agents[0].observation_size
    if manifest.feature_names is not None and len(manifest.feature_names) != wanted:
        raise ConfigMismatch(
            "feature_names aren't as many as the observation's features.",
            expected=f"{wanted} names",
            got=f"{len(manifest.feature_names)} names",
        )
    if all(size == wanted for size in sizes.values()):
        return
    stated = "observation_size of the manifest" if manifest.observation_size else f"agent {agents[0].name}"
    raise ConfigMismatch(
        "The agents' observations differ in size.",
        expected=f"{wanted} features, as {stated}",
        got=", ".join(f"{name}: {size}" for name, size in sizes.items() if size != wanted)[:300],
        remedy="Ensemble agents that were trained on the same observations.",
    )


def _thresholds(agents: tuple[Agent, ...], manifest: RequestConfig) -> tuple[float, ...]:
    """Of Box actions; none where all agents are discrete and say another number of actions than the default."""
    if manifest.action_thresholds is not None:
        return manifest.action_thresholds
    counts = {agent.actions.count for agent in agents if isinstance(agent.actions, Discrete)}
    has_box = any(isinstance(agent.actions, Box) for agent in agents)
    return DEFAULT_THRESHOLDS if has_box or counts == {len(DEFAULT_CLASS_NAMES)} else ()


def _class_names(
    agents: tuple[Agent, ...], manifest: RequestConfig, thresholds: tuple[float, ...]
) -> tuple[str, ...]:
    """Named in the manifest, or numbered; all agents must have as many actions.

    Raises:
        ConfigMismatch: names who has how many.
    """
    counts = {
        agent.name: agent.actions.count if isinstance(agent.actions, Discrete) else len(thresholds) + 1
        for agent in agents
    }
    first = next(iter(counts.values()))
    names = manifest.class_names
    if names is None:
        default = first == len(DEFAULT_CLASS_NAMES)
        names = DEFAULT_CLASS_NAMES if default else tuple(f"action_{index}" for index in range(first))
    wanted = len(names)
    if thresholds and len(thresholds) + 1 != wanted:
        raise ConfigMismatch(
            "action_thresholds don't cut an action into as many classes as there are.",
            expected=f"{wanted - 1} thresholds for the classes {', '.join(names)}"[:300],
            got=f"{len(thresholds)} thresholds",
            remedy="Correct action_thresholds or class_names in manifest.json.",
        )
    if any(count != wanted for count in counts.values()):
        raise ConfigMismatch(
            "The agents differ in their number of actions.",
            expected=f"{wanted}: {', '.join(names)}"[:300],
            got=", ".join(f"{name}: {count}" for name, count in counts.items() if count != wanted)[:300],
            remedy="Ensemble agents with the same discrete actions; action_thresholds cut a Box into as many.",
        )
    return names
