"""A user's own `config.pbtxt` beside a ready-made model: what is kept of it, changed, or refused.

Kept: batching, instances, parameters, optimisation, caching. Changed: name, backend, platform; tensors are filled in
where they are left out. Refused: what would load code (operator libraries, repository agents, runtimes, Python
environments, TensorRT plugins) or what the control plane can't serve (ensembles, sequences, decoupled answers).
"""

from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2

from exporters.card import CardTensor
from exporters.config_pbtxt import (
    BACKENDS,
    ServingOptions,
    build_config,
    parse_config,
    set_instances,
    stalling_warnings,
    tensor_differences,
)
from exporters.errors import InvalidModel
from exporters.protocol import ExportRequest
from exporters.spec import Device, ModelFormat

MAX_CONFIG_BYTES = 1 << 20
_PLATFORMS = {ModelFormat.ONNX: "onnxruntime_onnx", ModelFormat.TORCHSCRIPT: "pytorch_libtorch"}
_REFUSED_FIELDS = {
    "runtime": "it names a library for Triton to load",
    "cc_model_filenames": "one artefact is published",
    "sequence_batching": "the control plane sends requests that stand alone",
    "ensemble_scheduling": "one model is published",
    "model_operations": "it names libraries for Triton to load",
    "model_repository_agents": "they run at load",
    "batch_input": "the control plane doesn't send such tensors",
    "batch_output": "the control plane doesn't read such tensors",
}
_REFUSED_PARAMETERS = frozenset({"EXECUTION_ENV_PATH", "trt_extra_plugin_lib_paths"})
"""Names of parameters, of the model or of an accelerator, that make Triton load code from a path."""


def find_user_config(model_file: Path) -> tuple[Path, bytes] | None:
    """Finds a user's configuration: `<stem>.config.pbtxt` or `config.pbtxt` beside the file, or in the folder above
    where the file lies in a numbered version folder as in Triton's own layout.

    Raises:
        InvalidModel: too large to be one.
    """
    folder = model_file.parent
    candidates = [folder / f"{model_file.stem}.config.pbtxt", folder / "config.pbtxt"]
    if folder.name.isdigit():
        candidates.append(folder.parent / "config.pbtxt")
    for path in candidates:
        if path.is_file():
            if path.stat().st_size > MAX_CONFIG_BYTES:
                raise InvalidModel(
                    f"{path.name} is too large.", expected=f"at most {MAX_CONFIG_BYTES:,} bytes"
                )
            return path, path.read_bytes()
    return None


def parse_user_config(path: Path, data: bytes, model_format: ModelFormat) -> Any:
    """Reads a user's configuration and refuses what can't be served.

    Returns:
        A ModelConfig message.

    Raises:
        InvalidModel: names the field.
    """
    config = parse_config(data, where=path.name)
    set_fields = {field.name for field, _ in config.ListFields()}
    for field, reason in _REFUSED_FIELDS.items():
        if field in set_fields:
            raise _refused(path, field, reason)
    backend, platform = BACKENDS[model_format], _PLATFORMS[model_format]
    if config.backend not in ("", backend) or config.platform not in ("", platform):
        raise InvalidModel(
            f"{path.name} is for another backend than the file.",
            expected=f'backend: "{backend}"',
            got=f"backend: {config.backend!r}, platform: {config.platform!r}",
            remedy="Correct the backend, or leave it out.",
        )
    if config.model_transaction_policy.decoupled:
        raise _refused(path, "model_transaction_policy.decoupled", "each request has one answer")
    for warmup in config.model_warmup:
        if any(entry.input_data_file for entry in warmup.inputs.values()):
            raise _refused(path, "model_warmup.inputs.input_data_file", "only the artefact is published")
    accelerators = config.optimization.execution_accelerators
    named = set(config.parameters)
    for accelerator in (*accelerators.gpu_execution_accelerator, *accelerators.cpu_execution_accelerator):
        named |= set(accelerator.parameters)
    for parameter in sorted(named & _REFUSED_PARAMETERS):
        raise _refused(path, f"parameter {parameter}", "it names code for Triton to load")
    return config


