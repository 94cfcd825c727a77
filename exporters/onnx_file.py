"""Reads a ready-made ONNX file: checked, self-contained, and with its tensors described.

Refused by name: newer opset or IR than Triton's image reads, operators of custom domains, external data outside the
file's folder. External data inside is embedded, so that what is published is one file.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from exporters.checkpoints.identify import open_regular
from exporters.errors import FileTooLarge, InvalidModel
from exporters.spec import TensorSpec

MAX_OPSET = 21
MAX_IR_VERSION = 10
MAX_PROTOBUF_BYTES = (2 << 30) - 1
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""`com.microsoft` is ONNX Runtime's own: its optimiser and quantiser write it."""

_DATATYPES = {
    "FLOAT": "FP32", "DOUBLE": "FP64", "FLOAT16": "FP16", "BFLOAT16": "BF16", "INT64": "INT64", "INT32": "INT32",
    "INT16": "INT16", "INT8": "INT8", "UINT64": "UINT64", "UINT32": "UINT32", "UINT16": "UINT16", "UINT8": "UINT8",
    "BOOL": "BOOL", "STRING": "BYTES",
}  # fmt: skip


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


def source_digest(path: Path, *, max_bytes: int) -> tuple[str, int]:
    """SHA-256 and size of an ONNX file together with its external data.

    Raises:
        InvalidModel: not ONNX, or its external data is missing or elsewhere.
        FileTooLarge: beyond `max_bytes` in all.
    """
    return _digest(path, _load_structure(path, max_bytes=max_bytes), max_bytes=max_bytes)


def _digest(path: Path, proto: Any, *, max_bytes: int) -> tuple[str, int]:
    digest = hashlib.sha256()
    total = 0
    for part in (path, *external_files(proto, path.parent)):
        stream, size = open_regular(part, max_bytes=max_bytes)
        with stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        total += size
    if total > max_bytes:
        raise FileTooLarge(
            "The model and its external data are larger than the limit on model files.",
            expected=f"at most {max_bytes:,} bytes",
            got=f"{total:,} bytes",
        )
    return digest.hexdigest(), total


def read_onnx(path: Path, *, max_bytes: int) -> OnnxFile:
    """Reads and checks an ONNX model.

    Raises:
        InvalidModel: see the module's docstring; the detail names what is at fault.
    """
    proto = _load_structure(path, max_bytes=max_bytes)
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    _check_versions(opset, proto.ir_version)
    _check_domains(proto)
    external = external_files(proto, path.parent)
    if external:
        onnx.load_external_data_for_model(proto, str(path.parent))
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
    """Writes the model as one file: a copy of the source, or with its external data embedded.

    Raises:
        InvalidModel: with its data it is beyond the 2 GB of a protobuf message.
    """
    if not model.embedded:
        target.write_bytes(source.read_bytes())
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
    for node in _nodes(proto):
        if node.domain not in allowed:
            raise InvalidModel(
                f"The model uses an operator of a custom domain: {node.domain}.{node.op_type}.",
                expected="operators of ai.onnx, ai.onnx.ml or com.microsoft",
                got=f"{node.domain}.{node.op_type}",
                remedy="Express it with standard operators; custom operator libraries aren't loaded.",
            )


def _nodes(proto: Any) -> Iterator[Any]:
    pending = [proto.graph.node, *(function.node for function in proto.functions)]
    while pending:
        for node in pending.pop():
            yield node
            for attribute in node.attribute:
                pending += [graph.node for graph in (attribute.g, *attribute.graphs) if graph.node]


def external_files(proto: Any, folder: Path) -> tuple[Path, ...]:
    """The files of the model's external data, in the order of their names.

    Raises:
        InvalidModel: one is missing, or lies outside `folder`.
    """
    locations: set[str] = set()
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            locations.update(entry.value for entry in tensor.external_data if entry.key == "location")
    files = []
    for location in sorted(locations):
        file = folder / location
        inside = "\\" not in location and file.resolve().is_relative_to(folder.resolve())
        if not inside or file.is_symlink() or not file.is_file():
            raise InvalidModel(
                "The model's external data isn't in its folder.",
                expected="a file beside the model",
                got=location[:200],
                remedy="Save it as one file: onnx.save_model(model, path, save_as_external_data=False).",
            )
        files.append(file)
    return tuple(files)


def _tensors(proto: Any) -> Iterator[Any]:
    graphs = [proto.graph]
    nodes = list(_nodes(proto))
    for node in nodes:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            graphs += [attribute.g, *attribute.graphs]
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)


def _tensor(entry: Any, kind: str) -> TensorSpec:
    tensor = entry.type.tensor_type
    datatype = _DATATYPES.get(onnx.TensorProto.DataType.Name(tensor.elem_type), "")
    if not entry.type.HasField("tensor_type") or not datatype:
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
