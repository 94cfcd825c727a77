"""Hybrid exports from file to published version: content, no-ops, conflicts, and failures that leave nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from exporters.card import read_card
from exporters.errors import (
    ConfigMismatch,
    CorruptCheckpoint,
    ExportError,
    FileTooLarge,
    InvalidConfig,
    UnsupportedCheckpoint,
    VerificationFailed,
    VersionConflict,
)
from exporters.hybrid.architecture import clean_state, infer_architecture
from exporters.hybrid.config import INFERRED_FROM
from exporters.pipeline import ExportResult, export
from exporters.protocol import ExportRequest, Stage, Status
from exporters.repository_check import check_version
from exporters.spec import Device, ModelFormat
from tests.support.checkpoints import SMALL, random_state, save_checkpoint

NORMALIZATION = {"mean": [0.5] * 12, "scale": [2.0] * 12}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return save_checkpoint(
        folder / "model.pth", random_state(), pickled_config=True, extra={"metrics": {"accuracy": 0.75}}
    )


@pytest.fixture(scope="module")
def published(checkpoint, tmp_path_factory) -> Path:
    """A repository with the checkpoint published as v1."""
    repository = tmp_path_factory.mktemp("published") / "repository"
    run(checkpoint, repository)
    return repository


@pytest.fixture
def repository(published, tmp_path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "repository"))


def run(path: Path, repository: Path, **changes: object) -> ExportResult:
    stages = changes.pop("stages", [])
    values = {
        "model_type": "cnn_lstm_hybrid", "version": "v1", "file_path": str(path), "repository": str(repository)
    }  # fmt: skip
    return export(ExportRequest(**(values | changes)), on_stage=stages.append)


def snapshot(repository: Path) -> dict[str, bytes]:
    if not repository.exists():
        return {}
    return {
        str(path.relative_to(repository)): path.read_bytes()
        for path in sorted(repository.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def test_export_publishes_a_version_that_passes_its_check(checkpoint, repository):
    folder = repository / "cnn_lstm_hybrid-v1"
    card = read_card(folder)

    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "1/model.onnx",
        "config.pbtxt",
        "model.json",
    ]
    assert check_version(folder).problems == ()
    assert card.metrics == {"accuracy": 0.75}
    assert SMALL.items() <= card.config.items()
    assert card.verification.max_relative_error < 1e-4
    assert card.verification.batch_sizes == (1, 2, 33, 64)
    assert card.verification.time_lengths == (1, 6, 12)
    assert card.source.size_bytes == checkpoint.stat().st_size
    assert card.size_bytes == (folder / "1" / "model.onnx").stat().st_size
    assert set(card.checksums) == {"config.pbtxt", "1/model.onnx"}


def test_export_tells_of_its_stages_in_order(checkpoint, tmp_path):
    stages: list[Stage] = []

    run(checkpoint, tmp_path / "repository", stages=stages)

    assert stages == list(Stage)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"overwrite": True},
        {"config": {}},
        {"config": {"sequence_length": 12, "mc_dropout_samples": 100}},
        {"format": ModelFormat.ONNX, "device": Device.AUTO, "max_batch_size": 64, "instance_count": 1},
    ],
)
def test_export_of_the_same_content_again_changes_nothing(checkpoint, repository, changes):
    before = snapshot(repository)
    stages: list[Stage] = []

    result = run(checkpoint, repository, stages=stages, **changes)

    assert result.status is Status.UNCHANGED
    assert result.card == read_card(repository / "cnn_lstm_hybrid-v1")
    assert snapshot(repository) == before
    assert stages == [Stage.READING]  # found out without building


def test_export_of_the_same_content_again_imports_no_torch(checkpoint, repository):
    code = (
        "import sys; from exporters.pipeline import export; from exporters.protocol import ExportRequest;"
        f"r = export(ExportRequest(model_type='cnn_lstm_hybrid', version='v1', file_path={str(checkpoint)!r},"
        f" repository={str(repository)!r})); print(r.status, 'torch' in sys.modules, 'onnx' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "unchanged False False\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"mc_dropout_samples": 7}},
        {"config": {"sequence_length": 11}},
        {"config": {"class_names": ["a", "b", "c"]}},
        {"format": ModelFormat.TORCHSCRIPT},
        {"device": Device.CPU},
        {"max_batch_size": 8},
        {"instance_count": 2},
        {"normalization": NORMALIZATION},
    ],
)
def test_export_of_other_content_conflicts_and_overwriting_replaces_it(checkpoint, repository, changes):
    before = snapshot(repository)

    with pytest.raises(VersionConflict) as raised:
        run(checkpoint, repository, **changes)
    assert "overwrit" in raised.value.remedy
    assert snapshot(repository) == before

    assert run(checkpoint, repository, overwrite=True, **changes).status is Status.PUBLISHED
    assert check_version(repository / "cnn_lstm_hybrid-v1").problems == ()
    assert run(checkpoint, repository, **changes).status is Status.UNCHANGED
    with pytest.raises(VersionConflict):
        run(checkpoint, repository)


def test_overwriting_keeps_how_the_version_is_served_but_not_what_was_measured(checkpoint, repository):
    path = repository / "cnn_lstm_hybrid-v1" / "model.json"
    document = json.loads(path.read_text())
    assert "serving" not in document
    kept = {"on_overload": "degrade", "fallback": "v0", "response_cache": {"ttl_s": 5.0}}
    path.write_text(json.dumps(document | {"serving": kept | {"tuning": {"rows_per_call": 8}}}))

    assert run(checkpoint, repository).status is Status.UNCHANGED
    assert "tuning" in json.loads(path.read_text())["serving"]
    assert run(checkpoint, repository, overwrite=True, max_batch_size=8).status is Status.PUBLISHED
    assert json.loads(path.read_text())["serving"] == kept


def test_export_of_another_file_under_a_used_version_conflicts(repository, tmp_path):
    other = save_checkpoint(tmp_path / "model.pth", random_state(seed=1))

    with pytest.raises(VersionConflict):
        run(other, repository)


@pytest.mark.parametrize("damage", ["artefact", "config", "missing"])
def test_export_of_the_same_content_over_a_damaged_version_repairs_it(checkpoint, repository, damage):
    folder = repository / "cnn_lstm_hybrid-v1"
    before = (folder / "1" / "model.onnx").read_bytes()
    if damage == "artefact":
        (folder / "1" / "model.onnx").write_bytes(before[:-1])
    elif damage == "config":
        (folder / "config.pbtxt").write_text("name: 'x'")
    else:
        (folder / "1" / "model.onnx").unlink()
    assert check_version(folder).problems

    assert run(checkpoint, repository).status is Status.PUBLISHED
    assert check_version(folder).problems == ()


def test_export_over_a_folder_without_a_card_needs_overwriting(checkpoint, repository):
    (repository / "cnn_lstm_hybrid-v1" / "model.json").write_text("{}")

    with pytest.raises(VersionConflict, match="without a readable model card"):
        run(checkpoint, repository)
    assert run(checkpoint, repository, overwrite=True).status is Status.PUBLISHED


@pytest.mark.parametrize("source", ["request", "beside", "checkpoint"])
def test_export_folds_the_normalisation_in_wherever_it_comes_from(tmp_path, source):
    state = random_state()
    plain = save_checkpoint(tmp_path / "plain.pth", state)
    recorded = {"normalization": NORMALIZATION} if source == "checkpoint" else {}
    path = save_checkpoint(tmp_path / "model.pth", state, config={**SMALL, **recorded})
    if source == "beside":
        (tmp_path / "model.normalization.json").write_text(json.dumps(NORMALIZATION))
    repository = tmp_path / "repository"
    run(plain, repository, version="plain")

    card = run(path, repository, normalization=NORMALIZATION if source == "request" else None).card

    assert card.normalization.mean == tuple(NORMALIZATION["mean"])
    x = np.random.default_rng(0).standard_normal((3, 12, 12)).astype(np.float32)
    np.testing.assert_allclose(
        predict(repository, "v1", x), predict(repository, "plain", (x - 0.5) / 2), rtol=1e-4
    )


def predict(repository: Path, version: str, x: np.ndarray) -> np.ndarray:
    artefact = repository / f"cnn_lstm_hybrid-{version}" / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(str(artefact), providers=["CPUExecutionProvider"])
    return session.run(["classification_probs"], {"x": x})[0]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_export_of_torchscript_and_onnx_agree(checkpoint, repository):
    run(checkpoint, repository, version="ts", format=ModelFormat.TORCHSCRIPT)
    folder = repository / "cnn_lstm_hybrid-ts"
    x = torch.randn(4, 12, 9)

    with torch.inference_mode():
        outputs = torch.jit.load(str(folder / "1" / "model.pt"))(x)

    assert [tensor.triton_name for tensor in read_card(folder).outputs][:2] == [
        "classification_probs__0",
        "regression_pred__1",
    ]
    np.testing.assert_allclose(outputs[0].numpy(), predict(repository, "v1", x.numpy()), rtol=1e-4)
    assert check_version(folder).problems == ()


def test_export_of_a_bare_state_dict_needs_a_configuration(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(random_state(), path)

    with pytest.raises(InvalidConfig, match="no configuration"):
        run(path, tmp_path / "repository")
    assert run(path, tmp_path / "repository", config=dict(SMALL)).status is Status.PUBLISHED


def _diverged(tmp_path: Path) -> Path:
    state = random_state()
    state["regression_head.layers.0.bias"][1] = float("nan")
    return save_checkpoint(tmp_path / "model.pth", state)


def _linear(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    torch.save({"model_state_dict": torch.nn.Linear(2, 2).state_dict(), "config": {}}, path)
    return path


FAILURES = {
    "nan": (_diverged, {}, UnsupportedCheckpoint),
    "another_model": (_linear, {}, UnsupportedCheckpoint),
    "missing": (lambda tmp_path: tmp_path / "model.pth", {}, CorruptCheckpoint),
    "unknown_key": (None, {"config": {"colour": "red"}}, InvalidConfig),
    "wrong_type": (None, {"config": {"sequence_length": "long"}}, InvalidConfig),
    "other_shape": (None, {"config": {"input_dim": 13}}, ConfigMismatch),
    "normalization_length": (None, {"normalization": {"mean": [0.0], "scale": [1.0]}}, ConfigMismatch),
    "normalization_scale": (
        None,
        {"normalization": {"mean": [0.0] * 12, "scale": [0.0] * 12}},
        InvalidConfig,
    ),
    "other_type": (None, {"model_type": "volatility"}, UnsupportedCheckpoint),
    "agents": (None, {"model_type": "rl_ensemble"}, UnsupportedCheckpoint),
}


@pytest.mark.parametrize("case", FAILURES)
def test_export_that_fails_leaves_the_repository_as_it_was(checkpoint, repository, tmp_path, case):
    make, changes, error = FAILURES[case]
    before = snapshot(repository)

    with pytest.raises(error) as raised:
        run(checkpoint if make is None else make(tmp_path), repository, version="v2", **changes)

    assert raised.value.detail
    assert snapshot(repository) == before


def test_export_whose_real_windows_do_not_verify_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("exporters.verification.TOLERANCE", -1.0)

    with pytest.raises(VerificationFailed):
        run(checkpoint, tmp_path / "repository")

    assert snapshot(tmp_path / "repository") == {}


def test_export_of_a_file_beyond_the_limit_is_refused(checkpoint, tmp_path):
    request = ExportRequest(
        model_type="cnn_lstm_hybrid", version="v1", file_path=str(checkpoint), repository=str(tmp_path / "r")
    )

    with pytest.raises(FileTooLarge):
        export(request, max_bytes=1000)


def test_tensor_defined_keys_are_those_that_the_builder_reads_off_the_tensors():
    assert infer_architecture(clean_state(random_state())).fields.keys() == INFERRED_FROM.keys()


def test_every_export_error_has_a_code_and_an_exit_code_of_its_own():
    classes = [ExportError, *ExportError.__subclasses__()]

    assert len({cls.code for cls in classes}) == len(classes) - 1  # the root stands for export_failed
    assert all(cls.exit_code >= 10 for cls in classes)
