"""Publishes a ready-made ONNX or TorchScript file: checked, tried on a small input, then taken as it is.

A ready-made graph isn't changed: no normalisation is folded in, and nothing is compared with torch. What its tensors
must be for a known type is in `KNOWN_TYPES`; a new type has whatever tensors the file, or its configuration, says.
"""

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporters import draft
from exporters.card import (
    ARTEFACTS,
    Card,
    CardSource,
    CardVerification,
    card_tensors,
    content_digest,
    file_sha256,
)
from exporters.checkpoints.identify import FileKind, copy_regular
from exporters.config_pbtxt import datatype_of
from exporters.errors import InvalidConfig, InvalidModel
from exporters.model_types import KNOWN_TYPES, check_agents, check_type
from exporters.onnx_file import OnnxFile, copy_onnx, read_onnx, write_onnx_file
from exporters.protocol import ExportRequest, OnStage, Stage, Status
from exporters.publication import staged
from exporters.spec import ModelFormat, TensorSpec
from exporters.torchscript_archive import screen
from exporters.trial import Trial, try_artefact
from exporters.user_config import find_user_config, merge_config, options_of, parse_user_config, served_shapes

_TENSOR_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]{0,127}")
_DYNAMIC = -1
_SOURCE = "source"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signature:
    """A graph's tensors, and the ONNX file that they were read from."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    onnx: OnnxFile | None = None


def export_ready_made(
    request: ExportRequest, kind: FileKind, *, on_stage: OnStage, max_bytes: int
) -> tuple[Status, Card]:
    """Checks and publishes a ready-made file.

    Args:
        request: what, whence, whereto.
        kind: ONNX or TorchScript, by the file's content.
        on_stage: told as each stage begins.
        max_bytes: limit on the file's size.

    Raises:
        InvalidModel: it doesn't load, doesn't run, or doesn't fit its type.
        UnsafeCheckpoint: a TorchScript archive that could touch files.
        InvalidConfig: the request asks for what a ready-made graph can't have.
    """
    path = Path(request.file_path)
    model_format = ModelFormat.ONNX if kind is FileKind.ONNX else ModelFormat.TORCHSCRIPT
    _check_request(request, model_format)
    published = draft.published_card(request)
    found = find_user_config(path)
    user = parse_user_config(*found, model_format) if found is not None else None
    options = options_of(request, user)
    with staged(Path(request.repository), request.triton_model) as folder:
        copy, source = _copied(path, folder / _SOURCE, model_format, max_bytes=max_bytes)
        digest = content_digest(
            model_type=request.model_type,
            source_sha256=source.sha256,
            config=request.config or {},
            normalization=None,
            model_format=model_format,
            device=options.device,
            options={
                **options.as_mapping(),
                "config.pbtxt": found[1].decode("utf-8", "replace") if found else None,
            },
        )
        if draft.is_published(request, published, digest) and published is not None:
            return Status.UNCHANGED, published

        on_stage(Stage.BUILDING)
        if model_format is ModelFormat.TORCHSCRIPT:
            screen(copy, max_bytes=max_bytes)
        signature = _signature(request, copy, model_format, user, max_bytes=max_bytes)
        on_stage(Stage.EXPORTING)
        artefact = folder / ARTEFACTS[model_format]
        if signature.onnx is not None:
            write_onnx_file(signature.onnx, copy, artefact)
        else:
            copy.rename(artefact)
        shutil.rmtree(folder / _SOURCE)
        on_stage(Stage.VERIFYING)
        inputs = card_tensors(signature.inputs, model_format=model_format)
        trial = try_artefact(
            artefact, model_format, inputs, max_batch_size=options.max_batch_size, lengths=_lengths(request)
        )
        outputs = card_tensors(_settle_outputs(request, signature, trial), model_format=model_format)
        check_type(request.model_type, inputs, outputs)
        if request.model_type == "rl_ensemble":
            check_agents(request.config or {}, inputs)
        on_stage(Stage.PUBLISHING)
        serving, warnings = merge_config(
            user, request, model_format=model_format, inputs=inputs, outputs=outputs, digest=digest
        )
        card = draft.finish(
            request,
            folder,
            draft.Draft(
                model_format=model_format,
                source=source,
                content_digest=digest,
                inputs=served_shapes(inputs, serving.input),
                outputs=served_shapes(outputs, serving.output),
                serving=serving,
                device=options.device,
                description=f"Ready-made {model_format} model.",
                config=request.config or {},
                class_names=_names(request, "class_names"),
                feature_names=_names(request, "feature_names"),
                verification=CardVerification(
                    max_relative_error=None,
                    batch_sizes=trial.batch_sizes,
                    time_lengths=() if trial.length is None else (trial.length,),
                    reference="none",
                ),
                versions=_versions(signature),
                warnings=warnings,
            ),
        )
    return Status.PUBLISHED, card


def _copied(
    path: Path, folder: Path, model_format: ModelFormat, *, max_bytes: int
) -> tuple[Path, CardSource]:
    """Copies the file, with an ONNX model's external data: all that follows is about the copy, which nobody changes."""
    folder.mkdir()
    if model_format is ModelFormat.ONNX:
        copy, sha256, size_bytes = copy_onnx(path, folder, max_bytes=max_bytes)
    else:
        copy = folder / path.name
        size_bytes = copy_regular(path, copy, max_bytes=max_bytes)
        sha256 = file_sha256(copy)
    return copy, CardSource(file_name=path.name, sha256=sha256, size_bytes=size_bytes)


