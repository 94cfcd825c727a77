"""Limits of memory and processor time that an export process sets on itself, before it imports anything heavy.

RLIMIT_DATA, not RLIMIT_AS: it counts private writable memory (229 MB once torch and ONNX Runtime are imported) and
not the mapped libraries (790 MB; tens of GB with CUDA). Beyond it allocations fail, and the export ends in an error
event. Source: getrlimit(2).
"""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from exporters.errors import ExportError, ExportFailed

MIN_MEMORY_MB = 512
_GRACE_S = 5
_MEMORY_PHRASES = (
    "can't allocate memory",
    "bad_alloc",
    "Cannot allocate memory",
    "Failed to allocate memory",
)


class CPULimitReached(BaseException):
    """Raised in the main thread on SIGXCPU. Not an Exception: nothing on the way up may swallow it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an export may use; None for no limit."""

    memory_mb: int | None = None
    cpu_s: int | None = None


DEFAULT_LIMITS = Limits(memory_mb=8192, cpu_s=3600)
"""Of the command line's commands, whose files may be as hostile as those of `run`."""


def apply_limits(limits: Limits) -> None:
    """Sets the limits on this process. A lower limit already in force stays."""
    if limits.memory_mb is not None:
        _lower(resource.RLIMIT_DATA, limits.memory_mb << 20, limits.memory_mb << 20)
    if limits.cpu_s is not None:
        signal.signal(signal.SIGXCPU, _on_cpu_limit)
        # past the hard limit the kernel kills: torch may be in a long call that returns to no signal handler
        _lower(resource.RLIMIT_CPU, limits.cpu_s, limits.cpu_s + _GRACE_S)
    # a full file system then fails the write with EFBIG instead of killing the process
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _lower(resource.RLIMIT_CORE, 0, 0)


def _lower(kind: int, soft: int, hard: int) -> None:
    current_soft, current_hard = resource.getrlimit(kind)
    new_hard = hard if current_hard == resource.RLIM_INFINITY else min(hard, current_hard)
    new_soft = min(soft, new_hard)
    if current_soft != resource.RLIM_INFINITY:
        new_soft = min(new_soft, current_soft)
    resource.setrlimit(kind, (new_soft, new_hard))


def _on_cpu_limit(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    signal.signal(number, signal.SIG_IGN)  # it comes again each second, also into the exit
    raise CPULimitReached


@contextmanager
def translated_limits(limits: Limits) -> Iterator[None]:
    """Turns running into a limit into an export error. `_MEMORY_PHRASES` are torch's, oneDNN's and ONNX Runtime's.

    Raises:
        ExportFailed: out of memory, or of processor time.
    """
    try:
        yield
    except CPULimitReached as error:
        raise ExportFailed(
            "The export took more processor time than it may.",
            expected=f"at most {limits.cpu_s} s",
            remedy="Raise the exporter's limit on processor time, or export a smaller model.",
        ) from error
    except MemoryError as error:
        raise _out_of_memory(limits) from error
    except ExportError as error:
        cause = str(error.__cause__ or error)
        if any(phrase in cause for phrase in _MEMORY_PHRASES):
            raise _out_of_memory(limits) from error
        raise
    except RuntimeError as error:  # torch and ONNX Runtime have no class of their own for it
        if any(phrase in str(error) for phrase in _MEMORY_PHRASES):
            raise _out_of_memory(limits) from error
        raise


def _out_of_memory(limits: Limits) -> ExportFailed:
    return ExportFailed(
        "The export needs more memory than there is.",
        expected=f"at most {limits.memory_mb} MB" if limits.memory_mb else None,
        remedy="Raise the exporter's memory limit, or export a smaller model.",
    )
