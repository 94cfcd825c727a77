"""`python -m exporters run`: one export for a program, by the protocol of `exporters.protocol`.

Standard output carries events only: whatever a library prints goes to standard error. The process limits itself
before it imports anything heavy, and cleans up on SIGTERM.
"""

import contextlib
import os
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

from exporters.errors import ExportError, ExportFailed
from exporters.limits import Limits, apply_limits, translated_limits
from exporters.protocol import MAX_REQUEST_BYTES, decode_request, error_event, result_event, stage_event


def run(limits: Limits, *, max_bytes: int) -> int:
    """Reads a request from standard input, carries it out, and reports by events on standard output.

    Args:
        limits: of this process.
        max_bytes: limit on the size of the file to export.

    Returns:
        The exit code: 0, or the error's.
    """
    signal.signal(signal.SIGTERM, _on_terminate)
    apply_limits(limits)
    sys.stdout.flush()
    events = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        with translated_limits(limits):
            request = decode_request(sys.stdin.buffer.read(MAX_REQUEST_BYTES + 1))
            from exporters.pipeline import export  # noqa: PLC0415 - after the limits

            result = export(
                request, on_stage=lambda stage: _send(events, stage_event(stage)), max_bytes=max_bytes
            )
    except ExportError as error:
        _send(events, error_event(error))
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the boundary: logged here, and reported as an event
        traceback.print_exc()
        failure = ExportFailed(
            f"The export failed unexpectedly ({type(error).__name__}).",
            remedy="The exporter's log has the details; please report it.",
        )
        _send(events, error_event(failure))
        return failure.exit_code
    _send(events, result_event(result.status, result.card))
    return 0


def _send(descriptor: int, line: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more; the export is as good without
        while line:
            line = line[os.write(descriptor, line) :]


def _on_terminate(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    raise SystemExit(128 + number)
