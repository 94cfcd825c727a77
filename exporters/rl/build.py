"""An ensemble as a model for the writers and the verification."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporters.rl.agents import Agent
from exporters.rl.ensemble import Ensemble
from exporters.rl.graph import MergedEnsemble
from exporters.rl.reference import ReferenceEnsemble
from exporters.spec import ExportableModel, TensorSpec
from exporters.verification import OBSERVATIONS_GLOB, find_real_input

EXAMPLE_SEED = 20160502
_TIE = 2e-4
"""Two probabilities this close, relative to the larger, may change places by rounding."""


def build_model(ensemble: Ensemble) -> ExportableModel:
    """Builds the merged graph of an ensemble, and what it is to be compared with."""
    # an export runs beside serving; threads of torch would only wait for each other
    torch.set_num_threads(1)
    count = len(ensemble.agents)

    def example(batch: int, time: int | None) -> tuple[Tensor, Tensor]:
        del time
        generator = torch.Generator().manual_seed(EXAMPLE_SEED + batch)
        return _observations(ensemble, batch, generator), _weights(count, batch, generator)

    names = ", ".join(f"{agent.name} ({agent.algorithm.value})" for agent in ensemble.agents)
    return ExportableModel(
        module=MergedEnsemble(ensemble).eval(),
        inputs=(
            TensorSpec(name="x", shape=(ensemble.observation_size,)),
            TensorSpec(name="weights", shape=(count,)),
        ),
        outputs=(
            TensorSpec(name="action_probs", shape=(ensemble.classes,)),
            TensorSpec(name="value", shape=(1,)),
            TensorSpec(name="agent_action_probs", shape=(count, ensemble.classes)),
            TensorSpec(name="agent_values", shape=(count,)),
            TensorSpec(name="agent_actions", shape=(count, ensemble.action_length)),
        ),
        example=example,
        config=ensemble.config(),
        description=f"Ensemble of Stable-Baselines3 agents: {names}."[:1000],
        class_names=ensemble.class_names,
        feature_names=ensemble.feature_names,
        reference=ReferenceEnsemble(ensemble).eval(),
        undecided=undecided_actions,
    )


def find_observations(path: Path, model: ExportableModel) -> Tensor | None:
    """Finds real observations among an ensemble's files, or beside them: float32 [observations, features]."""
    for folder in (path, path.parent) if path.is_dir() else (path.parent,):
        found = find_real_input(folder, model, pattern=OBSERVATIONS_GLOB)
        if found is not None:
            return found
    return None


def undecided_actions(outputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[np.bool_]]:
    """Which actions are an index that rounding decides: those of agents whose two best probabilities are as good as
    equal. Real actions of such agents are left out with them; other rows compare those.
    """
    probs = np.sort(outputs["agent_action_probs"], axis=2)
    tied = probs[:, :, -1] - probs[:, :, -2] <= _TIE * probs[:, :, -1]
    return {"agent_actions": np.repeat(tied[:, :, None], outputs["agent_actions"].shape[2], axis=2)}


def _observations(ensemble: Ensemble, batch: int, generator: torch.Generator) -> Tensor:
    """Random ones; of each second row on the scale that one of the normalised agents was trained on."""
    x = torch.randn(batch, ensemble.observation_size, generator=generator)
    scaled = [agent for agent in ensemble.agents if agent.statistics is not None]
    for row in range(batch if scaled else 0):
        x[row] = _on_scale(x[row], scaled[row % len(scaled)]) if row % 2 == 0 else x[row]
    return x


def _on_scale(row: Tensor, agent: Agent) -> Tensor:
    assert agent.statistics is not None  # noqa: S101 - only such agents are asked
    mean = torch.tensor(agent.statistics.mean)
    return mean + row * torch.tensor(agent.statistics.var).sqrt() * 2


def _weights(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """Random weights that sum to 1; of each four rows one equal, one for a single agent, one with zeros."""
    raw = -torch.rand(batch, count, generator=generator).clamp(min=1e-6).log()
    for row in range(batch):
        if row % 4 == 1:
            raw[row] = 0.0
            raw[row, row // 4 % count] = 1.0
        elif row % 4 == 2:
            raw[row] = 1.0
        elif row % 4 == 3:
            raw[row, torch.arange(count) % 2 == 1] = 0.0
    return raw / raw.sum(dim=1, keepdim=True)
