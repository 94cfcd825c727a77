"""Ensembles from file to published version: where files may come from, what is said of them, what is refused."""

import base64
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporters.card import Card, read_card
from exporters.committed import find_committed
from exporters.errors import (
    ConfigMismatch,
    CorruptCheckpoint,
    ExportError,
    FileTooLarge,
    InvalidConfig,
    UnsafeCheckpoint,
    UnsupportedCheckpoint,
    VersionConflict,
)
from exporters.pipeline import export
from exporters.protocol import ExportRequest, Stage, Status
from exporters.repository_check import check_version
from exporters.spec import ModelFormat
from tests.support.agents import agent_bytes, pack, plain_data, plain_state, write_folder


def take(path: Path, repository: Path, **changes: Any) -> tuple[Status, Card]:
    values = {
        "model_type": "rl_ensemble",
        "version": "v1",
        "file_path": str(path),
        "repository": str(repository),
    }
    result = export(ExportRequest(**(values | changes)))
    return result.status, result.card


def nothing_in(repository: Path) -> bool:
    return not repository.exists() or not [path for path in repository.rglob("*") if path.suffix != ".lock"]


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_folder(tmp_path / "agents", {"beta": agent_bytes(), "alpha": agent_bytes()})


@pytest.fixture
def repository(tmp_path) -> Path:
    return tmp_path / "repository"


def test_folder_without_a_manifest_takes_its_zips_in_alphabetical_order(folder, repository):
    (folder / "notes.txt").write_text("not an agent")
    status, card = take(folder, repository)

    assert status is Status.PUBLISHED
    assert [agent["name"] for agent in card.config["agents"]] == ["alpha", "beta"]
    assert check_version(repository / "rl_ensemble-v1").problems == ()
    assert {tensor.name: tensor.shape for tensor in card.inputs} == {"x": (4,), "weights": (2,)}
    assert {tensor.name: tensor.shape for tensor in card.outputs} == {
        "action_probs": (3,),
        "value": (1,),
        "agent_action_probs": (2, 3),
        "agent_values": (2,),
        "agent_actions": (2, 1),
    }
    assert card.class_names == ("sell", "hold", "buy")
    assert "weights_policy" not in card.config


def test_same_agents_are_taken_from_folder_archive_and_single_zip(folder, repository, tmp_path):
    archive = pack(folder, tmp_path / "agents.zip")
    nested = pack(folder, tmp_path / "nested.zip", prefix="agents/")
    shutil.copy(folder / "alpha.zip", tmp_path / "alpha")  # content decides, not the name

    configs = [
        take(path, repository, version=f"v{index}")[1].config
        for index, path in enumerate((folder, archive, nested))
    ]
    single = take(tmp_path / "alpha", repository, version="single")[1]

    assert configs[0] == configs[1] == configs[2]
    assert [agent["name"] for agent in single.config["agents"]] == ["alpha"]


def test_manifest_names_and_orders_the_agents(repository, tmp_path):
    manifest = {
        "observation_size": 4,
        "class_names": ["short", "flat", "long"],
        "feature_names": ["a", "b", "c", "d"],
        "agents": [
            {"name": "one", "file": "beta.zip", "algorithm": "A2C"},
            {"name": "two", "file": "alpha.zip"},
        ],
    }
    folder = write_folder(tmp_path / "agents", {"alpha": agent_bytes(), "beta": agent_bytes()}, manifest)
    _, card = take(folder, repository)

    assert [(agent["name"], agent["algorithm"]) for agent in card.config["agents"]] == [
        ("one", "A2C"),
        ("two", "PPO"),
    ]
    assert card.class_names == ("short", "flat", "long")
    assert card.feature_names == ("a", "b", "c", "d")


def test_request_configuration_wins_over_the_manifest(folder, repository):
    config = {
        "agents": [{"name": "beta", "algorithm": "A2C"}],
        "class_names": ["a", "b", "c"],
        "weights_policy": {"policy": "softmax", "temperature": 0.1},
    }
    _, card = take(folder, repository, config=config)

    assert [agent["algorithm"] for agent in card.config["agents"]] == ["PPO", "A2C"]
    assert card.class_names == ("a", "b", "c")
    assert card.config["weights_policy"] == {"policy": "softmax", "temperature": 0.1}


