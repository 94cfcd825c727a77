"""Structured logs on standard error: JSON lines, or for people.

`request_id`, `model_type` and `version` come from contextvars where they were bound. The documented phrases (`Model
loaded successfully`, `Prediction failed`, `Cache miss`, `A/B test assignment`) are the event's text, since alerts look
for them; all other events are snake_case. Never log keys, environments or payloads.
"""

import logging
import sys
from typing import Literal

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

MODEL_LOADED = "Model loaded successfully"
PREDICTION_FAILED = "Prediction failed"
CACHE_MISS = "Cache miss"
AB_TEST_ASSIGNMENT = "A/B test assignment"


def configure_logs(*, debug: bool, log_format: Literal["json", "console"], is_quiet: bool = False) -> None:
    """Sets structlog up for this process, and sends the standard library's warnings the same way.

    Args:
        debug: Everything.
        log_format: For machines, or for people.
        is_quiet: Warnings and errors only: for commands, whose results are for people.
    """
    level = logging.DEBUG if debug else logging.WARNING if is_quiet else logging.INFO
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer(serializer=_dumps)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=[*shared, _name_of_logger], processor=renderer)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def _dumps(value: object, **_: object) -> str:
    return orjson.dumps(value, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


def _name_of_logger(logger: WrappedLogger, _: str, event: EventDict) -> EventDict:
    event["logger"] = getattr(logger, "name", None)
    return event
