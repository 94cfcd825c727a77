"""Writes the ensemble as one file: a zip of the agents' zips, with the manifest that the exporter reads.

The same agents give the same bytes: entries have a fixed time, and nothing of the machine or the hour is kept.
"""

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from exporters.demo.dataset import CLASS_NAMES
from exporters.demo_rl.agents import TrainedAgent
from exporters.demo_rl.environment import ACTION_THRESHOLDS, OBSERVATION_NAMES

_TIME = (1980, 1, 1, 0, 0, 0)
_OF_TRAINING = (
    "_last_obs",
    "_last_original_obs",
    "_last_episode_starts",
    "ep_info_buffer",
    "ep_success_buffer",
)
_ADDRESS = re.compile(rb" at 0x[0-9a-f]+")


def write_ensemble(path: Path, agents: Sequence[TrainedAgent], *, q_temperature: float) -> None:
    """Writes agents, statistics and manifest."""
    files: dict[str, bytes] = {}
    for agent in agents:
        files[f"{agent.plan.name}.zip"] = saved_agent(agent.model)
        if agent.normalization is not None:
            files[_statistics_name(agent)] = _json(normalization_values(agent.normalization))
    manifest = build_manifest(agents, q_temperature=q_temperature)
    path.write_bytes(_zip({"manifest.json": _json(manifest), **files}, zipfile.ZIP_DEFLATED))


def build_manifest(agents: Sequence[TrainedAgent], *, q_temperature: float) -> dict[str, Any]:
    """What the exporter is told of the ensemble, in the order of its weights."""
    return {
        "observation_size": len(OBSERVATION_NAMES),
        "class_names": list(CLASS_NAMES),
        "feature_names": list(OBSERVATION_NAMES),
        "action_thresholds": list(ACTION_THRESHOLDS),
        "agents": [_entry(agent, q_temperature) for agent in agents],
    }


def normalization_values(normalization: VecNormalize) -> dict[str, Any]:
    """The statistics of observations, as plain values."""
    statistics = cast("RunningMeanStd", normalization.obs_rms)  # a dict only of observations that are dicts
    return {
        "mean": statistics.mean.tolist(),
        "var": statistics.var.tolist(),
        "epsilon": normalization.epsilon,
        "clip_obs": normalization.clip_obs,
    }


def saved_agent(model: BaseAlgorithm) -> bytes:
    """The zip that Stable-Baselines3 saves and loads, without what only going on with the training would need.

    Clears that in the model too. Optimizers stay, empty, since `load` asks for them; memory addresses in texts are 0,
    and the description of the machine is left out.
    """
    for name in model.get_parameters():
        if name.endswith("optimizer"):
            attrgetter(name)(model).state.clear()
    for name in _OF_TRAINING:
        setattr(model, name, None)
    model.start_time = 0
    stream = io.BytesIO()
    model.save(stream)
    with zipfile.ZipFile(stream) as archive:
        entries = {name: archive.read(name) for name in archive.namelist() if name != "system_info.txt"}
    entries["data"] = _ADDRESS.sub(b" at 0x0", entries["data"])
    return _zip(entries, zipfile.ZIP_STORED)


def _entry(agent: TrainedAgent, q_temperature: float) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": agent.plan.name,
        "file": f"{agent.plan.name}.zip",
        "algorithm": agent.plan.algorithm.__name__,
        "activation": agent.plan.activation.__name__.lower(),
    }
    if agent.normalization is not None:
        entry["normalization"] = _statistics_name(agent)
    if isinstance(agent.model, DQN):
        entry["temperature"] = q_temperature
    return entry


def _statistics_name(agent: TrainedAgent) -> str:
    return f"{agent.plan.name}_vecnormalize.json"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _zip(files: Mapping[str, bytes], compression: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _TIME), data, compression)
    return stream.getvalue()