def test_more_actions_than_three_get_numbers_for_names(repository, tmp_path):
    content = agent_bytes(plain_state(outputs=5), plain_data(action_space=None))
    _, card = take(write_folder(tmp_path / "agents", {"a": content}), repository)

    assert card.class_names == ("action_0", "action_1", "action_2", "action_3", "action_4")
    assert card.config["action_thresholds"] == []


def test_same_content_again_is_a_no_op_and_other_content_a_conflict(folder, repository):
    _, first = take(folder, repository)
    (folder / "notes.txt").write_text("isn't part of the ensemble")
    stages: list[Stage] = []
    request = ExportRequest(
        model_type="rl_ensemble", version="v1", file_path=str(folder), repository=str(repository)
    )

    again = export(request, on_stage=stages.append)
    assert (again.status, again.card, stages) == (Status.UNCHANGED, first, [Stage.READING])

    os.utime(folder / "alpha.zip", (0, 0))
    assert take(folder, repository)[0] is Status.UNCHANGED
    (folder / "alpha.zip").write_bytes(agent_bytes(plain_state() | {"value_net.bias": torch.ones(1)}))
    with pytest.raises(VersionConflict):
        take(folder, repository)
    assert read_card(repository / "rl_ensemble-v1") == first
    assert take(folder, repository, overwrite=True)[0] is Status.PUBLISHED


def test_missing_versions_are_found_in_archives_and_folders(folder, repository, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    pack(folder, checkpoints / "rl_ensemble-v1.0.zip")
    shutil.copytree(folder, checkpoints / "rl_ensemble-v1.1")
    pack(folder, checkpoints / "unrelated-v1.0.zip")
    (checkpoints / "cnn_lstm_hybrid-v1.0").mkdir()

    found = find_committed(checkpoints, repository)
    assert [(entry.triton_model, entry.published) for entry in found] == [
        ("rl_ensemble-v1.0", False),
        ("rl_ensemble-v1.1", False),
    ]
    for entry in found:
        take(entry.path, repository, version=entry.version)
    assert all(entry.published for entry in find_committed(checkpoints, repository))
    (checkpoints / "rl_ensemble-v1.1" / "alpha.zip").write_bytes(
        agent_bytes(plain_state(), plain_data(seed=1))
    )
    assert [entry.published for entry in find_committed(checkpoints, repository)] == [True, False]


@pytest.mark.parametrize("model_format", ModelFormat)
def test_ready_made_ensemble_is_published_as_it_is(folder, repository, model_format):
    _, card = take(folder, repository, format=model_format)
    artefact = repository / "rl_ensemble-v1" / card.artefact
    config: dict[str, Any] = {"agents": [{"name": "one"}, {"name": "two"}]}
    if model_format is ModelFormat.TORCHSCRIPT:
        for key, tensors in (("inputs", card.inputs), ("outputs", card.outputs)):
            config[key] = [{"name": tensor.name, "shape": list(tensor.shape)} for tensor in tensors]
    _, taken = take(artefact, repository, version="v2", config=config)

    assert (taken.inputs, taken.outputs) == (card.inputs, card.outputs)
    assert taken.config["agents"] == config["agents"]
    assert (repository / "rl_ensemble-v2" / taken.artefact).read_bytes() == artefact.read_bytes()
    for agents in ([{"name": "one"}], [{"name": "one"}, {"name": "one"}], [1, 2], 3):
        with pytest.raises(InvalidConfig, match="agents"):
            take(artefact, repository, version="v3", config=config | {"agents": agents})


def test_real_observations_among_the_agents_are_verified_with(folder, repository, monkeypatch):
    seen: list[Any] = []
    monkeypatch.setattr(
        "exporters.graph_export.verify", lambda *_, **kwargs: seen.append(kwargs["real_input"]) or _VERIFIED
    )
    np.savez(folder / "some_observations.npz", x=np.ones((300, 4), np.float32))
    take(folder, repository)
    np.savez(folder / "some_observations.npz", x=np.ones((300, 5), np.float32))
    take(folder, repository, version="v2")

    assert seen[0].shape == (256, 4)
    assert seen[1] is None


class _Verified:
    max_relative_error = 0.0
    batch_sizes = (1,)
    time_lengths = ()


_VERIFIED = _Verified()


class _Mark:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self._path}",))


