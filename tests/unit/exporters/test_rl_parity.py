"""Exported ensembles against Stable-Baselines3 itself: what its agents do and think on 500 real observations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from exporters.card import Card
from exporters.errors import UnsupportedCheckpoint
from exporters.pipeline import export
from exporters.protocol import ExportRequest
from exporters.runtimes import open_artefact
from exporters.spec import ModelFormat
from tests.support.agents import Still, box, expected, make_agent, real_observations

RELATIVE = 1e-4
FORMATS = tuple(ModelFormat)

AGENTS = {
    "ppo": ("PPO", {"net_arch": [64, 64]}),
    "ppo_box": (
        "PPO",
        {"actions": box([-2.0, 0.25], [1.0, 3.0]), "net_arch": [32], "activation_fn": nn.ELU, "log_std_init": -0.5},
    ),
    "a2c": (
        "A2C",
        {"net_arch": {"pi": [24], "vf": [40, 16]}, "activation_fn": nn.GELU, "share_features_extractor": False},
    ),
    "a2c_box": ("A2C", {"actions": box([-1.0], [1.0]), "net_arch": []}),
    "sac": ("SAC", {"actions": box([-5.0], [7.0]), "net_arch": [32, 32]}),
    "sac_wide": (
        "SAC",
        {"actions": box([-1, -2, 0], [1, 2, 0.1]), "net_arch": {"pi": [16], "qf": [24, 24]}, "n_critics": 3},
    ),
    "td3": ("TD3", {"actions": box([-1, -1], [1, 1]), "net_arch": [48, 24], "activation_fn": nn.SiLU}),
    "td3_noisy": (
        "TD3",
        {"actions": box([-10], [-1]), "net_arch": [16], "options": {"target_policy_noise": 0.35}, "n_critics": 1},
    ),
    "dqn": ("DQN", {"net_arch": [64, 32, 16], "activation_fn": nn.LeakyReLU}),
    "dqn_cool": ("DQN", {"net_arch": [20]}),
}  # fmt: skip
"""Every algorithm and kind of action; sizes, activations, bounds and critics that differ."""
NORMALIZED = {"ppo": 10.0, "sac": 2.0, "td3": 10.0, "td3_noisy": 10.0, "dqn_cool": 1.5}
"""Those with VecNormalize's statistics, and where they clip."""


def statistics(name: str, clip: float, rows: np.ndarray) -> VecNormalize:
    """VecNormalize as training would leave it, on the first rows."""
    environment = DummyVecEnv(
        [lambda: Still(spaces.Box(-np.inf, np.inf, rows.shape[1:], np.float32), spaces.Discrete(3))]
    )
    normalization = VecNormalize(environment, training=False, clip_obs=clip, epsilon=1e-6)
    normalization.obs_rms.update(rows[: 300 + len(name)].astype(np.float64))
    return normalization


class Exported:
    """A published ensemble, and the agents that it was made of."""

    def __init__(self, folder: Path, *, observations: np.ndarray) -> None:
        self.folder = folder
        self.observations = observations
        self.models: dict[str, Any] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.normalizations: dict[str, VecNormalize] = {}
        folder.mkdir()

    def add(self, name: str, algorithm: str, *, clip: float | None = None, **options: Any) -> None:
        model = make_agent(algorithm, shape=self.observations.shape[1:], seed=len(self.models), **options)
        model.save(self.folder / name)
        self.models[name] = model
        self.entries[name] = {"name": name, "file": f"{name}.zip"}
        if clip is not None:
            self.normalizations[name] = found = statistics(name, clip, self.observations)
            values = {"mean": found.obs_rms.mean, "var": found.obs_rms.var, "clip_obs": clip, "epsilon": 1e-6}
            self.entries[name]["normalization"] = self._write(name, values)

    def _write(self, name: str, values: dict[str, Any]) -> str:
        if len(self.normalizations) % 2:
            path = self.folder / f"{name}.json"
            path.write_text(json.dumps(values, default=np.ndarray.tolist))
        else:
            path = self.folder / f"{name}.npz"
            np.savez_compressed(path, **values)
        return path.name

    def publish(
        self, repository: Path, model_format: ModelFormat, names: list[str], version: str = "v1"
    ) -> Card:
        manifest = {
            "observation_size": int(np.prod(self.observations.shape[1:])),
            "agents": [self.entries[name] for name in names],
        }
        (self.folder / "manifest.json").write_text(json.dumps(manifest))
        request = ExportRequest(
            model_type="rl_ensemble", version=version, file_path=str(self.folder), repository=str(repository),
            format=model_format,
        )  # fmt: skip
        return export(request).card

    def expected(self, name: str) -> dict[str, np.ndarray]:
        seen = self.observations
        if name in self.normalizations:
            seen = self.normalizations[name].normalize_obs(seen).astype(np.float32)
        return expected(self.models[name], seen, temperature=self.entries[name].get("temperature", 1.0))


