"""What an exported ensemble tells of its weights: the policy, checked, and the digest that learning hangs on."""

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from control_plane.ensembles.policies import PolicySettings, check
from exporters.card import Card
from exporters.errors import InvalidConfig
from exporters.pipeline import export
from exporters.protocol import ExportRequest
from exporters.rl.bundle import open_bundle
from exporters.rl.ensemble import read_ensemble
from exporters.rl.weights_policy import check_weights_policy
from exporters.spec import ModelFormat
from tests.support.agents import agent_bytes, pack, plain_data, plain_state, write_folder

AGENTS = ("alpha", "beta")
EVEN = {"alpha": 0.5, "beta": 0.5}
POLICIES: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"policy": "thompson", "floor": 0.5}, True),
    ({"policy": "softmax", "temperature": 1e-6, "reward": "binary"}, True),
    ({"policy": "fixed", "weights": EVEN}, True),
    ({"policy": "fixed"}, True),
    ({"half_life_hours": 1e-3}, True),
    ({"half_life_hours": None, "weights": None}, True),
    ({"half_life_hours": 9e-4}, False),
    ({"half_life_hours": 2e6}, False),
    ({"half_life_hours": math.nan}, False),
    ({"half_life_hours": "1"}, False),
    ({"temperature": 1e-7}, False),
    ({"temperature": math.inf}, False),
    ({"floor": 0.51}, False),
    ({"floor": -0.1}, False),
    ({"policy": "greedy"}, False),
    ({"reward": "any"}, False),
    ({"anything": 1}, False),
    ({"weights": EVEN}, False),
    ({"policy": "fixed", "weights": EVEN, "floor": 0.1}, False),
    ({"policy": "fixed", "weights": {"alpha": 1.0}}, False),
    ({"policy": "fixed", "weights": EVEN | {"gamma": 0.0}}, False),
    ({"policy": "fixed", "weights": {"alpha": 0.5, "beta": 0.4}}, False),
    ({"policy": "fixed", "weights": {"alpha": 1.5, "beta": -0.5}}, False),
    ({"policy": "fixed", "weights": {"alpha": math.nan, "beta": 0.5}}, False),
]


@pytest.mark.parametrize(("policy", "is_right"), POLICIES)
def test_policy_is_refused_before_publication_where_the_control_plane_would_refuse_it(
    policy: dict[str, Any], is_right: bool
) -> None:
    def exporter() -> None:
        check_weights_policy(policy, AGENTS)

    def control_plane() -> None:
        check(msgspec.convert(policy, PolicySettings), AGENTS)

    for judge in (exporter, control_plane):
        if is_right:
            judge()
        else:
            with pytest.raises((InvalidConfig, ValueError, msgspec.ValidationError)):
                judge()


def test_policy_that_the_agents_cannot_have_is_not_published(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "agents", dict.fromkeys(AGENTS, agent_bytes()))
    with pytest.raises(InvalidConfig, match="weights of weights_policy"):
        publish(folder, tmp_path, weights_policy={"policy": "fixed", "weights": {"ppo": 1.0}})
    assert not (tmp_path / "repository").exists()


def publish(folder: Path, tmp_path: Path, **config: Any) -> Card:
    request = ExportRequest(
        model_type="rl_ensemble",
        version="v1",
        file_path=str(folder),
        repository=str(tmp_path / "repository"),
        config=config,
        format=ModelFormat.TORCHSCRIPT,
        overwrite=True,
    )
    return export(request).card


def digest(path: Path, **config: Any) -> str:
    with open_bundle(path, max_bytes=1 << 20) as bundle:
        return str(read_ensemble(bundle, config).config()["agents_digest"])


def test_digest_of_the_agents_is_that_of_what_decides_their_probabilities(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "agents", dict.fromkeys(AGENTS, agent_bytes()))
    first = digest(folder)
    assert digest(folder, weights_policy={"policy": "fixed"}) == first
    assert digest(folder, class_names=["short", "flat", "long"]) == first
    assert digest(pack(folder, tmp_path / "agents.zip")) == first
    assert publish(folder, tmp_path).config["agents_digest"] == first  # whatever the format

    statistics = {"mean": [0.0] * 4, "var": [1.0] * 4}
    others = {
        digest(folder, action_thresholds=[-0.5, 0.5]),
        digest(folder, agents=[{"name": "alpha", "algorithm": "A2C"}]),
        digest(folder, agents=[{"name": "beta", "normalization": statistics}]),
        digest(folder, agents=[{"name": "beta", "normalization": statistics | {"mean": [1.0] * 4}}]),
    }
    (folder / "alpha.zip").write_bytes(agent_bytes(plain_state(), plain_data(seed=1)))
    assert len(others | {first, digest(folder)}) == 6
