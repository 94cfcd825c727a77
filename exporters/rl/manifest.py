"""What people say of an ensemble: `manifest.json` beside the agents, and the load request's configuration on top.

Both have the same keys. The request's win, agent by agent, so that one set of zips can be exported in several ways.
Whether it fits the agents is `exporters.rl.agents`' and `exporters.rl.ensemble`'s to say.
"""

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import msgspec

from exporters.errors import InvalidConfig, UnsupportedCheckpoint, shown
from exporters.rl.bundle import MANIFEST, MAX_TOTAL_BYTES, Bundle, open_bundle
from exporters.rl.weights_policy import check_weights_policy

MAX_AGENTS = 64
MAX_MANIFEST_BYTES = 4 << 20
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"
ALGORITHMS = ("PPO", "A2C", "SAC", "TD3", "DQN")
MAX_CLASSES = 256
"""Discrete actions, or classes that thresholds cut a Box into."""
_Model = TypeVar("_Model", bound=msgspec.Struct)


class AgentEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One agent. None: as its zip says, or the default.

    `normalization`: a file of VecNormalize's statistics, or the statistics themselves. `low`, `high`: the Box's
    bounds, where the zip has them only as pickled text.
    """

    name: str
    file: str | None = None
    algorithm: str | None = None
    normalization: str | dict[str, Any] | None = None
    temperature: float | None = None
    target_noise: float | None = None
    activation: str | None = None
    action_space: str | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ensemble. None: as the agents say, or the default."""

    agents: tuple[AgentEntry, ...] = ()
    observation_size: int | None = None
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    action_thresholds: tuple[float, ...] | None = None
    q_temperature: float | None = None