def _check_request(request: ExportRequest, model_format: ModelFormat) -> None:
    if request.format not in (None, model_format):
        raise InvalidConfig(
            "A ready-made model isn't converted.",
            expected=f"format {model_format}, as the file is, or none",
            got=f"format {request.format}",
            remedy="Leave the format out.",
        )
    if request.normalization is not None:
        raise InvalidConfig(
            "A normalisation can't be folded into a ready-made model.",
            remedy="Make it part of the graph before exporting, or leave it out.",
        )


def _signature(
    request: ExportRequest, path: Path, model_format: ModelFormat, user: Any, *, max_bytes: int
) -> _Signature:
    if model_format is ModelFormat.ONNX:
        model = read_onnx(path, max_bytes=max_bytes)
        return _Signature(inputs=model.inputs, outputs=model.outputs, onnx=model)
    config = request.config or {}
    if "inputs" in config or "outputs" in config:
        return _Signature(
            inputs=_declared(config.get("inputs"), "inputs"),
            outputs=_declared(config.get("outputs"), "outputs"),
        )
    if user is not None and user.input and user.output:
        return _Signature(inputs=_from_pbtxt(user.input), outputs=_from_pbtxt(user.output))
    known = KNOWN_TYPES.get(request.model_type)
    channels = config.get("input_dim")
    if known is not None and "channels" in known.inputs["x"] and isinstance(channels, int) and channels > 0:
        return _Signature(
            inputs=tuple(
                TensorSpec(
                    name=name, shape=tuple(channels if axis == "channels" else _DYNAMIC for axis in axes)
                )
                for name, axes in known.inputs.items()
            ),
            outputs=tuple(
                TensorSpec(name=name, shape=(_DYNAMIC,) * len(axes)) for name, axes in known.outputs.items()
            ),
        )
    raise InvalidConfig(
        "A TorchScript file doesn't name its tensors, and neither the request nor a config.pbtxt does.",
        expected="config with inputs and outputs, each [{name, shape, datatype}] without the batch axis"
        + ("; or config.input_dim" if known is not None else ""),
        got="neither",
        remedy='E.g. --set inputs=\'[{"name": "x", "shape": [50, -1], "datatype": "FP32"}]\' and outputs likewise.',
    )


