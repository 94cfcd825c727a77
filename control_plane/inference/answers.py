"""The answer of POST /predict, and its JSON."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

from control_plane.errors import ServingError
from control_plane.inference.tensors import Array

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictAnswer:
    """The fields of docs/api.md, in the order in which they are written; arrays are C-contiguous."""

    request_id: str
    model_type: str
    model_version: str
    predictions: dict[str, Any]
    uncertainty: dict[str, Any] | None
    confidence_scores: Array | None
    processing_time_ms: float
    timestamp: str
    ab_test_group: str | None
    cached: bool = False
    degraded: str | None = None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedPrediction:
    """A member of a batch that failed, alone."""

    request_id: str
    error: ServingError


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswer:
    """The results of POST /predict/batch, in the order of its requests."""

    batch_id: str
    results: tuple[PredictAnswer | FailedPrediction, ...]
    total_processing_time_ms: float
    timestamp: str


def timestamp_now() -> str:
    """RFC 3339 in UTC, with milliseconds and Z."""
    second, ns = divmod(time.time_ns(), 1_000_000_000)
    return f"{_to_the_second(second)}.{ns // 1_000_000:03d}Z"


@lru_cache(maxsize=1)
def _to_the_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def to_json(answer: Any) -> bytes:
    """JSON of an answer; float32 in the fewest digits that give it back, NaN as null."""
    return orjson.dumps(answer, option=_OPTIONS)
