"""Requests and answers of /experiments."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from control_plane.experiments.canary import Step
from control_plane.experiments.creation import Proposal
from control_plane.experiments.definition import AssignmentKind, Mode
from control_plane.experiments.design import Direction, Guardrail, Metric, MetricKind
from control_plane.models.versions import MODEL_TYPE_PATTERN, VERSION_PATTERN

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_LONGEST_HOURS = 24 * 366
_MOST_METRICS = 10


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class VariantBody(_Body):
    """A version that takes part."""

    model_type: str = Field(pattern=MODEL_TYPE_PATTERN)
    version: str = Field(pattern=VERSION_PATTERN)


class MetricBody(_Body):
    """What is compared. Latency and errors always are."""

    name: Name
    kind: Literal["mean", "rate", "latency", "error"] = Field(
        description="mean, rate: from feedback's `outcome`, or its `reward` under the name `reward`"
    )
    direction: Literal["up", "down"] = Field(description="Which way is better")


class GuardrailBody(_Body):
    """What the treatment must not exceed; one of the two limits."""

    metric: Name
    max_ratio: float | None = Field(
        default=None, gt=0, le=1e6, description="Treatment / control; of latency P95"
    )
    max_difference: float | None = Field(default=None, ge=0, le=1e12, description="Treatment - control")


class StepBody(_Body):
    """A canary's step."""

    share: float = Field(gt=0, lt=1, description="Of the treatment")
    minutes: float = Field(default=10.0, ge=0, le=60 * _LONGEST_HOURS, description="At least so long")
    requests: int = Field(default=500, ge=0, le=10**9, description="And so many of the treatment's")


class ExperimentBody(_Body):
    """A new experiment; docs/experiments.md explains it."""

    experiment_id: Name
    model_variants: dict[Name, VariantBody] = Field(max_length=1000)
    traffic_split: dict[Name, Annotated[float, Field(ge=0, le=1)]] = Field(max_length=1000)
    duration_hours: float = Field(default=24.0, gt=0, le=_LONGEST_HOURS)
    mode: Literal["ab", "shadow", "canary", "bandit"] = "ab"
    metrics: list[MetricBody] = Field(default_factory=list, max_length=_MOST_METRICS)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    min_sample: int = Field(
        default=100, ge=1, le=10**9, description="Requests of each variant before a first look"
    )
    planned_requests: int = Field(default=10_000, ge=2, le=10**12)
    salt: str | None = Field(
        default=None, min_length=1, max_length=128, description="Instead of the id in the hash"
    )
    assignment: Literal["hash", "switchback"] = "hash"
    block_minutes: float = Field(default=60.0, gt=0, le=60 * _LONGEST_HOURS)
    guardrails: list[GuardrailBody] | None = Field(default=None, max_length=_MOST_METRICS)
    steps: list[StepBody] | None = Field(default=None, min_length=1, max_length=50)
    auto_promote: bool = False
    floor_share: float = Field(default=0.05, ge=0, le=0.5)
    epoch_minutes: float = Field(default=10.0, gt=0, le=60 * _LONGEST_HOURS)

    def proposal(self) -> Proposal:
        """As the experiments take it."""
        return Proposal(
            experiment_id=self.experiment_id,
            model_variants={
                name: (variant.model_type, variant.version) for name, variant in self.model_variants.items()
            },
            traffic_split=self.traffic_split,
            duration_hours=self.duration_hours,
            mode=Mode(self.mode),
            metrics=tuple(
                Metric(name=one.name, kind=MetricKind(one.kind), direction=Direction(one.direction))
                for one in self.metrics
            ),
            alpha=self.alpha,
            min_sample=self.min_sample,
            planned_requests=self.planned_requests,
            salt=self.salt,
            assignment=AssignmentKind(self.assignment),
            block_minutes=self.block_minutes,
            guardrails=None
            if self.guardrails is None
            else tuple(
                Guardrail(metric=one.metric, max_ratio=one.max_ratio, max_difference=one.max_difference)
                for one in self.guardrails
            ),
            steps=None
            if self.steps is None
            else tuple(
                Step(share=one.share, duration_s=one.minutes * 60, requests=one.requests)
                for one in self.steps
            ),
            auto_promote=self.auto_promote,
            floor_share=self.floor_share,
            epoch_minutes=self.epoch_minutes,
        )


class ExperimentAnswer(BaseModel):
    """An experiment after a change."""

    message: str
    experiment_id: str
    status: Literal["active", "completed", "stopped"]
    mode: str
    variants: list[str]
    shares: dict[str, float]
    duration_hours: float
    start_time: datetime
    end_time: datetime | None
    reason: str | None = Field(description="Of the last step, rollback or promotion")
    timestamp: datetime


class ExperimentEntry(BaseModel):
    """An experiment in the list."""

    experiment_id: str
    status: Literal["active", "completed", "stopped"]
    mode: str
    model_type: str
    start_time: datetime
    end_time: datetime | None = Field(description="When it ended or will; null: when it is stopped")
    variants: list[str]
    shares: dict[str, float]
    total_requests: int


class ExperimentsAnswer(BaseModel):
    """All experiments, oldest first."""

    experiments: dict[str, ExperimentEntry]
    total_experiments: int
    timestamp: datetime


class ModelConfig(BaseModel):
    """The version of a variant."""

    model_config = ConfigDict(protected_namespaces=())

    model_type: str
    version: str


class VariantAnswer(BaseModel):
    """A variant's figures; latencies in milliseconds."""

    model_config = ConfigDict(protected_namespaces=())

    requests: int
    units: int
    errors: int
    shed: int = Field(description="Shadow calls that were left out under load")
    error_rate: float | None
    avg_latency_ms: float | None
    p50_latency_ms: float | None
    p95_latency_ms: float | None
    p99_latency_ms: float | None
    share: float
    metrics: dict[str, dict[str, Any]]
    configuration: ModelConfig = Field(serialization_alias="model_config")


class ResultsAnswer(BaseModel):
    """What the counts say now."""

    experiment_id: str
    status: Literal["active", "completed", "stopped"]
    mode: str
    start_time: datetime
    end_time: datetime | None
    total_requests: int
    reason: str | None
    variants: dict[str, VariantAnswer]
    significance: dict[str, Any] = Field(
        description="verdict, sentences, comparisons, ratio_checks, guardrails: docs/experiments.md"
    )
    certificate: dict[str, Any] | None = Field(
        description="What simulations of these settings say: false alarms, power, warnings; null until they are done"
    )
    timestamp: datetime


class TimelineEntry(BaseModel):
    """What a comparison said at one time."""

    time: datetime
    requests: int
    comparisons: list[dict[str, Any]]


class TimelineAnswer(BaseModel):
    """Over time, oldest first."""

    experiment_id: str
    points: list[TimelineEntry]