class RequestConfig(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request's `config`: the manifest's keys, and how the ensemble's weights are to be found.

    `weights_policy` is the control plane's: it goes into the card as it is, once it is checked.
    """

    weights_policy: dict[str, Any] | None = None


def read_manifest(bundle: Bundle, config: Mapping[str, Any] | None) -> RequestConfig:
    """Reads the manifest, or lists the zips in alphabetical order where there is none; then the request's changes.

    Returns:
        Every agent with a name and a file, in the order of the ensemble's weights.

    Raises:
        InvalidConfig: not a manifest, an unknown key, a value out of range, a name twice or of no agent.
        UnsupportedCheckpoint: no agents, or too many.
        CorruptCheckpoint: a file that the manifest names is missing.
    """
    stated = _from_file(bundle) if MANIFEST in bundle.names else _from_names(bundle)
    changes = _decode(dict(config or {}), RequestConfig, "config")
    _check_agents(stated.agents, bundle, where=MANIFEST)
    merged = RequestConfig(
        **{
            field: _first(getattr(changes, field), getattr(stated, field))
            for field in Manifest.__struct_fields__
            if field != "agents"
        },
        agents=_merge_agents(stated.agents, changes.agents),
        weights_policy=changes.weights_policy,
    )
    _check_values(merged)
    if merged.weights_policy is not None:
        check_weights_policy(merged.weights_policy, [agent.name for agent in merged.agents])
    return merged


def source_sha256(path: Path) -> str:
    """The checksum that the card of an ensemble from `path` has of its source, without reading the agents.

    Raises:
        ExportError: its files can't be read.
    """
    with open_bundle(path, max_bytes=MAX_TOTAL_BYTES) as bundle:
        for agent in read_manifest(bundle, None).agents:
            for name in (agent.file, agent.normalization):
                if isinstance(name, str):
                    bundle.read(name)
        return bundle.sha256


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _from_file(bundle: Bundle) -> Manifest:
    data = bundle.read(MANIFEST, limit_bytes=MAX_MANIFEST_BYTES)
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidConfig(f"{MANIFEST} can't be read as JSON.", got=str(error)[:200]) from error
    return _decode(value, Manifest, MANIFEST)


def _from_names(bundle: Bundle) -> Manifest:
    files = [name for name in bundle.names if name.endswith(".zip") and "/" not in name]
    if len(bundle.names) == 1 and not files:  # one agent, whatever its file is called
        files = list(bundle.names)
    return Manifest(agents=tuple(AgentEntry(name=PurePosixPath(name).stem, file=name) for name in files))


def _decode(value: Any, model: type[_Model], where: str) -> _Model:
    try:
        return msgspec.convert(value, model)
    except msgspec.ValidationError as error:
        keys = ", ".join(model.__struct_fields__)
        raise InvalidConfig(
            f"{where} isn't that of an ensemble of agents.",
            expected=f"{keys}; agents with {', '.join(AgentEntry.__struct_fields__)}",
            got=str(error)[:300],
            remedy=f"Correct {where}; docs/exporters.md has an example.",
        ) from error


def _check_agents(agents: tuple[AgentEntry, ...], bundle: Bundle, *, where: str) -> None:
    if not agents:
        raise UnsupportedCheckpoint(
            f"{bundle.file_name} holds no agents.",
            expected=f"zips that Stable-Baselines3 saved, or a {MANIFEST} that names them",
            got=", ".join(map(shown, bundle.names[:8])) or "nothing",
            remedy="Save each agent with model.save(…) into one folder.",
        )
    if len(agents) > MAX_AGENTS:
        raise UnsupportedCheckpoint(
            "The ensemble has too many agents.",
            expected=f"at most {MAX_AGENTS}",
            got=str(len(agents)),
            remedy=f"Name the best in {MANIFEST}.",
        )
    for agent in agents:
        if re.fullmatch(NAME_PATTERN, agent.name) is None:
            raise InvalidConfig(
                f"{shown(agent.name)} can't be an agent's name.",
                expected=NAME_PATTERN,
                got=shown(agent.name),
                remedy=f"Rename the file, or give a name in {MANIFEST}.",
            )
        if agent.file is None:
            raise InvalidConfig(f"{where} gives agent {agent.name} no file.", expected='"file": "agent.zip"')
    _check_unique([agent.name for agent in agents], where)


def _check_unique(names: list[str], where: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidConfig(
            f"{where} has two agents of one name.",
            expected="a name of its own for each agent",
            got=", ".join(twice[:8]),
            remedy="Rename one of them.",
        )


def _merge_agents(stated: tuple[AgentEntry, ...], changes: tuple[AgentEntry, ...]) -> tuple[AgentEntry, ...]:
    _check_unique([agent.name for agent in changes], "config.agents")
    by_name = {agent.name: agent for agent in changes}
    unknown = sorted(by_name.keys() - {agent.name for agent in stated})
    if unknown:
        raise InvalidConfig(
            "config.agents names an agent that isn't in the ensemble.",
            expected=", ".join(agent.name for agent in stated),
            got=", ".join(map(shown, unknown)),
            remedy="Correct the name.",
        )
    moved = sorted(agent.name for agent in changes if agent.file is not None)
    if moved:
        raise InvalidConfig(
            "config.agents can't change the file of an agent.",
            got=", ".join(moved),
            remedy=f"Name files in {MANIFEST}.",
        )
    return tuple(
        AgentEntry(
            **{
                field: _first(getattr(by_name.get(agent.name, agent), field), getattr(agent, field))
                for field in AgentEntry.__struct_fields__
            }
        )
        for agent in stated
    )


def _check_values(manifest: Manifest) -> None:
    thresholds = manifest.action_thresholds
    numbers = [("q_temperature", manifest.q_temperature)]
    for agent in manifest.agents:
        numbers += [(f"{agent.name}'s temperature", agent.temperature)]
        numbers += [(f"{agent.name}'s target_noise", agent.target_noise)]
        if agent.algorithm is not None and agent.algorithm not in ALGORITHMS:
            raise InvalidConfig(
                f"Agent {agent.name} has an unknown algorithm.",
                expected=", ".join(ALGORITHMS),
                got=shown(agent.algorithm),
            )
        if agent.action_space not in (None, "discrete", "box"):
            raise InvalidConfig(
                f"Agent {agent.name} has an unknown action_space.",
                expected="discrete or box",
                got=shown(str(agent.action_space)),
            )
    for what, number in numbers:
        if number is not None and not (math.isfinite(number) and 1e-6 <= number <= 1e6):
            raise InvalidConfig(f"{what} is out of range.", expected="from 1e-6 to 1e6", got=str(number))
    if manifest.observation_size is not None and manifest.observation_size < 1:
        raise InvalidConfig("observation_size is out of range.", got=str(manifest.observation_size))
    if thresholds is not None and not (
        1 <= len(thresholds) < MAX_CLASSES
        and all(-1 < threshold < 1 for threshold in thresholds)
        and all(first < second for first, second in pairwise(thresholds))
    ):
        raise InvalidConfig(
            "action_thresholds can't cut an action into classes.",
            expected=f"1 to {MAX_CLASSES - 1} rising numbers between -1 and 1, on the scale of the bounds",
            got=str(list(thresholds))[:100],
        )
    for key, names in (("class_names", manifest.class_names), ("feature_names", manifest.feature_names)):
        if names is not None and (not names or len(set(names)) != len(names) or not all(names)):
            raise InvalidConfig(f"{key} aren't names, each once.", got=str(list(names))[:200])
