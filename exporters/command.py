"""What the command line's exporting commands share: configuration from options, progress, and the closing line."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from exporters.errors import InvalidConfig
from exporters.protocol import STAGE_PROGRESS, ExportRequest, OnStage, Stage, Status


def configuration_of(file: Path | None, settings: list[str] | None) -> dict[str, Any] | None:
    """The request's configuration, from a JSON file and `--set KEY=VALUE`; None without either.

    Raises:
        InvalidConfig: the file isn't a JSON object, or a setting isn't KEY=VALUE.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            loaded = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidConfig(f"{file} can't be read as JSON.", got=str(error)[:200]) from error
        if not isinstance(loaded, dict):
            raise InvalidConfig(f"{file} doesn't hold a JSON object.", got=type(loaded).__name__)
        values |= loaded
    for setting in settings or ():
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise InvalidConfig(
                "--set isn't KEY=VALUE.", expected="e.g. --set sequence_length=60", got=setting
            )
        try:
            values[key] = json.loads(text)
        except (ValueError, RecursionError):
            values[key] = text
    return values if file is not None or settings else None


def run_export(request: ExportRequest) -> None:
    """Exports, showing the stages, and prints how it ended.

    Raises:
        ExportError: it failed; nothing was published.
    """
    from exporters.pipeline import export  # noqa: PLC0415 - keeps --help fast

    with _progress(request.triton_model) as on_stage:
        result = export(request, on_stage=on_stage)
    card = result.card
    for warning in card.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if result.status is Status.UNCHANGED:
        typer.echo(f"{card.triton_model} is published already, with the same content.")
        return
    error = card.verification.max_relative_error
    verified = "tried" if error is None else f"largest relative error {error:.1e}"
    typer.echo(f"Published {card.triton_model}: {card.format}, {card.size_bytes / 1e6:.1f} MB, {verified}.")


@contextmanager
def _progress(name: str) -> Iterator[OnStage]:
    """Shows the stages on standard error: a bar on a terminal, a line each elsewhere."""
    if not sys.stderr.isatty():
        yield lambda stage: typer.echo(f"{name}: {stage}", err=True)
        return
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=1.0)

        def show(stage: Stage) -> None:
            progress.update(task, description=f"{name}: {stage}", completed=STAGE_PROGRESS[stage])

        yield show