def test_pickles_in_data_run_nothing(repository, tmp_path):
    """As Stable-Baselines3 writes them, but hostile; its own loading would run each."""
    mark = tmp_path / "ran"
    hostile = {":type:": "<class 'x'>", ":serialized:": base64.b64encode(pickle.dumps(_Mark(mark))).decode()}
    data = plain_data(lr_schedule=hostile, replay_buffer=hostile, clip_range=hostile)
    for key in ("policy_class", "policy_kwargs", "observation_space", "action_space"):
        data[key] = hostile | (data[key] if isinstance(data[key], dict) else {})
    _, card = take(write_folder(tmp_path / "agents", {"a": agent_bytes(data=data)}), repository)

    assert card.config["agents"][0]["algorithm"] == "PPO"
    assert not mark.exists()


def test_pickles_in_policy_are_refused_by_name_and_run_nothing(repository, tmp_path):
    mark = tmp_path / "ran"
    stream = io.BytesIO()
    torch.save(plain_state() | {"hook": _Mark(mark)}, stream)
    with pytest.raises(UnsafeCheckpoint, match=r"Agent a: .*(posix|os)\.system"):
        take(write_folder(tmp_path / "agents", {"a": agent_bytes(stream.getvalue())}), repository)

    assert not mark.exists()
    assert nothing_in(repository)


def test_archive_in_an_archive_in_an_archive_is_refused(folder, repository, tmp_path):
    inner = pack(folder, tmp_path / "inner.zip")
    outer = write_folder(tmp_path / "outer", {"inner": inner.read_bytes()})

    with pytest.raises(UnsupportedCheckpoint, match="Agent inner"):
        take(pack(outer, tmp_path / "outer.zip"), repository)


def test_archives_that_unfold_are_refused_before_they_do(repository, tmp_path):
    """300 MB of zeros in a few kilobytes, as an agent of an archive, and as an agent's policy."""
    zeros = io.BytesIO()
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("policy.pth", "w", force_zip64=True) as entry:
            for _ in range(300):
                entry.write(bytes(1 << 20))
        archive.writestr("data", json.dumps(plain_data()))
    bomb = zeros.getvalue()
    with pytest.raises((CorruptCheckpoint, FileTooLarge)):
        take(write_folder(tmp_path / "policy", {"a": bomb}), repository)

    with zipfile.ZipFile(tmp_path / "outer.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.zip", agent_bytes())
        with archive.open("b.zip", "w", force_zip64=True) as entry:
            for _ in range(300):
                entry.write(bytes(1 << 20))
    with pytest.raises((CorruptCheckpoint, FileTooLarge)):
        take(tmp_path / "outer.zip", repository)
    assert nothing_in(repository)


def test_files_beyond_the_limit_are_refused(folder, repository, tmp_path):
    request = ExportRequest(
        model_type="rl_ensemble", version="v1", file_path=str(folder), repository=str(repository)
    )
    with pytest.raises(FileTooLarge):
        export(request, max_bytes=6000)  # each is smaller, both aren't
    assert nothing_in(repository)


def test_link_out_of_the_folder_is_refused(repository, tmp_path):
    (tmp_path / "secret.zip").write_bytes(agent_bytes())
    folder = write_folder(tmp_path / "agents", {"a": agent_bytes()})
    (folder / "b.zip").symlink_to(tmp_path / "secret.zip")

    with pytest.raises(InvalidConfig, match="leads out"):
        take(folder, repository)


def state(**changes: Any) -> dict[str, Any]:
    return {name: tensor for name, tensor in (plain_state() | changes).items() if tensor is not None}


def agent(*, tensors: dict[str, Any] | None = None, **data: Any) -> dict[str, bytes]:
    return {"a": agent_bytes(state(**(tensors or {})), plain_data(**data))}