def run(repository: Path, card: Card, x: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    opened = open_artefact(repository / card.triton_model / card.artefact, card.format)
    flat = np.ascontiguousarray(x.reshape(len(x), -1))
    return dict(zip([spec.name for spec in card.outputs], opened.run([flat, weights]), strict=True))


def random_weights(rows: int, agents: int) -> np.ndarray:
    weights = np.random.default_rng(0).dirichlet(np.ones(agents), rows).astype(np.float32)
    weights[0] = np.eye(agents)[-1]
    weights[1, ::2] = 0.0
    return weights


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(got, wanted, rtol=RELATIVE, atol=3e-6 * max(1.0, float(np.abs(wanted).max())))


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory) -> Exported:
    made = Exported(tmp_path_factory.mktemp("agents") / "agents", observations=real_observations())
    for name, (algorithm, options) in AGENTS.items():
        made.add(name, algorithm, clip=NORMALIZED.get(name), **options)
    made.entries["dqn_cool"]["temperature"] = 0.25
    return made


@pytest.fixture(scope="module", params=FORMATS)
def served(request, ensemble, tmp_path_factory):
    """All agents in one graph: the card, the weights and the outputs on all observations."""
    repository = tmp_path_factory.mktemp("repository") / "repository"
    card = ensemble.publish(repository, request.param, list(AGENTS))
    weights = random_weights(len(ensemble.observations), len(AGENTS))
    return card, weights, run(repository, card, ensemble.observations, weights)


@pytest.mark.parametrize("name", AGENTS)
def test_each_agent_acts_and_thinks_as_in_stable_baselines3(served, ensemble, name):
    card, _, outputs = served
    wanted = ensemble.expected(name)
    place = list(AGENTS).index(name)
    length = wanted["agent_actions"].shape[1]

    assert card.config["agents"][place]["name"] == name
    assert_same(outputs["agent_action_probs"][:, place], wanted["agent_action_probs"])
    assert_same(outputs["agent_values"][:, place], wanted["agent_values"])
    assert_same(outputs["agent_actions"][:, place, :length], wanted["agent_actions"])
    assert not outputs["agent_actions"][:, place, length:].any()


def test_agents_are_varied_enough_to_tell_mistakes(ensemble):
    """Else the comparison would pass with constants."""
    for name in AGENTS:
        wanted = ensemble.expected(name)
        assert wanted["agent_action_probs"].std(axis=0).max() > 1e-3, name
        assert wanted["agent_values"].std() > 1e-3, name
        assert wanted["agent_actions"].std() > 1e-3, name


def test_mixture_weighs_the_agents_as_each_row_says(served):
    _, weights, outputs = served

    assert_same(outputs["action_probs"], np.einsum("ba,bak->bk", weights, outputs["agent_action_probs"]))
    assert_same(outputs["value"][:, 0], (weights * outputs["agent_values"]).sum(axis=1))
    np.testing.assert_allclose(outputs["agent_action_probs"].sum(axis=2), 1.0, atol=2e-6)
    assert (outputs["agent_action_probs"] >= 0).all()


def test_card_describes_every_agent(served):
    card, _, _ = served
    agents = {agent["name"]: agent for agent in card.config["agents"]}

    assert card.config["observation_size"] == 12
    assert card.config["class_names"] == ["sell", "hold", "buy"]
    assert card.verification.max_relative_error < RELATIVE
    assert agents["ppo_box"] == {
        "name": "ppo_box", "algorithm": "PPO", "action_space": "box", "action_size": 2, "low": [-2.0, 0.25],
        "high": [1.0, 3.0], "hidden": {"policy": [32], "value": [32]}, "activation": "elu", "normalization": False,
        "temperature": None, "target_noise": None,
    }  # fmt: skip
    assert agents["sac_wide"]["hidden"] == {"policy": [16], "value": [24, 24], "critics": 3}
    assert agents["sac_wide"]["high"] == [1.0, 2.0, 0.1]
    assert agents["td3_noisy"]["target_noise"] == 0.35
    assert [agents[name]["temperature"] for name in ("dqn", "dqn_cool", "ppo")] == [1.0, 0.25, None]
    assert {name for name, agent in agents.items() if agent["normalization"]} == set(NORMALIZED)


