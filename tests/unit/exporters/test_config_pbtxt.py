"""config.pbtxt: what Triton is told, for each format and device, and what is found in other people's."""

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from exporters.card import CardTensor, card_tensors
from exporters.config_pbtxt import (
    STALLING_KEYS,
    ServingOptions,
    build_config,
    datatype_of,
    encode_config,
    parse_config,
    stalling_keys,
    stalling_warnings,
    tensor_differences,
    triton_type,
)
from exporters.errors import InvalidModel
from exporters.spec import Device, ModelFormat, TensorSpec

INPUTS = (TensorSpec(name="x", shape=(50, -1)),)
OUTPUTS = (TensorSpec(name="probs", shape=(3,)), TensorSpec(name="attention", shape=(-1,)))


DIGEST = "0123456789abcdef" * 4


def build(model_format: ModelFormat = ModelFormat.ONNX, **options: object):
    return build_config(
        name="m-v1.0",
        model_format=model_format,
        inputs=card_tensors(INPUTS, model_format=model_format),
        outputs=card_tensors(OUTPUTS, model_format=model_format),
        options=ServingOptions(**options),
        digest=DIGEST,
    )


def parse(text: str):
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_build_of_an_onnx_model_gives_the_whole_configuration():
    assert build() == parse("""
        name: "m-v1.0" backend: "onnxruntime" max_batch_size: 64
        input { name: "x" data_type: TYPE_FP32 dims: [50, -1] }
        output { name: "probs" data_type: TYPE_FP32 dims: [3] }
        output { name: "attention" data_type: TYPE_FP32 dims: [-1] }
        instance_group { kind: KIND_AUTO count: 1 }
        dynamic_batching { }
        parameters { key: "intra_op_thread_count" value { string_value: "1" } }
        parameters { key: "inter_op_thread_count" value { string_value: "1" } }
    """)


def test_build_of_torchscript_names_tensors_by_index_and_leaves_platform_unset():
    config = build(ModelFormat.TORCHSCRIPT)

    assert (config.backend, config.platform) == ("pytorch", "")
    assert [entry.name for entry in (*config.input, *config.output)] == ["x__0", "probs__0", "attention__1"]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "DISABLE_OPTIMIZED_EXECUTION": "true",
        "INTER_OP_THREAD_COUNT": "1",
        "INTRA_OP_THREAD_COUNT": "1",
    }


@pytest.mark.parametrize(
    ("device", "kind"), [(Device.AUTO, "KIND_AUTO"), (Device.CPU, "KIND_CPU"), (Device.GPU, "KIND_GPU")]
)
@pytest.mark.parametrize("model_format", list(ModelFormat))
def test_build_places_instances_by_device(device, kind, model_format):
    config = build(model_format, device=device, instance_count=3, gpus=(0, 2))

    (group,) = config.instance_group
    assert model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) == kind
    assert group.count == 3
    assert list(group.gpus) == ([0, 2] if device is Device.GPU else [])
    assert ("intra_op_thread_count" in {key.lower() for key in config.parameters}) == (
        device is not Device.GPU
    )


@pytest.mark.parametrize(("tensorrt", "names"), [(False, ["cuda"]), (True, ["tensorrt", "cuda"])])
def test_build_for_gpu_sets_execution_providers_of_onnx(tensorrt, names):
    accelerators = build(device=Device.GPU, tensorrt=tensorrt).optimization.execution_accelerators

    assert [entry.name for entry in accelerators.gpu_execution_accelerator] == names
    assert not accelerators.cpu_execution_accelerator
    if tensorrt:
        parameters = accelerators.gpu_execution_accelerator[0].parameters
        assert parameters["precision_mode"] == "FP16"
        assert parameters["trt_engine_cache_enable"] == "1"
        assert parameters["trt_engine_cache_path"].endswith(f"/m-v1.0-{DIGEST[:16]}")


@pytest.mark.parametrize("model_format", list(ModelFormat))
@pytest.mark.parametrize("device", list(Device))
def test_build_sets_none_of_the_keys_that_stall_the_scheduler(model_format, device):
    config = build(model_format, device=device)

    assert config.HasField("dynamic_batching")
    assert stalling_keys(config) == ()


_NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,20}", fullmatch=True)
_TENSORS = st.lists(
    st.builds(
        CardTensor,
        name=_NAMES,
        triton_name=_NAMES,
        datatype=st.sampled_from(["FP32", "FP16", "INT64", "BOOL", "BYTES", "UINT8"]),
        shape=st.lists(st.sampled_from([-1, 1, 7, 4096]), max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda tensor: tensor.triton_name,
).map(tuple)


@given(
    inputs=_TENSORS,
    outputs=_TENSORS,
    model_format=st.sampled_from(ModelFormat),
    device=st.sampled_from(Device),
    batch=st.integers(1, 4096),
    count=st.integers(1, 64),
)
def test_encode_of_any_model_reads_back_equal_and_fits_its_card(
    inputs, outputs, model_format, device, batch, count
):
    config = build_config(
        name="m-1",
        model_format=model_format,
        inputs=inputs,
        outputs=outputs,
        options=ServingOptions(max_batch_size=batch, instance_count=count, device=device),
        digest=DIGEST,
    )

    assert parse_config(encode_config(config), where="x") == config
    assert tensor_differences(config, inputs=inputs, outputs=outputs) == ()


@pytest.mark.parametrize("data", [b"name: ", b"nonsense: 1", b"\xff\xfe", b"input { dims: [a] }"])
def test_parse_of_something_else_says_where(data):
    with pytest.raises(InvalidModel, match="mine") as raised:
        parse_config(data, where="mine")

    assert raised.value.got


STALLING = {
    "priority_levels": "dynamic_batching { priority_levels: 2 }",
    "default_queue_policy.max_queue_size": "dynamic_batching { default_queue_policy { max_queue_size: 5 } }",
    "default_queue_policy.default_timeout_microseconds": (
        "dynamic_batching { default_queue_policy { default_timeout_microseconds: 5 } }"
    ),
    "default_queue_policy.allow_timeout_override": (
        "dynamic_batching { default_queue_policy { allow_timeout_override: true } }"
    ),
    "priority_queue_policy": "dynamic_batching { priority_queue_policy { key: 1 value { max_queue_size: 5 } } }",
}


def test_stalling_cases_cover_every_key():
    assert set(STALLING) == set(STALLING_KEYS)


@pytest.mark.parametrize("key", STALLING)
def test_stalling_keys_are_each_named_in_a_warning(key):
    config = parse(STALLING[key])

    assert stalling_keys(config) == (f"dynamic_batching.{key}",)
    (warning,) = stalling_warnings(config)
    assert key in warning
    assert "500 ms" in warning


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dynamic_batching { }",
        "dynamic_batching { max_queue_delay_microseconds: 9 preserve_ordering: true }",
    ],
)
def test_stalling_keys_of_harmless_batching_are_none(text):
    assert stalling_keys(parse(text)) == ()


DIFFERENCES = {
    'input { name: "x" data_type: TYPE_FP32 dims: [50, -1] }': (),
    'input { name: "x" data_type: TYPE_FP32 dims: [50, 60] }': (),
    'input { name: "x" data_type: TYPE_FP16 dims: [50, -1] }': ("input x is FP16, not FP32",),
    'input { name: "x" data_type: TYPE_FP32 dims: [51, -1] }': ("input x has dims [51, -1], not [50, -1]",),
    'input { name: "x" data_type: TYPE_FP32 dims: [50] }': ("input x has dims [50], not [50, -1]",),
    'input { name: "y" data_type: TYPE_FP32 dims: [50, -1] }': (
        "input y isn't one of the model's",
        "input x is missing",
    ),
}


@pytest.mark.parametrize("text", DIFFERENCES)
def test_tensor_differences_are_named(text):
    config = parse(text)
    inputs = card_tensors(INPUTS, model_format=ModelFormat.ONNX)

    assert tensor_differences(config, inputs=inputs, outputs=()) == DIFFERENCES[text]


@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BF16", "INT8", "BOOL"])
def test_triton_type_and_datatype_are_inverse(datatype):
    assert datatype_of(triton_type(datatype)) == datatype


@pytest.mark.parametrize("datatype", ["FLOAT", "INVALID", "", "fp32"])
def test_triton_type_of_an_unknown_datatype_is_an_invalid_model(datatype):
    with pytest.raises(InvalidModel):
        triton_type(datatype)
