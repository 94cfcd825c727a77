"""Writes and reads Triton's `config.pbtxt` through the protobuf message `ModelConfig`, never by text templates.

Says nothing of files: `exporters.publication` writes them. What a user's own configuration may hold is
`exporters.user_config`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from exporters.card import CardTensor
from exporters.errors import ExportFailed, InvalidModel
from exporters.spec import Device, ModelFormat

BACKENDS: Mapping[ModelFormat, str] = {ModelFormat.ONNX: "onnxruntime", ModelFormat.TORCHSCRIPT: "pytorch"}

STALLING_KEYS = (
    "priority_levels",
    "default_queue_policy.max_queue_size",
    "default_queue_policy.default_timeout_microseconds",
    "default_queue_policy.allow_timeout_override",
    "priority_queue_policy",
)
"""Keys of `dynamic_batching` that turn prefetching off in Triton's scheduler: single requests then wait up to 500 ms.
Seen with 2.51 and in the source since r24.03; related: triton-inference-server/server issue 8870."""

TENSORRT_CACHE = "/tmp/tensorrt_engines"  # noqa: S108 - inside Triton's container; mount a volume there to keep it
_TRITON_TYPES: Mapping[str, str] = {"BYTES": "TYPE_STRING"}
_CPU_PARAMETERS: Mapping[ModelFormat, Mapping[str, str]] = {
    ModelFormat.ONNX: {"intra_op_thread_count": "1", "inter_op_thread_count": "1"},
    ModelFormat.TORCHSCRIPT: {"INTRA_OP_THREAD_COUNT": "1", "INTER_OP_THREAD_COUNT": "1"},
}
"""One thread an instance: the dispatcher keeps several calls in flight, and threads of several calls only get in
each other's way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """How Triton is to run the model. `gpus`: the devices' indices, empty for all."""

    max_batch_size: int = 64
    instance_count: int = 1
    device: Device = Device.AUTO
    gpus: tuple[int, ...] = ()
    tensorrt: bool = False

    def as_mapping(self) -> dict[str, Any]:
        """For the content digest."""
        return {
            "max_batch_size": self.max_batch_size,
            "instance_count": self.instance_count,
            "gpus": list(self.gpus),
            "tensorrt": self.tensorrt,
        }


def build_config(
    *,
    name: str,
    model_format: ModelFormat,
    inputs: tuple[CardTensor, ...],
    outputs: tuple[CardTensor, ...],
    options: ServingOptions,
    digest: str,
) -> Any:
    """Builds the configuration of one version.

    Args:
        name: Triton's model name, also the folder's.
        model_format: decides the backend.
        inputs: with shapes without the batch axis, -1 dynamic.
        outputs: likewise.
        options: batch size, instances and device.
        digest: of the version's content; TensorRT's engines are cached by it.

    Returns:
        A `ModelConfig` message.
    """
    config = model_config_pb2.ModelConfig(
        name=name, backend=BACKENDS[model_format], max_batch_size=options.max_batch_size
    )
    for tensors, field in ((inputs, config.input), (outputs, config.output)):
        for tensor in tensors:
            field.add(
                name=tensor.triton_name,
                data_type=triton_type(tensor.datatype),
                dims=list(tensor.shape or (1,)),
            )
            if not tensor.shape:  # Triton knows no tensor of rank 1 with its batch axis taken off
                field[-1].reshape.SetInParent()
    config.dynamic_batching.SetInParent()
    set_instances(config, options)
    parameters: dict[str, str] = {}
    if options.device is not Device.GPU:
        parameters.update(_CPU_PARAMETERS[model_format])
    if model_format is ModelFormat.TORCHSCRIPT:
        # the profiling executor would recompile for each new time length, for seconds
        parameters["DISABLE_OPTIMIZED_EXECUTION"] = "true"
    for key, value in sorted(parameters.items()):
        config.parameters[key].string_value = value
    if options.device is Device.GPU and model_format is ModelFormat.ONNX:
        _accelerate(config, f"{name}-{digest[:16]}", tensorrt=options.tensorrt)
    return config


def set_instances(config: Any, options: ServingOptions) -> None:
    """Sets the one instance group: where, and how many."""
    kind = {Device.GPU: "KIND_GPU", Device.CPU: "KIND_CPU", Device.AUTO: "KIND_AUTO"}[options.device]
    del config.instance_group[:]
    config.instance_group.add(
        kind=model_config_pb2.ModelInstanceGroup.Kind.Value(kind),
        count=options.instance_count,
        gpus=list(options.gpus) if options.device is Device.GPU else [],
    )


def _accelerate(config: Any, cache: str, *, tensorrt: bool) -> None:
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    if tensorrt:
        accelerators.add(
            name="tensorrt",
            parameters={
                "precision_mode": "FP16",
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": f"{TENSORRT_CACHE}/{cache}",
            },
        )
    # the exhaustive search, the default, would time every algorithm anew for each time length
    accelerators.add(name="cuda", parameters={"cudnn_conv_algo_search": "HEURISTIC"})


def triton_type(datatype: str) -> int:
    """The protobuf enum's value of a datatype, e.g. of `FP32`.

    Raises:
        InvalidModel: Triton has no such datatype.
    """
    name = _TRITON_TYPES.get(datatype, f"TYPE_{datatype}")
    if name not in model_config_pb2.DataType.keys() or name == "TYPE_INVALID":  # noqa: SIM118 - protobuf's enum
        raise InvalidModel(
            f"Triton has no datatype {datatype}.",
            expected=", ".join(key.removeprefix("TYPE_") for key in model_config_pb2.DataType.keys()[1:]),
            got=datatype,
        )
    return int(model_config_pb2.DataType.Value(name))


def datatype_of(value: int) -> str:
    """The datatype's name, e.g. `FP32`, of a protobuf enum's value."""
    name = model_config_pb2.DataType.Name(value).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else str(name)


def encode_config(config: Any) -> bytes:
    """The configuration as protobuf text, read back and compared.

    Raises:
        ExportFailed: the text doesn't read back as the same message.
    """
    text = text_format.MessageToString(config)
    if text_format.Parse(text, model_config_pb2.ModelConfig()) != config:
        raise ExportFailed("config.pbtxt doesn't read back as it was written.")
    return str(text).encode()


def parse_config(data: bytes, *, where: str) -> Any:
    """Reads protobuf text as a `ModelConfig`.

    Raises:
        InvalidModel: not the text of a ModelConfig; names `where` and the line.
    """
    try:
        return text_format.Parse(data.decode(), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidModel(
            f"{where} isn't a Triton model configuration.",
            expected="the text format of the protobuf message ModelConfig",
            got=str(error)[:300],
            remedy="Correct the line named, or leave the file out: one is made from the model.",
        ) from error


def stalling_keys(config: Any) -> tuple[str, ...]:
    """The keys set in `config` that make Triton's scheduler stall; see `STALLING_KEYS`."""
    batching = config.dynamic_batching
    found = []
    for key in STALLING_KEYS:
        message = batching
        *parents, leaf = key.split(".")
        for parent in parents:
            message = getattr(message, parent)
        if getattr(message, leaf):
            found.append(f"dynamic_batching.{key}")
    return tuple(found)