def space(kind: str, **facts: Any) -> dict[str, Any]:
    return {":type:": f"<class 'gymnasium.spaces.{kind.lower()}.{kind}'>", **facts}


TWO = {"a": agent_bytes(), "b": agent_bytes()}
BOX = {"log_std": torch.zeros(3)}
A, B = {"name": "a", "file": "a.zip"}, {"name": "b", "file": "b.zip"}

REFUSED: dict[str, tuple[dict[str, bytes], Any, type[ExportError], str]] = {
    "no agents": ({}, {"agents": []}, UnsupportedCheckpoint, "no agents"),
    "too many": ({}, {"agents": [{"name": f"a{i}", "file": "a"} for i in range(65)]}, UnsupportedCheckpoint, "many"),
    "missing file": (TWO, {"agents": [A, {"name": "c", "file": "c.zip"}]}, CorruptCheckpoint, "Agent c"),
    "no file": (TWO, {"agents": [{"name": "a"}]}, InvalidConfig, "no file"),
    "outside": (TWO, {"agents": [{"name": "a", "file": "../a.zip"}]}, InvalidConfig, "leads out"),
    "absolute": (TWO, {"agents": [{"name": "a", "file": "/etc/passwd"}]}, InvalidConfig, "leads out"),
    "name twice": (TWO, {"agents": [A, A]}, InvalidConfig, "two agents of one name"),
    "bad name": (TWO, {"agents": [{"name": "a b", "file": "a.zip"}]}, InvalidConfig, "name"),
    "unknown key": (TWO, {"agents": [A], "colour": 1}, InvalidConfig, "colour"),
    "unknown key of an agent": (TWO, {"agents": [A | {"speed": 1}]}, InvalidConfig, "speed"),
    "unknown algorithm": (TWO, {"agents": [A | {"algorithm": "DDQN"}]}, InvalidConfig, "DDQN"),
    "other algorithm": (TWO, {"agents": [A | {"algorithm": "SAC"}]}, ConfigMismatch, "algorithm"),
    "not JSON": (TWO, b"{", InvalidConfig, "JSON"),
    "deep JSON": (TWO, b"[" * 100_000, InvalidConfig, "JSON"),
    "observation size": (TWO, {"observation_size": 7, "agents": [A]}, ConfigMismatch, "7 features"),
    "two observation sizes": (
        {"a": agent_bytes(), "b": agent_bytes(plain_state(inputs=5), plain_data(observation_space=None))},
        None, ConfigMismatch, "b: 5",
    ),
    "two numbers of actions": (
        {"a": agent_bytes(), "b": agent_bytes(plain_state(outputs=4), plain_data(action_space=None))},
        None, ConfigMismatch, "b: 4",
    ),
    "class names": (TWO, {"class_names": ["up", "down"], "agents": [A]}, ConfigMismatch, "thresholds"),
    "thresholds": (TWO, {"action_thresholds": [0.1], "agents": [A]}, ConfigMismatch, "2 thresholds"),
    "thresholds fall": (TWO, {"action_thresholds": [0.3, -0.3], "agents": [A]}, InvalidConfig, "rising"),
    "thresholds at the bounds": (TWO, {"action_thresholds": [-1.0, 1.0], "agents": [A]}, InvalidConfig, "between"),
    "temperature of another": (TWO, {"agents": [A | {"temperature": 2.0}]}, InvalidConfig, "DQN"),
    "target noise of another": (TWO, {"agents": [A | {"target_noise": 2.0}]}, InvalidConfig, "TD3"),
    "temperature": (TWO, {"q_temperature": 0.0, "agents": [A]}, InvalidConfig, "q_temperature"),
    "feature names": (TWO, {"feature_names": ["x"], "agents": [A]}, ConfigMismatch, "4 names"),
    "activation": (TWO, {"agents": [A | {"activation": "relu"}]}, ConfigMismatch, "tanh"),
    "no such activation": (TWO, {"agents": [A | {"activation": "sin"}]}, InvalidConfig, "sin"),
    "missing statistics": (TWO, {"agents": [A | {"normalization": "n.json"}]}, CorruptCheckpoint, "n.json"),
    "statistics of another size": (
        TWO, {"agents": [A | {"normalization": {"mean": [0.0], "var": [1.0]}}]}, ConfigMismatch, "4 means",
    ),
    "negative variance": (
        TWO, {"agents": [A | {"normalization": {"mean": [0] * 4, "var": [-1] * 4}}]}, InvalidConfig, "out of range",
    ),
    "statistics with unknown keys": (
        TWO, {"agents": [A | {"normalization": {"mean": [0], "scale": [1]}}]}, InvalidConfig, "scale",
    ),
    "gSDE": (agent(use_sde=True), None, UnsupportedCheckpoint, "gSDE"),
    "gSDE in tensors": (
        agent(tensors={"log_std": torch.zeros(8, 3)}, action_space=None), None, UnsupportedCheckpoint, "gSDE",
    ),
    "CNN": (
        agent(tensors={"features_extractor.cnn.0.weight": torch.zeros(1, 1, 1, 1)}), None, UnsupportedCheckpoint, "CNN",
    ),
    "recurrent": (
        agent(tensors={"lstm_actor.weight_ih_l0": torch.zeros(4, 4)}), None, UnsupportedCheckpoint, "recurrent",
    ),
    "multi-input": (agent(observation_space=space("Dict")), None, UnsupportedCheckpoint, "multi-input"),
    "extractor": (
        agent(policy_kwargs={"features_extractor_class": "<class 'mine.Wavelets'>"}), None, UnsupportedCheckpoint,
        "Wavelets",
    ),
    "policy class": (
        agent(policy_class={":type:": "<class 'type'>", "__module__": "mine"}), None, UnsupportedCheckpoint, "mine",
    ),
    "MultiDiscrete": (agent(action_space=space("MultiDiscrete")), None, UnsupportedCheckpoint, "MultiDiscrete"),
    "MultiBinary": (agent(action_space=space("MultiBinary")), None, UnsupportedCheckpoint, "MultiBinary"),
    "start": (agent(action_space=space("Discrete", n="3", start="1")), None, UnsupportedCheckpoint, "start 1"),
    "discrete observations": (agent(observation_space=space("Discrete", n="4")), None, UnsupportedCheckpoint, "Box"),
    "images": (
        agent(observation_space=space("Box", dtype="uint8", _shape=[2, 2, 1])), None, UnsupportedCheckpoint, "images",
    ),
    "bounds not said": (
        agent(tensors=BOX, action_space=None), None, InvalidConfig, '"low" in manifest.json, with 3 numbers',
    ),
    "activation not said": (agent(policy_kwargs=None), None, InvalidConfig, "activation"),
    "unknown activation": (
        agent(policy_kwargs={"activation_fn": "functools.partial(x)"}), None, UnsupportedCheckpoint, "partial",
    ),
    "TRPO": (agent(cg_max_steps=15), None, UnsupportedCheckpoint, "TRPO"),
    "NaN": (agent(tensors={"value_net.bias": torch.tensor([np.nan])}), None, UnsupportedCheckpoint, "value_net.bias"),
    "beyond float32": (
        agent(tensors={"value_net.bias": torch.tensor([1e300], dtype=torch.float64)}), None, UnsupportedCheckpoint,
        "float32",
    ),
    "one action": (
        agent(tensors={"action_net.weight": torch.zeros(1, 8), "action_net.bias": torch.zeros(1)}, action_space=None),
        None, UnsupportedCheckpoint, "2 to 256",
    ),
    "long actions": (
        agent(
            tensors={
                "action_net.weight": torch.zeros(300, 8), "action_net.bias": torch.zeros(300),
                "log_std": torch.zeros(300),
            },
            action_space=None,
        ), None, UnsupportedCheckpoint, "256 components",
    ),
    "integers": (
        agent(tensors={"value_net.bias": torch.tensor([1])}), None, UnsupportedCheckpoint, "floating point",
    ),
    "tensor missing": (agent(tensors={"value_net.bias": None}), None, UnsupportedCheckpoint, "value_net.bias"),
    "tensor left over": (agent(tensors={"extra": torch.zeros(1)}), None, UnsupportedCheckpoint, "extra"),
    "layers don't fit": (
        agent(tensors={"action_net.weight": torch.zeros(3, 9)}), None, ConfigMismatch, "9",
    ),
    "no known policy": ({"a": agent_bytes({"w": torch.zeros(1)})}, None, UnsupportedCheckpoint, "tensors"),
    "data isn't JSON": ({"a": agent_bytes(data=b"\x80\x04.")}, None, CorruptCheckpoint, "JSON"),
    "data is deep": ({"a": agent_bytes(data=b"[" * 200_000)}, None, CorruptCheckpoint, "JSON"),
    "data isn't an object": ({"a": agent_bytes(data=b"[]")}, None, CorruptCheckpoint, "object"),
    "policy isn't torch's": ({"a": agent_bytes(b"hello")}, None, CorruptCheckpoint, "policy.pth"),
    "agent isn't a zip": ({"a": b"hello"}, None, UnsupportedCheckpoint, "zip"),
    "agent is cut off": ({"a": agent_bytes()[:-40]}, None, CorruptCheckpoint, "Agent a"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_an_ensemble_is_refused_and_nothing_is_published(case, repository, tmp_path):
    agents, manifest, error, part = REFUSED[case]
    folder = write_folder(tmp_path / "agents", agents, None if isinstance(manifest, bytes) else manifest)
    if isinstance(manifest, bytes):
        (folder / "manifest.json").write_bytes(manifest)

    with pytest.raises(error) as raised:
        take(folder, repository)

    said = raised.value
    assert part in " ".join(filter(None, (said.detail, said.expected, said.got, said.remedy)))
    assert type(said) is error
    assert nothing_in(repository)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"config": {"agents": [{"name": "gamma"}]}}, InvalidConfig),
        ({"config": {"agents": [{"name": "alpha", "file": "beta.zip"}]}}, InvalidConfig),
        ({"config": {"unknown": 1}}, InvalidConfig),
        ({"config": {"weights_policy": "thompson"}}, InvalidConfig),
        ({"normalization": {"mean": [0.0], "scale": [1.0]}}, InvalidConfig),
        ({"model_type": "cnn_lstm_hybrid"}, UnsupportedCheckpoint),
        ({"model_type": "mine"}, UnsupportedCheckpoint),
    ],
)
def test_request_that_does_not_fit_agents_is_refused(folder, repository, changes, error):
    with pytest.raises(error):
        take(folder, repository, **changes)

    assert nothing_in(repository)


