"""What the client gives back: frozen dataclasses, with numpy arrays for numbers."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from control_plane.client.errors import BadAnswer, Problem, problem_of

Array = npt.NDArray[Any]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A central interval around the reported forecast; `lower` and `upper` are float64 [batch, targets]."""

    level: float
    lower: Array
    upper: Array
    method: str
    calibrated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """What the model gives of it; the rest is None. Float64 arrays.

    `regression_uncertainty` [batch, targets] is a standard deviation; `entropy`, `aleatoric` and `epistemic` [batch]
    are in nats; `agreement` [batch] is the weighted share of agents that agree with the mixture.
    """

    regression_uncertainty: Array | None = None
    ensemble_weights: Array | None = None
    interval: Interval | None = None
    entropy: Array | None = None
    aleatoric: Array | None = None
    epistemic: Array | None = None
    agreement: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One answer. `predictions` holds arrays by name (and for `rl_ensemble` those of each agent, under `agents`).

    Floats are float64, whole numbers int64; NaN where the model gave NaN or an infinity. Such a row has no class and no
    action: those of all rows are float64 then, with NaN for it.
    """

    request_id: str
    model_type: str
    model_version: str
    predictions: Mapping[str, Any]
    uncertainty: Uncertainty | None
    confidence_scores: Array | None
    processing_time_ms: float
    timestamp: datetime
    ab_test_group: str | None
    warnings: tuple[str, ...]
    cached: bool = False
    """Whether the model's outputs came from the version's response cache."""
    degraded: str | None = None
    """What stood in under overload: `fallback` or `stale`; `warnings` says more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedPrediction:
    """A member of a batch that failed, alone."""

    request_id: str
    problem: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """The results of a batch, in the order of its items."""

    batch_id: str
    results: tuple[Prediction | FailedPrediction, ...]
    total_processing_time_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A load that is done. `status`: published, unchanged, or registered."""

    model_type: str
    version: str
    triton_model: str
    status: str
    load_time_ms: float
    evicted: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A registered version. `card` is its model card, where one version was asked for."""

    model_type: str
    version: str
    triton_model: str
    latest: bool
    aliases: tuple[str, ...]
    format: str
    created_at: datetime
    size_bytes: int
    state: str
    usage_count: int
    loaded_at: datetime | None
    last_used: datetime | None
    card: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmedModel:
    """What became of one version: warmed, already_cached, not_found or error."""

    model_type: str
    version: str
    status: str
    load_time_ms: float | None
    inference_time_ms: float | None
    problem: Problem | None
    tuning: Mapping[str, Any] | None = None
    """With `tune`: what was chosen and measured, as docs/api.md says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMove:
    """An alias after a change: the version that it names (None: removed), and the one before."""

    model_type: str
    alias: str
    version: str | None
    previous: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackResult:
    """What became of one feedback: accepted, duplicate, conflict, unknown, expired or invalid; `reason` says why."""

    request_id: str
    status: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPosterior:
    """What is known of an agent's mean reward; None until rewards have shown a scale.

    `interval` is the 95 % credible one; `pulls` the effective number of rewards.
    """

    mean: float | None
    sd: float | None
    interval: tuple[float, float] | None
    pulls: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsPoint:
    """An ensemble's weights at one time, after so many rewards."""

    time: datetime
    weights: Mapping[str, float]
    rewards: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleInfo:
    """An ensemble as of now; `weights` and `posteriors` are by agent, `settings` are the policy's."""

    model: str
    policy: str
    settings: Mapping[str, Any]
    weights: Mapping[str, float]
    posteriors: Mapping[str, AgentPosterior]
    rewards: int
    history: tuple[WeightsPoint, ...]
    updated_at: datetime | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`status`: healthy, degraded or unhealthy."""

    status: str
    components: Mapping[str, Mapping[str, Any]]
    version: str


def read_prediction(document: Any) -> Prediction:
    """The answer of POST /predict."""
    return pick(
        Prediction,
        document,
        predictions=arrays,
        uncertainty=lambda given: pick(Uncertainty, given, interval=_interval, rest=arrays),
        confidence_scores=arrays,
        timestamp=datetime.fromisoformat,
        warnings=tuple,
    )


def read_batch(document: Any) -> BatchResult:
    """The answer of POST /predict/batch."""
    return pick(BatchResult, document, results=lambda rows: tuple(_member(row) for row in rows))


def read_load(document: Any) -> LoadedModel:
    """The answer of POST /models/load."""
    return pick(LoadedModel, document, evicted=tuple, warnings=tuple)


def read_model(document: Any) -> ModelInfo:
    """The answer of GET /models/{type}/{version}, or a row of GET /models."""
    time = datetime.fromisoformat
    return pick(ModelInfo, document, aliases=tuple, created_at=time, loaded_at=time, last_used=time)


def read_models(document: Any) -> tuple[ModelInfo, ...]:
    """The answer of GET /models."""
    return tuple(read_model(row) for row in _member_of(document, "models"))


def read_warmup(document: Any) -> tuple[WarmedModel, ...]:
    """The answer of POST /models/warmup."""
    return tuple(
        pick(WarmedModel, row | {"problem": row.get("error")}, problem=problem_of)
        for row in _member_of(document, "results")
    )


def read_alias(document: Any) -> AliasMove:
    """The answer of a change of an alias."""
    return pick(AliasMove, document)


def read_feedback(document: Any) -> tuple[FeedbackResult, ...]:
    """The answer of POST /feedback to a list."""
    return tuple(pick(FeedbackResult, row) for row in _member_of(document, "results"))


def read_ensemble(document: Any) -> EnsembleInfo:
    """The answer of GET /ensembles/{model}."""
    return pick(
        EnsembleInfo,
        document,
        posteriors=lambda given: {
            agent: pick(AgentPosterior, posterior, interval=tuple) for agent, posterior in given.items()
        },
        history=lambda points: tuple(
            pick(WeightsPoint, point, time=datetime.fromisoformat) for point in points
        ),
        updated_at=datetime.fromisoformat,
        warnings=tuple,
    )


def read_health(document: Any) -> Health:
    """The answer of GET /health."""
    return pick(Health, document)


def arrays(value: Any) -> Any:
    """Lists of numbers as arrays, also inside objects; null as NaN."""
    if isinstance(value, dict):
        return {name: arrays(part) for name, part in value.items()}
    if not isinstance(value, list):
        return value
    array = np.array(value)
    return array.astype(np.float64) if array.dtype == object else array


def pick(kind: type[Result], document: Any, *, rest: Any = None, **converters: Any) -> Result:
    """A dataclass from the members of a JSON object, without those that it doesn't know: a newer server's.

    Args:
        kind: The dataclass.
        document: The object.
        rest: Converts the fields that have no converter of their own.
        converters: By field; null isn't converted.

    Raises:
        BadAnswer: a member is missing, or is none of this API's.
    """
    try:
        fields = {}
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # the callers' are dataclasses
            if field.name not in document and field.default is not dataclasses.MISSING:
                continue
            value = document[field.name]
            convert = converters.get(field.name, rest)
            fields[field.name] = value if convert is None or value is None else convert(value)
        return kind(**fields)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadAnswer(f"The answer is no {kind.__name__}: {error!r}") from error


def _interval(document: Any) -> Interval:
    return pick(Interval, document, lower=arrays, upper=arrays)


def _member(document: Any) -> Prediction | FailedPrediction:
    if "error" not in document:
        return read_prediction(document)
    problem = problem_of(document["error"])
    if problem is None:
        raise BadAnswer("A member of the batch failed without a problem document.")
    return FailedPrediction(request_id=str(document.get("request_id")), problem=problem)


def _member_of(document: Any, name: str) -> list[Any]:
    if not isinstance(document, dict) or not isinstance(document.get(name), list):
        raise BadAnswer(f"The answer has no list {name!r}.")
    rows: list[Any] = document[name]
    return rows
