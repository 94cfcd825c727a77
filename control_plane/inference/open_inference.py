"""Open Inference Protocol (v2): an inference request's body as checked tensors, in JSON or with binary tensor data.

`open_inference_names.py` says which model answers, `open_inference_tensors.py` checks the tensors against it, and
`open_inference_answers.py` writes the answer.

Source: https://github.com/kserve/open-inference-protocol (`specification/protocol/inference_rest.md`) and Triton's
`docs/protocol/extension_binary_data.md`, `extension_schedule_policy.md`, `extension_parameters.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from control_plane.errors import FieldError, InvalidInput, MalformedRequest
from control_plane.inference.explanations import explain, is_at_non_finite, quote_non_finite
from control_plane.inference.requests import Covariate
from control_plane.inference.tensors import MAX_DIMENSIONS

_DEFAULT_PRIORITY = 3
_LOWEST_PRIORITY = 5
_LONGEST_TIMEOUT_S = 600.0
_NULL = b"null"

Parameters = dict[str, Any] | None
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Length = Annotated[int, Meta(ge=0, le=2**40)]


class _Tensor(msgspec.Struct, kw_only=True):
    name: Name
    shape: Annotated[list[Length], Meta(max_length=MAX_DIMENSIONS)]
    datatype: Name
    parameters: Parameters = None
    data: msgspec.Raw = msgspec.Raw(_NULL)


class _Wanted(msgspec.Struct, kw_only=True):
    name: Name
    parameters: Parameters = None


class _Body(msgspec.Struct, kw_only=True):
    """Members that aren't listed are ignored, as the protocol's other servers do."""

    inputs: Annotated[list[_Tensor], Meta(min_length=1, max_length=256)]
    outputs: Annotated[list[_Wanted], Meta(max_length=256)] | None = None
    id: Annotated[str, Meta(max_length=256)] | None = None
    parameters: Parameters = None


class _Options(msgspec.Struct, kw_only=True):
    """The request's parameters that mean something here; others are the client's own."""

    model_version: Name | None = None
    routing_key: Name | None = None
    covariate: Covariate | None = None
    experiment_id: Name | None = None
    priority: Annotated[int, Meta(ge=0)] | None = None
    timeout: Annotated[int, Meta(ge=0)] | None = None
    binary_data_output: bool | None = None
    sequence_id: int | str | None = None
    on_overload: Literal["reject", "degrade"] | None = None


class _InputOptions(msgspec.Struct, kw_only=True):
    binary_data_size: Length | None = None
    shared_memory_region: str | None = None


class _OutputOptions(msgspec.Struct, kw_only=True):
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None


_decoder = msgspec.json.Decoder(_Body)
_VALUES = {".on_overload": "'reject' or 'degrade'"}
_FIELDS = {
    "inputs": "an array of 1 to 256 tensors: name, shape, datatype, and data or parameters.binary_data_size",
    "outputs": "an array of the wanted outputs, each with its name",
    "id": "a string of at most 256 characters",
    "parameters": "an object",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WireTensor:
    """An input as it came. Exactly one of `json` and `binary` is there."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    json: bytes | None
    binary: memoryview | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedOutput:
    """An output to answer with, in binary or in JSON."""

    name: str
    is_binary: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """A decoded request for the model `name` of the URL; its tensors aren't checked against a model yet.

    `version` is None for what the name itself says. `outputs` is empty for all of them.
    """

    name: str
    version: str | None
    inputs: tuple[WireTensor, ...]
    outputs: tuple[WantedOutput, ...]
    is_binary_output: bool
    id: str | None
    routing_key: str | None
    covariate: float | None
    experiment_id: str | None
    priority: int
    timeout_s: float | None
    on_overload: Literal["reject", "degrade"] | None


def decode_infer(
    body: bytes, *, header_length: int | None, name: str, version: str | None = None
) -> InferRequest:
    """Decodes the body of an inference request.

    Args:
        body: JSON; with binary tensors JSON and then their data, in the order of the inputs.
        header_length: The JSON's length in bytes where binary data may follow.
        name: The model's name in the URL.
        version: The version in the URL.

    Raises:
        MalformedRequest: not JSON, or `header_length` isn't within the body.
        InvalidInput: a member is missing, wrong or not supported, or binary data is missing or left over.
    """
    if header_length is not None and not 0 < header_length <= len(body):
        raise MalformedRequest(
            "Inference-Header-Content-Length is not the length of the JSON at the body's start.",
            expected=f"1 to {len(body)}",
            got=str(header_length),
            remedy="Send the number of bytes of the JSON object, before the binary data.",
        )
    text = body if header_length is None else body[:header_length]
    decoded = _decode(text)
    options: _Options = _options(decoded.parameters, _Options, "parameters")
    if options.sequence_id not in (None, 0, ""):
        raise unsupported("parameters.sequence_id", "Sequences", "Send each request without sequence_id.")
    if version is not None and options.model_version not in (None, version):
        raise invalid(
            "parameters.model_version",
            "names another version than the URL",
            expected=version,
            got=str(options.model_version),
        )
    is_binary_output = bool(options.binary_data_output)
    return InferRequest(
        name=name,
        version=version if version is not None else options.model_version,
        inputs=_inputs(decoded.inputs, memoryview(body)[len(text) :]),
        outputs=_wanted(decoded.outputs or [], is_binary=is_binary_output),
        is_binary_output=is_binary_output,
        id=decoded.id,
        routing_key=options.routing_key,
        covariate=options.covariate,
        experiment_id=options.experiment_id,
        priority=min(options.priority or _DEFAULT_PRIORITY, _LOWEST_PRIORITY),
        timeout_s=min(options.timeout / 1e6, _LONGEST_TIMEOUT_S) if options.timeout else None,
        on_overload=options.on_overload,
    )


