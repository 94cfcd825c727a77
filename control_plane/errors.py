"""The domain's exceptions, and the one table that gives each its place in RFC 9457 problem details.

ServingError
├── MalformedRequest            400  not JSON, not an Arrow stream, not .npy
├── TooManyRequestsInBatch      400  over 100 requests in one batch
├── PathNotAllowed              403  a file outside the model registry
├── NotFound                    404
│   ├── UnknownModel                 no such model type
│   ├── UnknownVersion               no such version or alias of a known type
│   ├── UnknownAlias
│   ├── UnknownExperiment
│   ├── UnknownJob
│   ├── UnknownRequest               no decision is kept under this request id
│   └── FileMissing                  nothing at the given file_path
├── Conflict                    409
│   ├── VersionConflict              same version, other content
│   ├── ModelInUse                   in use by requests or an experiment
│   ├── FeedbackConflict             other feedback was given to the request before
│   ├── EnsembleChanged              an ensemble changed again and again while it was to be changed
│   └── ExperimentConflict           the id is taken, or the experiment can't do that now
├── FeedbackExpired             410  the request is older than feedback is taken for
├── PayloadTooLarge             413
├── UnsupportedMediaType        415  a body of a type that is not read here
├── InvalidInput                422  wrong shape, type or value
│   └── ExportRejected               the exporter refused the file or its configuration
├── ServiceUnavailable          503  with Retry-After
│   ├── QueueFull                    the dispatcher's bounded queue is full
│   ├── CacheFull                    every loaded version is in use
│   ├── TritonUnavailable            Triton is down or does not answer
│   ├── RedisUnavailable             a change needs Redis, which is down
│   ├── ModelNotReady                Triton does not hold the version (repaired by a load)
│   └── ShuttingDown
├── DeadlineExceeded            504
└── InferenceFailed             500  Triton computed and failed
    └── ModelLoadFailed              Triton could not load a published version

The classes know facts (expected, got, remedy), not HTTP; `PROBLEMS` maps them. Routers raise, and never build an
error answer. Entries for people are in docs/errors.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """One offending field: `path` as in `data[0][3]`, and what is wrong with it."""

    path: str
    message: str


class ServingError(Exception):
    """Root of the tree.

    Args:
        detail: One or two sentences for a person.
        expected: What would have been right.
        got: What came.
        remedy: What to do about it.
        errors: The offending fields, where the request has several.
        facts: Further members of the problem document (JSON-serialisable).
    """

    retry_after_s: float | None = None

    def __init__(
        self,
        detail: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        remedy: str | None = None,
        errors: Sequence[FieldError] = (),
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.expected = expected
        self.got = got
        self.remedy = remedy
        self.errors = tuple(errors)
        self.facts = facts or {}


class MalformedRequest(ServingError):
    """The body cannot be parsed at all."""


class TooManyRequestsInBatch(ServingError):
    """A batch holds more requests than the contract allows."""


class PathNotAllowed(ServingError):
    """A file path leads outside the model registry, directly or through a link."""


class NotFound(ServingError):
    """Something named in the request does not exist."""


class UnknownModel(NotFound):
    """No such model type."""


class UnknownVersion(NotFound):
    """The type is known, the version or alias is not."""


class UnknownAlias(NotFound):
    """No such alias of the model type."""


class UnknownExperiment(NotFound):
    """No such experiment."""


class UnknownJob(NotFound):
    """No such load job, or it was forgotten."""


class UnknownRequest(NotFound):
    """No decision is kept under this request id."""


class FileMissing(NotFound):
    """Nothing lies at the given file path."""


class Conflict(ServingError):
    """The request contradicts the present state."""


class VersionConflict(Conflict):
    """The version exists with other content."""


class ModelInUse(Conflict):
    """The version is needed by something that runs."""


class FeedbackConflict(Conflict):
    """Other feedback was given to the request before."""


class EnsembleChanged(Conflict):
    """The ensemble changed meanwhile, as often as it was tried."""


class ExperimentConflict(Conflict):
    """The experiment's id is taken, or what is asked of it can't be done now."""


class FeedbackExpired(ServingError):
    """The request is older than feedback is taken for."""


class PayloadTooLarge(ServingError):
    """The body is larger than the configured limit."""


class UnsupportedMediaType(ServingError):
    """The body's content type is not one that is read here."""


class InvalidInput(ServingError):
    """A field has the wrong type, shape or value."""


class ExportRejected(InvalidInput):
    """The exporter refused the file or its configuration; `facts["code"]` is the exporter's code."""


class ServiceUnavailable(ServingError):
    """Passing: try again after `retry_after_s` seconds."""

    retry_after_s = 1.0