@pytest.mark.parametrize("model_format", FORMATS)
@pytest.mark.parametrize("names", [["sac"], ["dqn", "td3"], ["a2c_box", "ppo"]], ids="-".join)
def test_subset_acts_as_in_stable_baselines3(ensemble, tmp_path, names, model_format):
    card = ensemble.publish(tmp_path / "repository", model_format, names)
    weights = random_weights(len(ensemble.observations), len(names))
    outputs = run(tmp_path / "repository", card, ensemble.observations, weights)

    for place, name in enumerate(names):
        for output, wanted in ensemble.expected(name).items():
            got = outputs[output][:, place]
            assert_same(got[:, : wanted.shape[1]] if wanted.ndim > 1 else got, wanted)


def test_observations_of_two_dimensions_are_flattened(tmp_path):
    """Windows of the last three bars, with VecNormalize's statistics of that shape."""
    bars = real_observations()
    windows = np.stack([bars[:-2], bars[1:-1], bars[2:]], axis=1)
    made = Exported(tmp_path / "agents", observations=windows)
    made.add("ppo", "PPO", clip=3.0, net_arch=[16])
    made.add("sac", "SAC", actions=box([-1], [1]), clip=10.0, net_arch=[16])

    card = made.publish(tmp_path / "repository", ModelFormat.ONNX, ["ppo", "sac"])
    outputs = run(tmp_path / "repository", card, windows, random_weights(len(windows), 2))

    assert card.inputs[0].shape == (36,)
    for place, name in enumerate(("ppo", "sac")):
        wanted = made.expected(name)
        assert_same(outputs["agent_action_probs"][:, place], wanted["agent_action_probs"])
        assert_same(outputs["agent_actions"][:, place], wanted["agent_actions"])


def test_normalisation_far_from_zero_keeps_its_digits(tmp_path):
    """A price near 1.1 that varies by a thousandth: float32 alone would lose a tenth of that."""
    prices = (1.1 + 1e-3 * real_observations()[:, :4] / real_observations()[:, :4].std(axis=0)).astype(
        np.float32
    )
    made = Exported(tmp_path / "agents", observations=prices)
    made.add("ppo", "PPO", clip=10.0, net_arch=[16])

    card = made.publish(tmp_path / "repository", ModelFormat.ONNX, ["ppo"])
    outputs = run(tmp_path / "repository", card, prices, np.ones((len(prices), 1), np.float32))

    assert_same(outputs["agent_action_probs"][:, 0], made.expected("ppo")["agent_action_probs"])
    assert_same(outputs["agent_values"][:, 0], made.expected("ppo")["agent_values"])


@pytest.mark.parametrize(
    ("algorithm", "options", "said"),
    [
        ("PPO", {"actions": box([-1], [1]), "options": {"use_sde": True}}, "gSDE"),
        ("SAC", {"actions": box([-1], [1]), "options": {"use_sde": True}}, "gSDE"),
        ("PPO", {"actions": spaces.MultiDiscrete([2, 3])}, "MultiDiscrete"),
        ("A2C", {"actions": spaces.MultiBinary(3)}, "MultiBinary"),
        (
            "PPO",
            {
                "policy": "MultiInputPolicy",
                "observations": spaces.Dict({"a": box([-1], [1]), "b": box([-1], [1])}),
            },
            "multi-input",
        ),
        (
            "DQN",
            {"policy": "CnnPolicy", "observations": spaces.Box(0, 255, (3, 36, 36), np.uint8)},
            "CNN",
        ),
        ("DQN", {"observations": spaces.Discrete(7)}, "Discrete"),
    ],
)
def test_policies_that_are_not_served_are_refused_by_name(tmp_path, algorithm, options, said):
    make_agent(algorithm, **options).save(tmp_path / "agent")
    request = ExportRequest(
        model_type="rl_ensemble",
        version="v1",
        file_path=str(tmp_path / "agent.zip"),
        repository=str(tmp_path / "r"),
    )

    with pytest.raises(UnsupportedCheckpoint, match="Agent agent: ") as raised:
        export(request)

    assert said in f"{raised.value.detail} {raised.value.got}"
    assert not (tmp_path / "r").exists()


def test_trained_agent_is_exported_as_it_is(tmp_path):
    """Training leaves more in the zip than making one does."""
    made = Exported(tmp_path / "agents", observations=real_observations())
    made.add("a2c", "A2C", net_arch=[16])
    made.models["a2c"].learn(20)
    made.models["a2c"].save(made.folder / "a2c")

    card = made.publish(tmp_path / "repository", ModelFormat.ONNX, ["a2c"])
    outputs = run(
        tmp_path / "repository", card, made.observations, np.ones((len(made.observations), 1), np.float32)
    )

    assert_same(outputs["agent_values"][:, 0], made.expected("a2c")["agent_values"])
    assert torch.is_grad_enabled()