def stalling_warnings(config: Any) -> tuple[str, ...]:
    """A sentence for each stalling key."""
    return tuple(
        f"config.pbtxt sets {key}: with it Triton's scheduler lets single requests wait up to 500 ms. "
        "Leave it out; priorities, queue bounds and deadlines are the control plane's."
        for key in stalling_keys(config)
    )


def tensor_differences(
    config: Any, *, inputs: tuple[CardTensor, ...], outputs: tuple[CardTensor, ...]
) -> tuple[str, ...]:
    """How the configuration's tensors differ from the model's: one phrase each, empty where they agree."""
    differences: list[str] = []
    for kind, entries, tensors in (("input", config.input, inputs), ("output", config.output, outputs)):
        declared = {entry.name: entry for entry in entries}
        known = {tensor.triton_name: tensor for tensor in tensors}
        differences += [f"{kind} {name} isn't one of the model's" for name in declared if name not in known]
        for name, tensor in known.items():
            entry = declared.get(name)
            if entry is None:
                if kind == "input":
                    differences.append(f"input {name} is missing")
                continue
            if entry.data_type != triton_type(tensor.datatype):
                differences.append(f"{kind} {name} is {datatype_of(entry.data_type)}, not {tensor.datatype}")
            if not _dims_fit(tuple(entry.dims), tensor.shape):
                differences.append(f"{kind} {name} has dims {list(entry.dims)}, not {list(tensor.shape)}")
    return tuple(differences)


def _dims_fit(dims: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if not shape:
        return dims == (1,)
    return len(dims) == len(shape) and all(
        dim == size or (size == -1 and dim > 0) for dim, size in zip(dims, shape, strict=True)
    )
