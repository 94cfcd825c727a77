"""What is counted and logged of a failed prediction."""

import pytest
import structlog.testing
from prometheus_client import REGISTRY

from control_plane.errors import (
    PROBLEMS,
    CacheFull,
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    ModelNotReady,
    QueueFull,
    ServingError,
    TritonUnavailable,
    UnknownModel,
)
from control_plane.inference.accounts import Failures, outcome_of
from control_plane.telemetry.logs import PREDICTION_FAILED

OUTCOMES = {"invalid", "overloaded", "deadline", "unavailable", "failed"}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InvalidInput("x"), "invalid"),
        (UnknownModel("x"), "invalid"),
        (QueueFull("x"), "overloaded"),
        (CacheFull("x"), "overloaded"),
        (DeadlineExceeded("x"), "deadline"),
        (TritonUnavailable("x"), "unavailable"),
        (ModelNotReady("x"), "unavailable"),
        (InferenceFailed("x"), "failed"),
        (ValueError("x"), "failed"),
    ],
)
def test_outcome_of(error: Exception, outcome: str) -> None:
    assert outcome_of(error) == outcome


@pytest.mark.parametrize("kind", PROBLEMS)
def test_every_error_has_an_outcome(kind: type[ServingError]) -> None:
    assert outcome_of(kind("x")) in OUTCOMES


def test_failure_is_counted_and_logged_once_with_its_slug() -> None:
    labels = {"model_type": "m", "version": "v1", "error": "inference-failed"}
    before = REGISTRY.get_sample_value("prediction_errors_total", labels) or 0
    with structlog.testing.capture_logs() as logs:
        Failures().failed(InferenceFailed("broke" * 1000), model_type="m", version="v1", request_id="r")
    assert REGISTRY.get_sample_value("prediction_errors_total", labels) == before + 1
    assert len(logs) == 1
    entry = logs[0]
    assert (entry["event"], entry["error"], entry["request_id"]) == (
        PREDICTION_FAILED,
        "inference-failed",
        "r",
    )
    assert entry["log_level"] == "error"
    assert len(entry["detail"]) == 500


def test_senders_fault_is_a_warning() -> None:
    with structlog.testing.capture_logs() as logs:
        Failures().failed(InvalidInput("x"), model_type="m", version="v1", request_id=None)
    assert logs[0]["log_level"] == "warning"


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        (QueueFull, "warning"), (CacheFull, "warning"), (DeadlineExceeded, "warning"), (TritonUnavailable, "error"),
        (ModelNotReady, "error"), (InferenceFailed, "error"),
    ],
)  # fmt: skip
def test_overload_and_missed_deadlines_are_warnings(kind: type[ServingError], level: str) -> None:
    with structlog.testing.capture_logs() as logs:
        Failures().failed(kind("x"), model_type="m", version="v1", request_id=None)
    assert [entry["log_level"] for entry in logs] == [level]


def test_overload_is_logged_once_a_second_with_the_number_refused() -> None:
    time = [100.0]
    failures = Failures(clock=lambda: time[0])
    with structlog.testing.capture_logs() as logs:
        for _ in range(500):
            failures.failed(QueueFull("x"), model_type="m", version="v1", request_id=None)
        time[0] += 1.5
        failures.failed(QueueFull("x"), model_type="m", version="v1", request_id=None)
    assert [entry["refused"] for entry in logs] == [1, 500]
