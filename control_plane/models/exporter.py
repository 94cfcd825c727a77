"""Runs the exporter: a process of its own, with limits of time and memory, that turns a checkpoint into a version.

Speaks the exporters' protocol (one JSON request on standard input, JSON lines on standard output) and turns its errors
into ours. The process gets no secrets, dies with this worker, and is killed with all its children when its time is up.
"""

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import structlog

from control_plane.errors import (
    ExportRejected,
    ModelLoadFailed,
    PayloadTooLarge,
    ServiceUnavailable,
    ServingError,
    VersionConflict,
)

log = structlog.get_logger()

_LONGEST_LINE_BYTES = 64 * 1024 * 1024
_TERMINATE_S = 3.0
_LOG_TAIL_LINES = 40
# PR_SET_PDEATHSIG is 1. A program of its own sets it, since Python code between fork and exec is not safe beside
# threads. The second test is for a parent that died before the first line ran.
_TIE_TO_PARENT = (
    "import ctypes, os, signal, sys; "
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


class ExportStatus(StrEnum):
    """Outcome of an export that did not fail."""

    PUBLISHED = "published"
    UNCHANGED = "unchanged"


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The exporters' request; see their protocol. None takes their default."""

    model_type: str
    version: str
    file_path: str
    repository: str
    config: dict[str, Any] | None = None
    format: str | None = None
    device: str | None = None
    overwrite: bool = False
    normalization: dict[str, Any] | None = None
    max_batch_size: int | None = None
    instance_count: int | None = None


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    event: str
    stage: str = ""
    progress: float = 0.0
    status: ExportStatus | None = None
    code: str = ""
    detail: str = ""
    expected: str | None = None
    got: str | None = None
    remedy: str | None = None


_decode_event = msgspec.json.Decoder(_Event).decode
OnStage = Callable[[str, float], None]

# The exporter's codes; all others mean that the file or its configuration was refused.
_ERRORS: dict[str, type[ServingError]] = {
    "version_conflict": VersionConflict,
    "file_too_large": PayloadTooLarge,
    "not_enough_space": ServiceUnavailable,
    "export_failed": ModelLoadFailed,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportLimits:
    """What one export may use, and how many run at once in this worker."""

    timeout_s: float
    memory_mb: int
    concurrent: int = 1


class Exporter:
    """Runs exports. `command` is what is run in place of `python -m exporters run`, for tests."""

    def __init__(self, limits: ExportLimits, *, command: tuple[str, ...] | None = None) -> None:
        self._limits = limits
        self._command = command
        self._turn = asyncio.Semaphore(limits.concurrent)

    async def export(self, request: ExportRequest, *, on_stage: OnStage) -> ExportStatus:
        """Runs one export; waits for its turn first.

        Args:
            request: What to export.
            on_stage: Called with each stage and its progress (0 to 1).

        Raises:
            ExportRejected: the file or its configuration was refused, or the export took too long.
            VersionConflict: the version exists with other content.
            PayloadTooLarge: the file is beyond the exporter's limit.
            ModelLoadFailed: the exporter itself failed.
            ServiceUnavailable: no disk space, or no exporter is installed here.
        """
        if self._command is None and find_spec("exporters") is None:
            raise ServiceUnavailable(
                "No exporter is installed on this host, so new versions cannot be made here.",
                remedy="Install the `exporters` extra, or export elsewhere into the same model repository.",
            )
        async with self._turn:
            return await self._run(request, on_stage)

    async def _run(self, request: ExportRequest, on_stage: OnStage) -> ExportStatus:
        command = self._command or (
            sys.executable, "-m", "exporters", "run", "--memory-limit-mb", str(self._limits.memory_mb),
        )  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-c", _TIE_TO_PARENT, str(os.getpid()), *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(),
            start_new_session=True,
            limit=_LONGEST_LINE_BYTES,
        )  # fmt: skip
        tail: deque[str] = deque(maxlen=_LOG_TAIL_LINES)
        name = f"{request.model_type}-{request.version}"
        log.info("export_started", model=name, pid=process.pid)
        reader = asyncio.create_task(_read_log(process, tail))
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                last = await _converse(process, request, on_stage)
                code = await process.wait()
        except TimeoutError as error:
            log.warning("export_timed_out", model=name, timeout_s=self._limits.timeout_s)
            raise ExportRejected(
                f"The export took longer than {self._limits.timeout_s:g} s and was stopped.",
                remedy="Raise models.export_timeout_s, or export a smaller model.",
                facts={"code": "export_timeout"},
            ) from error
        finally:
            await _end(process)
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader
        return _outcome(last, code, name, tail)


async def _converse(
    process: asyncio.subprocess.Process, request: ExportRequest, on_stage: OnStage
) -> _Event | None:
    assert process.stdin is not None  # noqa: S101  both are pipes
    assert process.stdout is not None  # noqa: S101
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(msgspec.json.encode(request))
        await process.stdin.drain()
    process.stdin.close()
    last: _Event | None = None
    while line := await process.stdout.readline():
        try:
            event = _decode_event(line)
        except msgspec.MsgspecError:
            log.warning("export_line_not_understood", bytes=len(line))
            continue
        if event.event == "stage":
            on_stage(event.stage, event.progress)
        else:
            last = event
    return last


async def _read_log(process: asyncio.subprocess.Process, tail: deque[str]) -> None:
    assert process.stderr is not None  # noqa: S101  a pipe
    while chunk := await process.stderr.read(65536):
        for line in chunk.decode("utf-8", "replace").splitlines():
            if line.strip():
                tail.append(line[:500])
                log.debug("export_log", line=line[:500])


async def _end(process: asyncio.subprocess.Process) -> None:
    """Stops the process and all its children, if any of them still runs."""
    for number, patience_s in ((signal.SIGTERM, _TERMINATE_S), (signal.SIGKILL, _TERMINATE_S)):
        if process.returncode is not None:
            break
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await process.wait()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _outcome(last: _Event | None, code: int, name: str, tail: deque[str]) -> ExportStatus:
    if last is not None and last.event == "result" and last.status is not None and code == 0:
        log.info("export_finished", model=name, status=last.status.value)
        return last.status
    if last is not None and last.event == "error":
        log.warning("export_failed", model=name, code=last.code, detail=last.detail)
        raise _ERRORS.get(last.code, ExportRejected)(
            last.detail,
            expected=last.expected,
            got=last.got,
            remedy=last.remedy,
            facts={"code": last.code},
        )
    log.error("export_crashed", model=name, exit_code=code, log_tail=list(tail))
    cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    raise ModelLoadFailed(
        f"The exporter ended without an answer ({cause}).",
        remedy="The log has its last lines; out of memory is the usual cause (models.export_memory_limit_mb).",
        facts={"code": "export_crashed"},
    )


def _environment() -> dict[str, str]:
    """Enough to run Python, and nothing of ours: this process's environment may hold passwords."""
    return {
        "PATH": os.defpath,
        "HOME": str(Path.home()),
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(str(Path(entry or ".").absolute()) for entry in sys.path),
        "PYTHONUNBUFFERED": "1",
    }
