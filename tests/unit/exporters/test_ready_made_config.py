"""A config.pbtxt beside a ready-made file: kept, completed, or refused by field."""

import pytest

from exporters.config_pbtxt import stalling_keys
from exporters.errors import (
    InvalidModel,
    VersionConflict,
)
from exporters.repository_check import check_version
from exporters.spec import Device
from tests.unit.exporters.ready_made_files import (
    assert_nothing_published,
    folder_of,
    linear,
    published_config,
    take,
)

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
]

USER = """
    max_batch_size: 8
    dynamic_batching { max_queue_delay_microseconds: 100 }
    instance_group { kind: KIND_CPU count: 2 }
    parameters { key: "intra_op_thread_count" value { string_value: "3" } }
    response_cache { enable: true }
"""


def test_config_pbtxt_beside_the_file_is_kept_and_completed(tmp_path):
    (tmp_path / "config.pbtxt").write_text(USER)

    card = take(tmp_path, linear(tmp_path / "m.onnx")).card

    config = published_config(tmp_path)
    assert (config.name, config.backend, config.max_batch_size) == ("volatility-v1", "onnxruntime", 8)
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert config.response_cache.enable
    assert [entry.name for entry in (*config.input, *config.output)] == ["x", "y"]
    assert (card.max_batch_size, card.instance_count, card.device) == (8, 2, Device.CPU)
    assert card.warnings == ()
    assert check_version(folder_of(tmp_path)).problems == ()


def test_config_pbtxt_gives_way_to_the_request(tmp_path):
    (tmp_path / "config.pbtxt").write_text(USER)

    card = take(
        tmp_path, linear(tmp_path / "m.onnx"), max_batch_size=4, instance_count=1, device=Device.AUTO
    ).card

    config = published_config(tmp_path)
    assert (card.max_batch_size, card.instance_count, card.device) == (4, 1, Device.AUTO)
    assert (config.max_batch_size, config.instance_group[0].count, config.instance_group[0].kind) == (4, 1, 0)


def test_config_pbtxt_with_stalling_keys_is_kept_with_a_warning_for_each(tmp_path):
    (tmp_path / "m.config.pbtxt").write_text(
        "dynamic_batching { priority_levels: 3 default_priority_level: 2 default_queue_policy { max_queue_size: 9 } }"
    )

    card = take(tmp_path, linear(tmp_path / "m.onnx")).card

    assert len(stalling_keys(published_config(tmp_path))) == 2
    assert "priority_levels" in card.warnings[0]
    assert "max_queue_size" in card.warnings[1]
    assert check_version(folder_of(tmp_path)).warnings == card.warnings


def test_config_pbtxt_that_changes_makes_other_content(tmp_path):
    path = linear(tmp_path / "m.onnx")
    take(tmp_path, path)
    (tmp_path / "config.pbtxt").write_text(USER)

    with pytest.raises(VersionConflict):
        take(tmp_path, path)


def test_config_pbtxt_of_tritons_own_layout_is_found(tmp_path):
    folder = tmp_path / "theirs" / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text("max_batch_size: 5")

    assert take(tmp_path, linear(folder / "model.onnx")).card.max_batch_size == 5


REFUSED = {
    "syntax": "max_batch_size: lots",
    "backend": 'backend: "python"',
    "platform": 'platform: "tensorflow_savedmodel"',
    "runtime": 'runtime: "libevil.so"',
    "operators": 'model_operations { op_library_filename: "evil.so" }',
    "agents": 'model_repository_agents { agents { name: "evil" } }',
    "environment": 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/tmp/evil.tar.gz" } }',
    "plugins": 'optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" '
    'parameters { key: "trt_extra_plugin_lib_paths" value: "evil.so" } } } }',
    "ensemble": "ensemble_scheduling { step { model_name: 'x' model_version: -1 } }",
    "sequence": "sequence_batching { }",
    "decoupled": "model_transaction_policy { decoupled: true }",
    "warmup_file": 'model_warmup { name: "w" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 '
    'input_data_file: "x" } } }',
    "other_input": 'input { name: "z" data_type: TYPE_FP32 dims: [4] }',
    "other_shape": 'input { name: "x" data_type: TYPE_FP32 dims: [5] }',
    "other_type": 'output { name: "y" data_type: TYPE_INT64 dims: [2] }',
}


@pytest.mark.parametrize("case", REFUSED)
def test_config_pbtxt_that_cannot_be_served_is_refused(tmp_path, case):
    (tmp_path / "config.pbtxt").write_text(REFUSED[case])

    with pytest.raises(InvalidModel) as raised:
        take(tmp_path, linear(tmp_path / "m.onnx"))

    assert raised.value.got
    assert raised.value.remedy
    assert_nothing_published(tmp_path)
