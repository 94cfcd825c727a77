"""Counts and logs each prediction once: by outcome, model and version, with labels that stay bounded."""

import time
from collections.abc import Callable
from http import HTTPStatus

import structlog

from control_plane.errors import CacheFull, DeadlineExceeded, Overloaded, QueueFull, ServingError, problem_of
from control_plane.telemetry import metrics
from control_plane.telemetry.logs import PREDICTION_FAILED

log = structlog.get_logger()

UNKNOWN = "unknown"
_OVERLOADED = (QueueFull, Overloaded, CacheFull)
_LOGGED_TOGETHER = (*_OVERLOADED, DeadlineExceeded)
_OVERLOAD_LOG_INTERVAL_S = 1.0
_LONGEST_DETAIL = 500


class ModelAccounts:
    """The counters of one version, bound to their labels once."""

    def __init__(self, model_type: str, version: str) -> None:
        self._answered = metrics.PREDICTION_REQUESTS.labels(model_type, version, "ok")
        self._latency_s = metrics.PREDICTION_LATENCY.labels(model_type, version)
        self._rows = metrics.PREDICTION_ROWS.labels(model_type, version)

    def answered(self, *, rows: int, latency_s: float) -> None:
        """One more answer."""
        self._answered.inc()
        self._latency_s.observe(latency_s)
        self._rows.inc(rows)


class Failures:
    """Counts and logs what failed. Overload and its missed deadlines are warnings, logged at most
    once a second, with the number that the line stands for."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._overload_logged = float("-inf")
        self._unlogged = 0

    def failed(self, error: Exception, *, model_type: str, version: str, request_id: str | None) -> None:
        """One prediction failed with `error`."""
        slug = problem_of(error).slug if isinstance(error, ServingError) else "internal"
        metrics.PREDICTION_REQUESTS.labels(model_type, version, outcome_of(error)).inc()
        metrics.PREDICTION_ERRORS.labels(model_type, version, slug).inc()
        facts: dict[str, str | int | None] = {
            "error": slug,
            "model_type": model_type,
            "version": version,
            "request_id": request_id,
        }
        if isinstance(error, _LOGGED_TOGETHER):
            self._unlogged += 1
            if self._clock() - self._overload_logged < _OVERLOAD_LOG_INTERVAL_S:
                return
            facts["refused"] = self._unlogged
            self._overload_logged, self._unlogged = self._clock(), 0
        if not isinstance(error, ServingError):
            log.error(PREDICTION_FAILED, detail=type(error).__name__, **facts)
        elif (
            not isinstance(error, _LOGGED_TOGETHER)
            and problem_of(error).status >= HTTPStatus.INTERNAL_SERVER_ERROR
        ):
            log.error(PREDICTION_FAILED, detail=error.detail[:_LONGEST_DETAIL], **facts)
        else:
            log.warning(PREDICTION_FAILED, detail=error.detail[:_LONGEST_DETAIL], **facts)

    @staticmethod
    def cancelled(*, model_type: str, version: str) -> None:
        """The client of one prediction has gone."""
        metrics.PREDICTION_REQUESTS.labels(model_type, version, "cancelled").inc()


def outcome_of(error: Exception) -> str:
    """The outcome's label: invalid, overloaded, deadline, unavailable or failed."""
    if not isinstance(error, ServingError):
        return "failed"
    if isinstance(error, _OVERLOADED):
        return "overloaded"
    if isinstance(error, DeadlineExceeded):
        return "deadline"
    status = problem_of(error).status
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return "unavailable"
    return "invalid" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "failed"