class QueueFull(ServiceUnavailable):
    """The dispatcher's queue for this model is at its bound."""


class Overloaded(ServiceUnavailable):
    """What waits already takes longer than the request has; `retry_after_s` is when it would have had a chance."""


class CacheFull(ServiceUnavailable):
    """Every loaded version is in use, so none can make room."""

    retry_after_s = 2.0


class TritonUnavailable(ServiceUnavailable):
    """Triton is down, restarting, or does not answer."""

    retry_after_s = 2.0


class RedisUnavailable(ServiceUnavailable):
    """The operation changes shared state, and Redis does not answer."""

    retry_after_s = 2.0


class ModelNotReady(ServiceUnavailable):
    """Triton does not hold the version (any more); loading it repairs that."""


class ShuttingDown(ServiceUnavailable):
    """The process drains its last requests."""


class DeadlineExceeded(ServingError):
    """The request's deadline passed before its answer was ready."""


class InferenceFailed(ServingError):
    """Triton took the request and failed to compute it."""


class ModelLoadFailed(InferenceFailed):
    """Triton refused to load a published version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A row of the table: the last segment of the problem's `type` URI, its HTTP status, its title."""

    slug: str
    status: int
    title: str


PROBLEMS: dict[type[ServingError], Problem] = {
    ServingError: Problem(slug="internal", status=500, title="Internal error"),
    MalformedRequest: Problem(slug="malformed-request", status=400, title="Malformed request"),
    TooManyRequestsInBatch: Problem(slug="too-many-requests-in-batch", status=400, title="Batch too large"),
    PathNotAllowed: Problem(slug="path-not-allowed", status=403, title="Path not allowed"),
    NotFound: Problem(slug="not-found", status=404, title="Not found"),
    UnknownModel: Problem(slug="unknown-model", status=404, title="Unknown model"),
    UnknownVersion: Problem(slug="unknown-version", status=404, title="Unknown model version"),
    UnknownAlias: Problem(slug="unknown-alias", status=404, title="Unknown alias"),
    UnknownExperiment: Problem(slug="unknown-experiment", status=404, title="Unknown experiment"),
    UnknownJob: Problem(slug="unknown-job", status=404, title="Unknown job"),
    UnknownRequest: Problem(slug="unknown-request", status=404, title="Unknown request"),
    FileMissing: Problem(slug="file-missing", status=404, title="File not found"),
    Conflict: Problem(slug="conflict", status=409, title="Conflict"),
    VersionConflict: Problem(slug="version-conflict", status=409, title="Version exists with other content"),
    ModelInUse: Problem(slug="model-in-use", status=409, title="Model in use"),
    FeedbackConflict: Problem(slug="feedback-conflict", status=409, title="Other feedback was given before"),
    EnsembleChanged: Problem(slug="ensemble-changed", status=409, title="Ensemble changed meanwhile"),
    ExperimentConflict: Problem(
        slug="experiment-conflict", status=409, title="Not possible with this experiment"
    ),
    FeedbackExpired: Problem(slug="feedback-expired", status=410, title="Too late for feedback"),
    PayloadTooLarge: Problem(slug="payload-too-large", status=413, title="Payload too large"),
    UnsupportedMediaType: Problem(slug="unsupported-media-type", status=415, title="Unsupported media type"),
    InvalidInput: Problem(slug="invalid-input", status=422, title="Invalid input"),
    ExportRejected: Problem(slug="export-rejected", status=422, title="Model refused"),
    ServiceUnavailable: Problem(slug="service-unavailable", status=503, title="Service unavailable"),
    QueueFull: Problem(slug="queue-full", status=503, title="Queue full"),
    Overloaded: Problem(slug="overloaded", status=503, title="Overloaded"),
    CacheFull: Problem(slug="cache-full", status=503, title="Model cache full"),
    TritonUnavailable: Problem(slug="triton-unavailable", status=503, title="Triton unavailable"),
    RedisUnavailable: Problem(slug="redis-unavailable", status=503, title="Redis unavailable"),
    ModelNotReady: Problem(slug="model-not-ready", status=503, title="Model not ready"),
    ShuttingDown: Problem(slug="shutting-down", status=503, title="Shutting down"),
    DeadlineExceeded: Problem(slug="deadline-exceeded", status=504, title="Deadline exceeded"),
    InferenceFailed: Problem(slug="inference-failed", status=500, title="Inference failed"),
    ModelLoadFailed: Problem(slug="model-load-failed", status=500, title="Model load failed"),
}


def problem_of(error: ServingError) -> Problem:
    """The row of the nearest class along the error's MRO."""
    return next(PROBLEMS[cls] for cls in type(error).__mro__ if cls in PROBLEMS)
