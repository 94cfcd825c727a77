"""What the client gives back of experiments."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from control_plane.client.errors import BadAnswer
from control_plane.client.results import pick


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An experiment as of now; `shares` are by variant, `end_time` is None where it lasts until it is stopped.

    `reason` is that of its last step, rollback or promotion; `total_requests` comes with the list only.
    """

    experiment_id: str
    status: str
    mode: str
    variants: tuple[str, ...]
    shares: Mapping[str, float]
    start_time: datetime
    end_time: datetime | None
    reason: str | None = None
    total_requests: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFigures:
    """One variant's figures; None without requests. `metrics` has each metric's observations and mean by its name."""

    requests: int
    units: int
    errors: int
    error_rate: float | None
    avg_latency_ms: float | None
    p50_latency_ms: float | None
    p95_latency_ms: float | None
    p99_latency_ms: float | None
    share: float
    metrics: Mapping[str, Mapping[str, Any]]
    model_config: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentResults:
    """What an experiment shows; `significance` holds comparisons, checks and guardrails as docs/experiments.md says."""

    experiment_id: str
    status: str
    mode: str
    start_time: datetime
    end_time: datetime | None
    total_requests: int
    reason: str | None
    variants: Mapping[str, VariantFigures]
    significance: Mapping[str, Any]

    @property
    def verdict(self) -> str | None:
        """no_difference_yet, treatment_better, treatment_worse, inconclusive_at_end; None: withheld."""
        verdict = self.significance.get("verdict")
        return None if verdict is None else str(verdict)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The verdict in words."""
        return tuple(map(str, self.significance.get("sentences", ())))


def read_experiment(document: Any) -> Experiment:
    """The answer of a change of an experiment, or an entry of GET /experiments."""
    time = datetime.fromisoformat
    return pick(Experiment, document, variants=tuple, start_time=time, end_time=time)


def read_experiments(document: Any) -> tuple[Experiment, ...]:
    """The answer of GET /experiments."""
    if not isinstance(document, dict) or not isinstance(document.get("experiments"), dict):
        raise BadAnswer("The answer has no object 'experiments'.")
    return tuple(read_experiment(entry) for entry in document["experiments"].values())


def read_experiment_results(document: Any) -> ExperimentResults:
    """The answer of GET /experiments/{experiment_id}/results."""
    time = datetime.fromisoformat
    return pick(
        ExperimentResults,
        document,
        start_time=time,
        end_time=time,
        variants=lambda given: {name: pick(VariantFigures, one) for name, one in given.items()},
    )
