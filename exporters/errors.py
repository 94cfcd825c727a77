"""What can go wrong in an export, and how each is reported.

ExportError
├── UnsafeCheckpoint        unsafe_checkpoint        10  would run code when unpickled
├── CorruptCheckpoint       corrupt_checkpoint       11  truncated, wrong type of file, zip bomb
├── UnsupportedCheckpoint   unsupported_checkpoint   12  readable, but not a model we serve
├── FileTooLarge            file_too_large           13
├── ConfigMismatch          config_mismatch          14  checkpoint and configuration disagree
├── InvalidConfig           invalid_config           15  unknown key, wrong type or range
├── InvalidModel            invalid_model            16  a ready-made model that does not fit
├── VerificationFailed      verification_failed      17  exported graph differs from torch
├── VersionConflict         version_conflict         18  same version, other content
├── ExportFailed            export_failed            19  the writer failed
└── NotEnoughSpace          not_enough_space         20

Each carries `code` (stable, for programs) and `exit_code` (of the process). 2 is a usage error.
"""

from typing import ClassVar

MAX_TEXT = 1000


def shown(name: str) -> str:
    """A name out of a file as errors quote it: at most 80 characters, all of them ASCII."""
    return ascii(name[:80])[:80]


def _sendable(text: str) -> str:
    """Cut to what an event may carry, with surrogates escaped: UTF-8 has no form for them."""
    return text[:MAX_TEXT].encode("utf-8", "backslashreplace").decode()[:MAX_TEXT]


class ExportError(Exception):
    """Root of the tree. `expected`, `got` and `remedy` are for people; `code` is for programs."""

    code: ClassVar[str] = "export_failed"
    exit_code: ClassVar[int] = 19

    def __init__(
        self, detail: str, *, expected: str | None = None, got: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(_sendable(detail))
        self.detail = _sendable(detail)
        self.expected = None if expected is None else _sendable(expected)
        self.got = None if got is None else _sendable(got)
        self.remedy = None if remedy is None else _sendable(remedy)


class UnsafeCheckpoint(ExportError):
    """Reading the file would run code from it; the detail names the refused global."""

    code = "unsafe_checkpoint"
    exit_code = 10


class CorruptCheckpoint(ExportError):
    """Not a readable checkpoint: truncated, of another type, or a decompression bomb."""

    code = "corrupt_checkpoint"
    exit_code = 11


class UnsupportedCheckpoint(ExportError):
    """Readable, but not of a kind that is served."""

    code = "unsupported_checkpoint"
    exit_code = 12


class FileTooLarge(ExportError):
    """Beyond the limit on the size of a checkpoint."""

    code = "file_too_large"
    exit_code = 13


class ConfigMismatch(ExportError):
    """The checkpoint's tensors and the configuration disagree; both are named."""

    code = "config_mismatch"
    exit_code = 14


class InvalidConfig(ExportError):
    """The configuration has an unknown key, or a value of the wrong type or range."""

    code = "invalid_config"
    exit_code = 15


class InvalidModel(ExportError):
    """A ready-made ONNX or TorchScript file that does not load or does not fit its type."""

    code = "invalid_model"
    exit_code = 16


class VerificationFailed(ExportError):
    """The exported graph's outputs differ from torch's by more than the tolerance."""

    code = "verification_failed"
    exit_code = 17


class VersionConflict(ExportError):
    """The version is already published with other content, and overwriting was not asked for."""

    code = "version_conflict"
    exit_code = 18


class ExportFailed(ExportError):
    """The writer could not express the model in the wanted format."""

    code = "export_failed"
    exit_code = 19


class NotEnoughSpace(ExportError):
    """The file system has no room for the artefact."""

    code = "not_enough_space"
    exit_code = 20
