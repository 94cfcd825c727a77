"""The merged graph against the plain reading of the same agents, for ensembles of any make; and what data says."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.save_util import data_to_json

from exporters.rl.agents import Agent, Algorithm, Box, Discrete
from exporters.rl.build import build_model, undecided_actions
from exporters.rl.ensemble import Ensemble
from exporters.rl.networks import ACTIVATIONS, Mlp, Networks, PolicyKind
from exporters.rl.normalization import ObservationStatistics
from exporters.rl.saved_data import read_saved_data
from exporters.spec import ModelFormat
from exporters.verification import verify
from exporters.writers.onnx import write_onnx
from exporters.writers.torchscript import write_torchscript
from tests.support.agents import box

FEATURES = 5
KINDS = {
    Algorithm.PPO: PolicyKind.ACTOR_CRITIC,
    Algorithm.A2C: PolicyKind.ACTOR_CRITIC,
    Algorithm.SAC: PolicyKind.SAC,
    Algorithm.TD3: PolicyKind.TD3,
    Algorithm.DQN: PolicyKind.DQN,
}


def mlp(sizes: list[int], activation: str, draw: np.random.Generator) -> Mlp:
    layers = [(draw.normal(size=(rows, columns)) / columns**0.5) for columns, rows in pairwise(sizes)]
    return Mlp(
        weights=tuple(layer.astype(np.float32) for layer in layers),
        biases=tuple(draw.normal(size=len(layer)).astype(np.float32) * 0.3 for layer in layers),
        activation=activation,
    )


def random_agent(
    name: str, algorithm: Algorithm, draw: np.random.Generator, *, classes: int = 3, **given: Any
) -> Agent:
    """An agent of random sizes, bounds and statistics; `given` fixes some."""
    activation = given.get("activation") or draw.choice(list(ACTIVATIONS.values()))
    hidden = [int(size) for size in draw.integers(1, 9, size=draw.integers(0, 3))]
    discrete = algorithm is Algorithm.DQN or (
        algorithm in (Algorithm.PPO, Algorithm.A2C) and draw.random() < 0.5
    )
    size = int(draw.integers(1, 4))
    low = draw.normal(size=size)
    actions = (
        Discrete(count=classes)
        if discrete
        else Box(low=tuple(low.tolist()), high=tuple((low + draw.uniform(0.5, 3, size)).tolist()))
    )
    outputs = classes if discrete else size * (2 if algorithm is Algorithm.SAC else 1)
    critics = {Algorithm.SAC: 2, Algorithm.TD3: int(draw.integers(1, 4)), Algorithm.DQN: 0}.get(algorithm, 1)
    inputs = FEATURES + (size if algorithm in (Algorithm.SAC, Algorithm.TD3) else 0)
    statistics = None
    if draw.random() < 0.5:
        statistics = ObservationStatistics(
            mean=tuple(draw.normal(size=FEATURES).tolist()),
            var=tuple(draw.uniform(0.1, 2, FEATURES).tolist()),
            clip_obs=float(draw.uniform(0.5, 3)),
        )
    is_gaussian = algorithm in (Algorithm.PPO, Algorithm.A2C) and not discrete
    return Agent(
        name=name,
        algorithm=algorithm,
        networks=Networks(
            kind=KINDS[algorithm],
            policy=mlp([FEATURES, *hidden, outputs], activation, draw),
            values=tuple(mlp([inputs, *hidden, 1], activation, draw) for _ in range(critics)),
            log_std=draw.normal(size=size).astype(np.float32) if is_gaussian else None,
        ),
        actions=actions,
        statistics=statistics,
        temperature=float(draw.uniform(0.2, 2)) if algorithm is Algorithm.DQN else None,
        target_noise=float(draw.uniform(0.1, 0.5)) if algorithm is Algorithm.TD3 else None,
    )


def ensemble_of(agents: list[Agent], thresholds: tuple[float, ...] = (-1 / 3, 1 / 3)) -> Ensemble:
    return Ensemble(
        agents=tuple(agents),
        class_names=tuple(f"c{index}" for index in range(len(thresholds) + 1)),
        thresholds=thresholds,
        q_temperature=1.0,
    )


@given(
    algorithms=st.lists(st.sampled_from(list(Algorithm)), min_size=1, max_size=6),
    cuts=st.integers(1, 4),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_merged_graph_computes_what_each_agent_does(algorithms, cuts, batch, seed):
    draw = np.random.default_rng(seed)
    thresholds = tuple(np.sort(draw.uniform(-0.9, 0.9, cuts)).tolist())
    agents = [
        random_agent(f"a{index}", algorithm, draw, classes=cuts + 1)
        for index, algorithm in enumerate(algorithms)
    ]
    model = build_model(ensemble_of(agents, thresholds))
    inputs = model.example(batch, None)
    with torch.no_grad():
        got, wanted = model.module(*inputs), model.reference(*inputs)

    names = [spec.name for spec in model.outputs]
    undecided = undecided_actions(dict(zip(names, [output.numpy() for output in wanted], strict=True)))
    for spec, ours, theirs in zip(model.outputs, got, wanted, strict=True):
        assert ours.shape == theirs.shape == (batch, *spec.shape)
        free = undecided.get(spec.name, np.zeros(ours.shape, bool))
        scale = 1e-5 * max(1.0, float(theirs.abs().max()))
        np.testing.assert_allclose(ours.numpy()[~free], theirs.numpy()[~free], rtol=1e-4, atol=scale)


@pytest.mark.parametrize(
    ("model_format", "writer"), [(ModelFormat.ONNX, write_onnx), (ModelFormat.TORCHSCRIPT, write_torchscript)]
)
def test_every_activation_survives_the_export(tmp_path, model_format, writer):
    draw = np.random.default_rng(3)
    agents = [
        random_agent(name, Algorithm.DQN, draw, activation=name) for name in ACTIVATIONS.values()
    ]  # fmt: skip
    model = build_model(ensemble_of(agents))
    writer(model, tmp_path / "model")

    assert verify(model, tmp_path / "model", model_format, max_batch_size=4).max_relative_error < 1e-5


def test_long_actions_and_many_agents_are_laid_out_alike():
    draw = np.random.default_rng(0)
    agents = [random_agent(f"a{index}", list(Algorithm)[index % 5], draw) for index in range(64)]
    sac = random_agent("long", Algorithm.SAC, draw)
    low, high = (-1.0,) * 40, (2.0,) * 40
    policy, values = mlp([FEATURES, 8, 80], "relu", draw), (mlp([FEATURES + 40, 8, 1], "relu", draw),)
    agents[7] = replace(
        sac, networks=replace(sac.networks, policy=policy, values=values), actions=Box(low=low, high=high)
    )
    model = build_model(ensemble_of(agents))
    inputs = model.example(3, None)
    with torch.no_grad():
        got, wanted = model.module(*inputs), model.reference(*inputs)

    assert got[4].shape == (3, 64, 40)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_example_weights_are_of_all_kinds():
    model = build_model(
        ensemble_of([random_agent(f"a{i}", Algorithm.DQN, np.random.default_rng(i)) for i in range(4)])
    )
    weights = model.example(33, None)[1]

    torch.testing.assert_close(weights.sum(dim=1), torch.ones(33))
    kinds = {tuple(sorted(set(row.tolist()))) for row in weights}
    assert (0.0, 1.0) in kinds
    assert (0.25,) in kinds
    assert any(0.0 in kind and len(kind) > 2 for kind in kinds)


def test_action_of_equal_probabilities_is_left_to_rounding():
    probs = np.array([[[0.4, 0.4, 0.2], [0.5, 0.3, 0.2]]])
    found = undecided_actions({"agent_action_probs": probs, "agent_actions": np.zeros((1, 2, 2))})

    assert found["agent_actions"].tolist() == [[[True, True], [False, False]]]


@given(
    bounds=st.lists(
        st.tuples(st.floats(-1e6, 1e6, width=32), st.floats(0.0078125, 1e6, width=32)),
        min_size=1,
        max_size=40,
    )
)
def test_bounds_of_a_box_are_read_from_the_text_beside_their_pickle(bounds):
    low = np.array([first for first, _ in bounds], np.float32)
    space = box(low, low + np.array([reach for _, reach in bounds], np.float32))
    saved = read_saved_data(data_to_json({"action_space": space}).encode()).action_space

    assert saved is not None
    assert (saved.kind, saved.shape, saved.dtype) == ("Box", (len(bounds),), "float32")
    np.testing.assert_allclose(saved.low, space.low, rtol=1e-7, atol=6e-9)
    np.testing.assert_allclose(saved.high, space.high, rtol=1e-7, atol=6e-9)


def test_bounds_that_the_text_leaves_out_are_not_guessed():
    space = box([-1.0] * 2000, [1.0] * 2000)  # numpy shortens it with dots
    saved = read_saved_data(data_to_json({"action_space": space}).encode()).action_space

    assert saved is not None
    assert saved.shape == (2000,)
    assert saved.low is None
