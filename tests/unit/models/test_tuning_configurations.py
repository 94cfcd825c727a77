"""Instance counts and threads: read, varied, compared; and a version's copy with them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from control_plane.errors import InvalidInput
from control_plane.models.card import ServingOptions, Tuning, change_configuration, read_card
from control_plane.models.tuning.choice import CallSize, Point
from control_plane.models.tuning.configurations import (
    Configuration,
    Trial,
    best_trial,
    configuration_of,
    configurations_to_try,
    read_config,
    with_configuration,
    write_config,
)
from control_plane.models.tuning.measurement import Curve
from control_plane.models.tuning.search import copy_version
from tests.support.repository import write_identity_like_model

GPU = model_config_pb2.ModelInstanceGroup.KIND_GPU
ONE = Configuration(instance_count=1, intra_op_threads=1)


def config(backend: str = "onnxruntime", **group: int) -> model_config_pb2.ModelConfig:
    made = model_config_pb2.ModelConfig(name="tiny-v1", backend=backend, max_batch_size=8)
    made.instance_group.add(**group)
    made.dynamic_batching.SetInParent()
    return made


def trial(rows_per_s: float, instances: int, threads: int = 1) -> Trial:
    chosen = Point(
        size=CallSize(rows=8, calls_in_flight=2),
        p50_ms=1,
        p95_ms=1,
        rows_per_s=rows_per_s,
        rows_per_s_error=0,
        calls=1,
    )
    return Trial(
        configuration=Configuration(instance_count=instances, intra_op_threads=threads),
        curve=Curve(objective_p95_ms=50, points=(chosen,), chosen=chosen if rows_per_s else None),
    )


@pytest.mark.parametrize(
    ("backend", "key"), [("onnxruntime", "intra_op_thread_count"), ("pytorch", "INTRA_OP_THREAD_COUNT")]
)
def test_configuration_changes_only_its_own_fields(backend: str, key: str) -> None:
    before = config(backend, count=1)
    wanted = Configuration(instance_count=3, intra_op_threads=2)
    after = with_configuration(before, wanted, name="tuning.tiny-v1.00")
    assert configuration_of(after) == wanted
    assert after.parameters[key].string_value == "2"
    assert read_config(write_config(after)) == after
    back = with_configuration(after, ONE, name="tiny-v1")
    del back.parameters[key]
    assert back == before
    assert configuration_of(before) == ONE


def test_configuration_on_a_gpu_and_of_another_backend_has_no_threads() -> None:
    for made in (config(count=2, kind=GPU), config("python", count=2)):
        present = configuration_of(made)
        assert present == Configuration(instance_count=2, intra_op_threads=None)
        changed = with_configuration(made, Configuration(instance_count=4, intra_op_threads=None), name="x")
        assert not changed.parameters
        assert changed.instance_group[0].count == 4


def test_configuration_without_instance_group_counts_as_one() -> None:
    made = config(count=1)
    del made.instance_group[:]
    assert configuration_of(made) == ONE
    assert with_configuration(made, ONE, name="x").instance_group[0].count == 1


def test_configuration_with_several_instance_groups_or_no_configuration_is_refused() -> None:
    made = config(count=1)
    made.instance_group.add(count=2)
    with pytest.raises(InvalidInput, match="2 instance groups"):
        configuration_of(made)
    with pytest.raises(InvalidInput, match=r"config\.pbtxt"):
        read_config(b"name: tiny\xff")


@given(cores=st.integers(1, 64), instances=st.integers(1, 70), threads=st.integers(1, 70))
def test_configurations_to_try_begin_with_the_present_and_fit_the_cores(
    cores: int, instances: int, threads: int
) -> None:
    present = Configuration(instance_count=instances, intra_op_threads=threads)
    found = configurations_to_try(present, cores=cores, worker_threads=1)
    assert found[0] == present
    assert len(set(found)) == len(found)
    assert ONE in found
    for one in found[1:]:
        assert one.intra_op_threads is not None
        assert one.instance_count * one.intra_op_threads <= cores


def test_configurations_to_try_on_two_cores_and_on_a_gpu() -> None:
    pairs = [
        (one.instance_count, one.intra_op_threads)
        for one in configurations_to_try(ONE, cores=2, worker_threads=1)
    ]
    assert pairs == [(1, 1), (1, 2), (2, 1)]
    gpu = Configuration(instance_count=1, intra_op_threads=None)
    counts = [one.instance_count for one in configurations_to_try(gpu, cores=2, worker_threads=6)]
    assert counts == [1, 2, 4, 6]


def test_best_trial_stays_with_the_present_within_tolerance() -> None:
    trials = [trial(1000, 2), trial(1025, 1), trial(1029, 4)]
    assert best_trial(trials) is trials[0]


def test_best_trial_of_equals_has_the_fewest_instances_then_threads() -> None:
    failed = Trial(configuration=ONE, curve=None, failure="no memory")
    trials = [trial(1000, 1), trial(1990, 4), trial(2000, 2, 2), trial(1980, 2, 1), trial(0, 1, 2), failed]
    assert best_trial(trials) is trials[3]
    assert best_trial([trial(0, 1), failed]) is None


def test_copied_version_shares_the_artefact_and_has_no_card(tmp_path: Path) -> None:
    folder = write_identity_like_model(tmp_path, "tiny", "v1")
    target = tmp_path / "tuning.tiny-v1.00"
    copy_version(folder, target, b"a configuration")
    assert sorted(path.name for path in target.rglob("*")) == ["1", "config.pbtxt", "model.onnx"]
    assert (target / "1/model.onnx").samefile(folder / "1/model.onnx")
    assert (target / "config.pbtxt").read_bytes() == b"a configuration"
    assert (folder / "config.pbtxt").read_bytes() != b"a configuration"


def test_changed_configuration_leaves_the_rest_of_the_card(tmp_path: Path) -> None:
    folder = write_identity_like_model(tmp_path, "tiny", "v1")
    before = read_card(folder)
    tuning = Tuning(
        rows_per_call=8, calls_in_flight=2, objective_p95_ms=50, p95_ms=1, rows_per_s=1, measured_at="now"
    )
    serving = ServingOptions(on_overload="degrade", tuning=tuning)
    change_configuration(folder, instance_count=2, config_sha256="00", serving=serving)
    after = read_card(folder)
    assert (after.instance_count, after.checksums["config.pbtxt"], after.serving) == (2, "00", serving)
    assert after.checksums["1/model.onnx"] == before.checksums["1/model.onnx"]
    assert after.content_digest == before.content_digest