def test_folder_without_agents_is_refused(repository, tmp_path):
    with pytest.raises(UnsupportedCheckpoint, match="no Stable-Baselines3 agents") as raised:
        take(write_folder(tmp_path / "agents", {}), repository)

    assert raised.value.got == "a folder without them"


def test_damaged_archive_is_called_damaged(folder, repository, tmp_path):
    archive = pack(folder, tmp_path / "agents.zip")
    archive.write_bytes(archive.read_bytes()[:-40])

    with pytest.raises(CorruptCheckpoint):
        take(archive, repository)


def test_file_that_only_the_manifest_has_is_named_with_the_manifest(repository, tmp_path):
    manifest = {"agents": [{"name": "a", "file": "a.zip"}, {"name": "b", "file": "b.zip"}]}
    folder = write_folder(tmp_path / "agents", {"a": agent_bytes()}, manifest)
    for path in (folder, pack(folder, tmp_path / "agents.zip")):
        with pytest.raises(CorruptCheckpoint, match=r"has no 'b\.zip'") as raised:
            take(path, repository)
        assert "manifest.json" in (raised.value.remedy or "")


def test_pickle_of_statistics_is_refused_with_the_way_out(repository, tmp_path):
    manifest = {"agents": [A | {"normalization": "vecnormalize.pkl"}]}
    folder = write_folder(tmp_path / "agents", {"a": agent_bytes()}, manifest)
    (folder / "vecnormalize.pkl").write_bytes(pickle.dumps(_Mark(tmp_path / "ran")))

    with pytest.raises(InvalidConfig, match="pickle") as raised:
        take(folder, repository)

    assert "obs_rms" in (raised.value.remedy or "")
    assert not (tmp_path / "ran").exists()