def _decode(text: bytes) -> _Body:
    try:
        return _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # JSON has no NaN, yet Python's json writes it: it is the sender's wrong value, not broken JSON.
        if is_at_non_finite(error, text):
            text = quote_non_finite(text)
            try:
                return _decoder.decode(text)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as second:
                raise explain(second, text, _FIELDS) from error
        raise explain(error, text, _FIELDS) from error


def _options(parameters: Parameters, kind: Any, path: str) -> Any:
    try:
        return msgspec.convert(parameters or {}, kind)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        inner = place.rstrip("`")
        if (values := _VALUES.get(inner)) is not None:
            got = text.removeprefix("Invalid enum value ").partition(", got ")[2] or text.rpartition(" ")[2]
            raise invalid(f"{path}{inner}", "is wrong", expected=values, got=got) from error
        raise InvalidInput(
            f"{path}{inner} is wrong: {text}.",
            errors=[FieldError(path=f"{path}{inner}", message=text)],
        ) from error


def _inputs(tensors: Sequence[_Tensor], binary: memoryview) -> tuple[WireTensor, ...]:
    start = 0
    inputs = []
    for tensor in tensors:
        path = f"inputs.{tensor.name[:80]}"
        options: _InputOptions = _options(tensor.parameters, _InputOptions, f"{path}.parameters")
        if options.shared_memory_region is not None:
            raise unsupported(f"{path}.parameters", "Shared memory", "Send the data in the body.")
        size = options.binary_data_size
        data = bytes(tensor.data)
        if (size is None) == (data == _NULL):
            raise invalid(
                path,
                "has no data" if size is None else "has its data twice",
                expected="either data, or parameters.binary_data_size",
                got="neither" if size is None else "both",
            )
        if size is not None and start + size > len(binary):
            raise invalid(
                f"{path}.parameters.binary_data_size",
                "is more than there is after the JSON",
                expected=f"at most {len(binary) - start} bytes",
                got=f"{size} bytes",
            )
        inputs.append(
            WireTensor(
                name=tensor.name,
                datatype=tensor.datatype,
                shape=tuple(tensor.shape),
                json=None if size is not None else data,
                binary=None if size is None else binary[start : start + size],
            )
        )
        start += size or 0
    if start != len(binary):
        raise invalid(
            "inputs",
            "leave binary data over",
            expected=f"{start} bytes after the JSON",
            got=f"{len(binary)} bytes",
        )
    return tuple(inputs)


def _wanted(outputs: Sequence[_Wanted], *, is_binary: bool) -> tuple[WantedOutput, ...]:
    wanted = []
    for output in outputs:
        path = f"outputs.{output.name[:80]}.parameters"
        options: _OutputOptions = _options(output.parameters, _OutputOptions, path)
        if options.classification:
            raise unsupported(
                f"{path}.classification",
                "Classification",
                "Ask for the tensor, and take its largest elements.",
            )
        if options.shared_memory_region is not None:
            raise unsupported(path, "Shared memory", "Take the data from the body.")
        binary = options.binary_data if options.binary_data is not None else is_binary
        wanted.append(WantedOutput(name=output.name, is_binary=binary))
    return tuple(wanted)


def invalid(path: str, fault: str, *, expected: str, got: str) -> InvalidInput:
    """The refusal of one member of the request."""
    return InvalidInput(
        f"{path} {fault}.",
        expected=expected,
        got=got,
        errors=[FieldError(path=path, message=f"{fault}: expected {expected}, got {got}")],
    )


def unsupported(path: str, what: str, remedy: str) -> InvalidInput:
    """The refusal of what the protocol has, and this server hasn't."""
    return InvalidInput(
        f"{what} can't be used here.",
        remedy=remedy,
        errors=[FieldError(path=path, message="is not supported")],
    )
