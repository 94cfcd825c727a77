"""What an experiment is, as it was created: checked once, then never changed. Pure."""

from enum import StrEnum

import msgspec

from control_plane.experiments.assignment import canary_shares
from control_plane.experiments.canary import Step
from control_plane.experiments.design import Design, Guardrail, Metric, MetricKind

LATENCY, ERROR = "latency", "error"
"""Metrics that every experiment has."""


class Mode(StrEnum):
    """What becomes of requests."""

    AB = "ab"
    """Units are divided for good."""
    SHADOW = "shadow"
    """The control answers; the treatment is asked afterwards, and its answers are compared."""
    CANARY = "canary"
    """The treatment's share steps up while guardrails hold."""
    BANDIT = "bandit"
    """Shares follow the outcome."""


class AssignmentKind(StrEnum):
    """What is divided."""

    HASH = "hash"
    SWITCHBACK = "switchback"


class Status(StrEnum):
    """Where it is."""

    ACTIVE = "active"
    COMPLETED = "completed"
    STOPPED = "stopped"


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A name and a version."""

    name: str
    version: str


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment. Times are wall time in seconds; shares sum to 1, in the variants' declared order."""

    experiment_id: str
    model_type: str
    variants: tuple[Variant, ...]
    shares: tuple[float, ...]
    mode: Mode
    metrics: tuple[Metric, ...]
    alpha: float
    min_sample: int
    planned_requests: int
    salt: str | None
    assignment: AssignmentKind
    block_minutes: float
    guardrails: tuple[Guardrail, ...]
    steps: tuple[Step, ...]
    auto_promote: bool
    floor_share: float
    epoch_minutes: float
    duration_hours: float
    created_at: float
    ends_at: float

    @property
    def key(self) -> str:
        """What the hash of the assignment begins with."""
        return self.salt or self.experiment_id

    @property
    def control(self) -> int:
        """Place of the control among the variants."""
        return self.design(units_are_requests=False).control

    @property
    def initial_shares(self) -> tuple[float, ...]:
        """The shares of the first epoch."""
        if self.mode is Mode.CANARY:
            return canary_shares(self.steps[0].share, control=self.control)
        if self.mode is Mode.SHADOW:
            return tuple(1.0 if place == self.control else 0.0 for place in range(len(self.variants)))
        return self.shares

    def design(self, *, units_are_requests: bool) -> Design:
        """The experiment as its statistics see it."""
        epochs = {Mode.CANARY: len(self.steps), Mode.BANDIT: None}.get(self.mode, 1)
        return Design(
            variants=tuple(variant.name for variant in self.variants),
            metrics=self.metrics,
            alpha=self.alpha,
            min_sample=self.min_sample,
            planned_requests=self.planned_requests,
            planned_epochs=epochs,
            guardrails=self.guardrails,
            units_are_requests=units_are_requests,
            paired=self.mode is Mode.SHADOW,
        )

    def outcome_metrics(self) -> tuple[Metric, ...]:
        """The metrics that feedback brings."""
        return tuple(
            metric
            for metric in self.metrics
            if metric.kind not in (MetricKind.LATENCY, MetricKind.ERROR) and not metric.treatment_only
        )
