"""What goes in and out of an export process: one JSON request on stdin, JSON lines of events on stdout.

Says nothing of how the export is done: `exporters.pipeline` does it, and takes the same `ExportRequest` from the CLI.
"""

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec

from exporters.card import Card
from exporters.errors import ExportError, InvalidConfig
from exporters.spec import Device, ModelFormat

MAX_REQUEST_BYTES = 8 << 20
VERSION_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"
MODEL_TYPE_PATTERN = r"[a-z][a-z0-9_]{0,63}"
MAX_BATCH_SIZE = 4096
MAX_INSTANCES = 64


class Stage(StrEnum):
    """Stages of an export, in order."""

    READING = "reading"
    BUILDING = "building"
    EXPORTING = "exporting"
    VERIFYING = "verifying"
    PUBLISHING = "publishing"


STAGE_PROGRESS = {
    Stage.READING: 0.0,
    Stage.BUILDING: 0.2,
    Stage.EXPORTING: 0.4,
    Stage.VERIFYING: 0.6,
    Stage.PUBLISHING: 0.95,
}
"""Progress of the whole export when a stage begins, by the time that each takes."""

OnStage = Callable[[Stage], None]


class Status(StrEnum):
    """Outcome of an export that didn't fail."""

    PUBLISHED = "published"
    UNCHANGED = "unchanged"


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to export, and how. None takes the default."""

    model_type: str
    version: str
    file_path: str
    repository: str
    config: dict[str, Any] | None = None
    format: ModelFormat | None = None
    device: Device | None = None
    overwrite: bool = False
    normalization: dict[str, Any] | None = None
    max_batch_size: int | None = None
    instance_count: int | None = None
    gpus: tuple[int, ...] = ()
    tensorrt: bool = False

    @property
    def triton_model(self) -> str:
        """Triton's name of the version, also its folder's."""
        return f"{self.model_type}-{self.version}"


def check_request(request: ExportRequest) -> None:
    """Checks names and ranges.

    Raises:
        InvalidConfig: names the field.
    """
    rules: list[tuple[str, object, bool, str]] = [
        (
            "model_type",
            request.model_type,
            _matches(MODEL_TYPE_PATTERN, request.model_type),
            MODEL_TYPE_PATTERN,
        ),
        ("version", request.version, _matches(VERSION_PATTERN, request.version), VERSION_PATTERN),
        (
            "max_batch_size",
            request.max_batch_size,
            request.max_batch_size is None or 1 <= request.max_batch_size <= MAX_BATCH_SIZE,
            f"1 to {MAX_BATCH_SIZE}",
        ),
        (
            "instance_count",
            request.instance_count,
            request.instance_count is None or 1 <= request.instance_count <= MAX_INSTANCES,
            f"1 to {MAX_INSTANCES}",
        ),
        ("gpus", request.gpus, all(0 <= gpu < 1024 for gpu in request.gpus), "indices of GPUs"),
        ("file_path", request.file_path, "\x00" not in request.file_path, "a path"),
        ("repository", request.repository, "\x00" not in request.repository, "a path"),
    ]
    for field, value, fits, expected in rules:
        if not fits:
            raise InvalidConfig(
                f"{field} isn't valid.", expected=expected, got=repr(value)[:100], remedy=f"Correct {field}."
            )
    wants_gpu = request.device is Device.GPU
    if (request.gpus or request.tensorrt) and not wants_gpu:
        raise InvalidConfig(
            "gpus and tensorrt are only for models placed on GPUs.",
            expected="device gpu",
            got=f"device {request.device or Device.AUTO}",
            remedy="Add device gpu, or leave them out.",
        )
    if request.tensorrt and request.format is ModelFormat.TORCHSCRIPT:
        raise InvalidConfig("tensorrt is for ONNX models.", expected="format onnx", got="format torchscript")


def _matches(pattern: str, value: str) -> bool:
    return re.fullmatch(pattern, value) is not None


def decode_request(data: bytes) -> ExportRequest:
    """Reads a request.

    Raises:
        InvalidConfig: not JSON, a key missing, unknown or of the wrong type, a value out of range.
    """
    if len(data) > MAX_REQUEST_BYTES:
        raise InvalidConfig("The request is too long.", expected=f"at most {MAX_REQUEST_BYTES:,} bytes")
    try:
        request = msgspec.json.decode(data, type=ExportRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidConfig(
            "The request isn't valid.",
            expected="one JSON object: model_type, version, file_path, repository; see docs/exporters.md",
            got=str(error)[:300],
        ) from error
    check_request(request)
    return request


def stage_event(stage: Stage) -> bytes:
    """The line that says a stage begins."""
    return _line({"event": "stage", "stage": stage, "progress": STAGE_PROGRESS[stage]})


def result_event(status: Status, card: Card) -> bytes:
    """The line of an export that succeeded."""
    return _line({"event": "result", "status": status, "triton_model": card.triton_model, "card": card})


def error_event(error: ExportError) -> bytes:
    """The line of an export that failed."""
    return _line(
        {
            "event": "error",
            "code": error.code,
            "detail": error.detail,
            "expected": error.expected,
            "got": error.got,
            "remedy": error.remedy,
        }
    )


def _line(event: dict[str, Any]) -> bytes:
    return msgspec.json.encode(event) + b"\n"