def _declared(value: Any, key: str) -> tuple[TensorSpec, ...]:
    expected = (
        f'{key}: [{{"name": "x", "shape": [50, -1], "datatype": "FP32"}}], shapes without the batch axis'
    )
    specs = []
    for entry in value if isinstance(value, list) else []:
        spec = _declared_tensor(entry)
        if spec is None:
            raise InvalidConfig(f"config.{key} isn't valid.", expected=expected, got=repr(entry)[:200])
        specs.append(spec)
    if not specs or len({spec.name for spec in specs}) != len(specs):
        raise InvalidConfig(f"config.{key} isn't valid.", expected=expected, got=repr(value)[:200])
    return tuple(specs)


def _declared_tensor(entry: Any) -> TensorSpec | None:
    if not isinstance(entry, dict) or not entry.keys() <= {"name", "shape", "datatype"}:
        return None
    name, shape, datatype = entry.get("name"), entry.get("shape"), entry.get("datatype", "FP32")
    if not isinstance(name, str) or _TENSOR_NAME.fullmatch(name) is None or not isinstance(shape, list):
        return None
    if not all(type(size) is int and (size > 0 or size == _DYNAMIC) for size in shape):
        return None
    return TensorSpec(name=name, shape=tuple(shape), datatype=datatype) if isinstance(datatype, str) else None


def _from_pbtxt(entries: Any) -> tuple[TensorSpec, ...]:
    """A user's tensors in the order that their names' `__<index>` gives, without that suffix."""

    def index(name: str) -> int:
        return int(match.group(1)) if (match := re.search(r"__(\d+)$", name)) else len(entries)

    return tuple(
        TensorSpec(
            name=re.sub(r"__\d+$", "", entry.name),
            shape=tuple(entry.dims),
            datatype=datatype_of(entry.data_type),
        )
        for entry in sorted(entries, key=lambda entry: index(entry.name))
    )


def _lengths(request: ExportRequest) -> tuple[int, ...]:
    length = (request.config or {}).get("sequence_length")
    return (length,) if isinstance(length, int) and 0 < length <= 1 << 16 else ()


def _settle_outputs(request: ExportRequest, signature: _Signature, trial: Trial) -> tuple[TensorSpec, ...]:
    """Holds the declared outputs to those that the trial gave; shapes left open by the type are filled in."""
    declared = signature.outputs
    if len(declared) != len(trial.output_shapes):
        raise InvalidModel(
            "The model has another number of outputs than declared.",
            expected=f"{len(declared)} outputs: " + ", ".join(spec.name for spec in declared),
            got=f"{len(trial.output_shapes)} outputs",
            remedy="Declare the outputs in the order in which the model returns them.",
        )
    known = KNOWN_TYPES.get(request.model_type)
    settled = []
    for spec, shape, datatype in zip(declared, trial.output_shapes, trial.output_types, strict=True):
        fits = len(spec.shape) == len(shape) and all(
            size in (_DYNAMIC, actual) for size, actual in zip(spec.shape, shape, strict=True)
        )
        if not fits or spec.datatype not in (datatype, "BF16"):
            raise InvalidModel(
                f"Output {spec.name} isn't what was declared.",
                expected=f"{spec.datatype} {[_DYNAMIC, *spec.shape]}",
                got=f"{datatype} {[_DYNAMIC, *shape]}",
                remedy="Correct the declaration, or export the model again.",
            )
        axes = known.outputs.get(spec.name) if known is not None else None
        if axes is None or len(axes) != len(shape):
            settled.append(spec)
            continue
        filled = tuple(_DYNAMIC if axis == "time" else size for axis, size in zip(axes, shape, strict=True))
        settled.append(replace(spec, shape=filled))
    return tuple(settled)


def _names(request: ExportRequest, key: str) -> tuple[str, ...] | None:
    value = (request.config or {}).get(key)
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    return None


def _versions(signature: _Signature) -> dict[str, Any]:
    model = signature.onnx
    if model is None:
        import torch  # noqa: PLC0415 - TorchScript only

        return {"torch": str(torch.__version__), "opset": None, "ir_version": None}
    return {"producer": model.producer, "opset": model.opset, "ir_version": model.ir_version}
