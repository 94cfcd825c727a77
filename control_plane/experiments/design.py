"""What an experiment measures and promises, as its statistics need to know it. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class MetricKind(StrEnum):
    """How a metric is counted, and so compared.

    `latency`: the logarithm of `processing_time_ms`, compared as a ratio of geometric means. `error`: 0 or 1 for each
    request. `rate`: 0 or 1 from feedback. `mean`: any number from feedback.
    """

    LATENCY = "latency"
    ERROR = "error"
    RATE = "rate"
    MEAN = "mean"

    @property
    def binary(self) -> bool:
        """Whether observations are 0 or 1."""
        return self in {MetricKind.ERROR, MetricKind.RATE}


class Direction(StrEnum):
    """Which way is better."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        name: Its name.
        kind: How it is counted.
        direction: Which way is better.
        treatment_only: The control has none (how often a shadow disagrees with it): shown with its interval, without a
            verdict; a guardrail compares it with 0.
    """

    name: str
    kind: MetricKind
    direction: Direction
    treatment_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Guardrail:
    """What the treatment must not exceed, compared with the control; exactly one of the two limits.

    Attributes:
        metric: Name of a metric whose better direction is down, or of one whose better direction is up, which then
            must not fall below.
        max_ratio: Treatment / control, above 0; of latency P95. For a metric that is better up, control / treatment.
        max_difference: Treatment - control; of latency P95, in ms. For a metric that is better up, control - treatment.
    """

    metric: str
    max_ratio: float | None = None
    max_difference: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """An experiment as its statistics see it.

    Attributes:
        variants: Names in declared order.
        metrics: In order of weight: the first that shows a difference decides the experiment's verdict.
        alpha: Of the experiment.
        min_sample: Requests that each variant needs before the first look.
        planned_requests: Of the whole experiment.
        planned_epochs: Share epochs there can be; None: nobody knows (bandit).
        guardrails: Each has alpha divided by their number.
        units_are_requests: Nobody sends routing keys.
        paired: All variants answer the same requests (shadow).
    """

    variants: tuple[str, ...]
    metrics: tuple[Metric, ...]
    alpha: float = 0.05
    min_sample: int = 100
    planned_requests: int = 10_000
    planned_epochs: int | None = 1
    guardrails: tuple[Guardrail, ...] = ()
    units_are_requests: bool = False
    paired: bool = False

    @property
    def control(self) -> int:
        """Place of the variant that the others are compared with: named `control`, otherwise the first."""
        return self.variants.index("control") if "control" in self.variants else 0
