"""Reads a ready-made ONNX file: checked, self-contained, and with its tensors described.

Refused by name: newer opset or IR than Triton's image reads, operators of custom domains, external data outside the
file's folder. External data inside is embedded, so that what is published is one file. What is read is a copy.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message

from exporters.checkpoints.identify import copy_regular, open_regular
from exporters.errors import FileTooLarge, InvalidModel
from exporters.spec import DATATYPES, TensorSpec

MAX_OPSET = 21
MAX_IR_VERSION = 10
MAX_PROTOBUF_BYTES = (2 << 30) - 1
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""`com.microsoft` is ONNX Runtime's own: its optimiser and quantiser write it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """A readable ONNX model. `sha256` covers the external data too; `embedded`: it had some."""

    proto: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    ir_version: int
    producer: str
    embedded: bool


def copy_onnx(path: Path, folder: Path, *, max_bytes: int) -> tuple[Path, str, int]:
    """Copies an ONNX file and its external data into a folder, so that nobody changes them any more.

    Returns:
        The copy of the file, and SHA-256 and size of all copies together.

    Raises:
        InvalidModel: not ONNX, or its external data is missing or elsewhere.
        FileTooLarge: beyond `max_bytes` in all.
    """
    copy = folder / path.name
    total = copy_regular(path, copy, max_bytes=min(max_bytes, MAX_PROTOBUF_BYTES))
    digest = hashlib.sha256()
    files = [copy]
    for location in _external_locations(_load_structure(copy, max_bytes=max_bytes)):
        target = folder / location
        target.parent.mkdir(parents=True, exist_ok=True)
        total += copy_regular(_beside(path.parent, location), target, max_bytes=max_bytes)
        files.append(target)
        if total > max_bytes:
            raise FileTooLarge(
                "The model and its external data are larger than the limit on model files.",
                expected=f"at most {max_bytes:,} bytes",
                got=f"{total:,} bytes",
            )
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return copy, digest.hexdigest(), total


def read_onnx(path: Path, *, max_bytes: int) -> OnnxFile:
    """Reads and checks an ONNX model.

    Raises:
        InvalidModel: see the module's docstring; the detail names what is at fault.
    """
    proto = _load_structure(path, max_bytes=max_bytes)
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    _check_versions(opset, proto.ir_version)
    _check_domains(proto)
    external = _external_locations(proto)
    for location in external:
        _beside(path.parent, location)
    if external:
        onnx.load_external_data_for_model(proto, str(path.parent))
        if left := _external_locations(proto):  # of a sparse tensor, or of a function's default
            raise _external_elsewhere(left[0])
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise InvalidModel(
            "The ONNX model doesn't pass onnx.checker.",
            got=str(error).strip()[:300],
            remedy="Export it again.",
        ) from error
    initializers = {entry.name for entry in proto.graph.initializer}
    return OnnxFile(
        proto=proto,
        inputs=tuple(
            _tensor(entry, "input") for entry in proto.graph.input if entry.name not in initializers
        ),
        outputs=tuple(_tensor(entry, "output") for entry in proto.graph.output),
        opset=opset,
        ir_version=proto.ir_version,
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        embedded=bool(external),
    )


def write_onnx_file(model: OnnxFile, source: Path, target: Path) -> None:
    """Puts the model in place as one file: the copied source itself, or with its external data embedded.

    Raises:
        InvalidModel: with its data it is beyond the 2 GB of a protobuf message.
    """
    if not model.embedded:
        source.rename(target)
        return
    if model.proto.ByteSize() > MAX_PROTOBUF_BYTES:
        raise InvalidModel(
            "With its external data the model is larger than an ONNX file can be.",
            expected=f"at most {MAX_PROTOBUF_BYTES:,} bytes",
            got=f"{model.proto.ByteSize():,} bytes",
        )
    onnx.save_model(model.proto, str(target), save_as_external_data=False)


def _load_structure(path: Path, *, max_bytes: int) -> Any:
    stream, _ = open_regular(path, max_bytes=min(max_bytes, MAX_PROTOBUF_BYTES))
    with stream:
        try:
            proto = onnx.load_model_from_string(stream.read())
        except DecodeError as error:
            raise InvalidModel(
                f"{path.name} isn't an ONNX model, or is damaged.",
                got=str(error)[:200],
                remedy="Copy or export it again.",
            ) from error
    if not proto.HasField("graph") or not proto.graph.output:
        raise InvalidModel(f"{path.name} holds no ONNX graph.", remedy="Export the model again.")
    return proto


def _check_versions(opset: int, ir_version: int) -> None:
    for name, version, newest in (("opset", opset, MAX_OPSET), ("IR version", ir_version, MAX_IR_VERSION)):
        if not 1 <= version <= newest:
            raise InvalidModel(
                f"The model's {name} isn't one that Triton's ONNX Runtime reads.",
                expected=f"{name} 1 to {newest}",
                got=f"{name} {version}",
                remedy="Export with opset_version=17, or convert with onnx.version_converter.",
            )


def _check_domains(proto: Any) -> None:
    allowed = DOMAINS | {function.domain for function in proto.functions}
    for node in _messages(proto, "NodeProto"):
        if node.domain not in allowed:
            raise InvalidModel(
                f"The model uses an operator of a custom domain: {node.domain}.{node.op_type}.",
                expected="operators of ai.onnx, ai.onnx.ml or com.microsoft",
                got=f"{node.domain}.{node.op_type}",
                remedy="Express it with standard operators; custom operator libraries aren't loaded.",
            )


def _messages(proto: Any, kind: str) -> Iterator[Any]:
    """All messages of a kind, wherever in the model: in subgraphs, functions, and attributes and their defaults."""
    pending = [proto]
    while pending:
        message = pending.pop()
        if message.DESCRIPTOR.name == kind:
            yield message
        for field, value in message.ListFields():
            if field.message_type is not None:
                pending += [value] if isinstance(value, Message) else value


def _external_locations(proto: Any) -> list[str]:
    locations: set[str] = set()
    for tensor in _messages(proto, "TensorProto"):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            locations.update(entry.value for entry in tensor.external_data if entry.key == "location")
    return sorted(locations)


def _beside(folder: Path, location: str) -> Path:
    """The file of external data.

    Raises:
        InvalidModel: it is missing, or lies outside `folder`.
    """
    file = folder / location
    parts = PurePosixPath(location).parts
    named_inside = bool(parts) and parts[0] != "/" and ".." not in parts and "\\" not in location
    if (
        not named_inside
        or not file.resolve().is_relative_to(folder.resolve())
        or file.is_symlink()
        or not file.is_file()
    ):
        raise _external_elsewhere(location)
    return file


def _external_elsewhere(location: str) -> InvalidModel:
    return InvalidModel(
        "The model's external data isn't in its folder, or isn't an initializer's or a node's.",
        expected="a file beside the model",
        got=location[:200],
        remedy="Save it as one file: onnx.save_model(model, path, save_as_external_data=False).",
    )


def _datatype(elem_type: int) -> str | None:
    if elem_type == onnx.TensorProto.BFLOAT16:  # numpy has none
        return "BF16"
    if elem_type not in onnx.helper.get_all_tensor_dtypes():
        return None
    return DATATYPES.get(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)


def _tensor(entry: Any, kind: str) -> TensorSpec:
    tensor = entry.type.tensor_type
    datatype = _datatype(tensor.elem_type)
    if not entry.type.HasField("tensor_type") or datatype is None:
        raise InvalidModel(
            f"The {kind} {entry.name} isn't a tensor that Triton can carry.",
            expected="a tensor of numbers, booleans or strings",
            got=entry.type.WhichOneof("value") or "nothing",
        )
    dims = list(tensor.shape.dim)
    if not dims or (dims[0].HasField("dim_value") and dims[0].dim_value > 0):
        raise InvalidModel(
            f"The {kind} {entry.name} doesn't have a dynamic batch as its first axis.",
            expected="a first axis of any size",
            got=f"shape {[dim.dim_value or dim.dim_param or '?' for dim in dims]}",
            remedy="Export with dynamic_axes={name: {0: 'batch'}} for each input and output.",
        )
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else -1 for dim in dims[1:]
    )
    return TensorSpec(name=entry.name, shape=shape, datatype=datatype)