def _refused(path: Path, field: str, reason: str) -> InvalidModel:
    return InvalidModel(
        f"{path.name} sets {field}, which isn't taken over: {reason}.", got=field, remedy=f"Remove {field}."
    )


def options_of(request: ExportRequest, config: Any | None) -> ServingOptions:
    """The serving options: the request's first, then the user's configuration, then the defaults."""
    defaults = ServingOptions()
    batch, count, device = defaults.max_batch_size, defaults.instance_count, defaults.device
    if config is not None:
        if config.max_batch_size:
            batch = config.max_batch_size
        if config.instance_group:
            group = config.instance_group[0]
            count = max(1, group.count)
            kind = model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind)
            device = {"KIND_GPU": Device.GPU, "KIND_CPU": Device.CPU}.get(kind, Device.AUTO)
    return ServingOptions(
        max_batch_size=request.max_batch_size or batch,
        instance_count=request.instance_count or count,
        device=request.device or device,
        gpus=request.gpus,
        tensorrt=request.tensorrt,
    )


def merge_config(
    user: Any | None,
    request: ExportRequest,
    *,
    model_format: ModelFormat,
    inputs: tuple[CardTensor, ...],
    outputs: tuple[CardTensor, ...],
    digest: str,
) -> tuple[Any, tuple[str, ...]]:
    """Makes the configuration that is published: the user's, completed, or one of our own.

    Args:
        user: from `parse_user_config`, or None.
        request: its options win over the user's.
        model_format: of the artefact.
        inputs: of the model.
        outputs: of the model.
        digest: of the version's content.

    Returns:
        The ModelConfig message, and warnings for the card.

    Raises:
        InvalidModel: the user's tensors aren't the model's.
    """
    options = options_of(request, user)
    ours = build_config(
        name=request.triton_model,
        model_format=model_format,
        inputs=inputs,
        outputs=outputs,
        options=options,
        digest=digest,
    )
    if user is None:
        return ours, ()
    differences = (
        tensor_differences(user, inputs=inputs, outputs=outputs) if user.input or user.output else ()
    )
    wrong = [phrase for phrase in differences if not (phrase.endswith("is missing") and not user.input)]
    if wrong:
        raise InvalidModel(
            "The user's config.pbtxt doesn't fit the model.",
            expected="the model's own tensors; leave them out to have them filled in",
            got="; ".join(wrong)[:500],
            remedy="Correct the inputs and outputs, or remove them from config.pbtxt.",
        )
    merged = model_config_pb2.ModelConfig()
    merged.CopyFrom(user)
    merged.name, merged.backend, merged.max_batch_size = (
        request.triton_model,
        ours.backend,
        options.max_batch_size,
    )
    for field in ("platform", "default_model_filename", "version_policy"):
        merged.ClearField(field)
    warnings = [*stalling_warnings(user)]
    if user.max_batch_size == 0:
        warnings.append("config.pbtxt has no max_batch_size (or 0): the model is published with batching.")
    for kept, complete in ((merged.input, ours.input), (merged.output, ours.output)):
        declared = {entry.name for entry in kept}
        kept.extend(entry for entry in complete if entry.name not in declared)
        for entry in kept:
            if getattr(entry, "label_filename", ""):
                warnings.append(
                    f"config.pbtxt names the label file {entry.label_filename}, which isn't published."
                )
                entry.ClearField("label_filename")
    if not merged.HasField("dynamic_batching"):
        merged.dynamic_batching.SetInParent()
    if not merged.instance_group or request.device is not None or request.instance_count is not None:
        set_instances(merged, options)
    return merged, tuple(warnings)


def served_shapes(tensors: tuple[CardTensor, ...], entries: Any) -> tuple[CardTensor, ...]:
    """The tensors with the shapes that the published configuration serves: a user may fix a dynamic axis."""
    dims = {entry.name: tuple(entry.dims) for entry in entries}
    return tuple(
        CardTensor(
            name=tensor.name,
            triton_name=tensor.triton_name,
            datatype=tensor.datatype,
            shape=dims[tensor.triton_name] if tensor.shape else tensor.shape,
        )
        for tensor in tensors
    )
