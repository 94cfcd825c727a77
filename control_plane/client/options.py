"""What callers may say about a prediction or a load, by the API's own names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypedDict

import numpy.typing as npt

Data = npt.ArrayLike | Mapping[str, npt.ArrayLike]
"""An array, or arrays by input name for a model with several inputs."""


class BodyFormat(StrEnum):
    """How a prediction's data travels."""

    NPY = "npy"
    """Binary: an array's bytes. Data of several inputs goes as JSON all the same."""
    JSON = "json"


class PredictOptions(TypedDict, total=False):
    """Options of a prediction; docs/api.md explains them."""

    model_version: str
    return_uncertainty: bool
    use_ensemble: bool
    batch_size: int
    request_id: str
    routing_key: str
    covariate: float
    experiment_id: str
    interval: float
    interval_method: Literal["mc"]
    return_attention: bool
    weights: Sequence[float] | Mapping[str, float]
    action_selection: Literal["greedy", "sample"]
    seed: int
    timeout_ms: float
    priority: int
    on_overload: Literal["reject", "degrade"]


class LoadOptions(TypedDict, total=False):
    """Options of a load; docs/api.md explains them."""

    file_path: str
    config: Mapping[str, Any]
    format: Literal["onnx", "torchscript"]
    device: Literal["auto", "cpu", "gpu"]
    overwrite: bool
    normalization: Mapping[str, Any]


class WarmUpOptions(TypedDict, total=False):
    """Options of a warm-up; docs/api.md explains them."""

    tune: bool
    p95_ms: float
    seconds: float


class ExperimentOptions(TypedDict, total=False):
    """Options of a new experiment; docs/experiments.md explains them."""

    duration_hours: float
    mode: Literal["ab", "shadow", "canary", "bandit"]
    metrics: Sequence[Mapping[str, str]]
    alpha: float
    min_sample: int
    planned_requests: int
    salt: str
    assignment: Literal["hash", "switchback"]
    block_minutes: float
    guardrails: Sequence[Mapping[str, Any]]
    steps: Sequence[Mapping[str, float]]
    auto_promote: bool
    floor_share: float
    epoch_minutes: float


@dataclass(frozen=True, slots=True)
class FeedbackItem:
    """What came of one row of a prediction: `reward`, `outcome` (further metrics by name), or both.

    `action` is the index or the name of the action really taken, where it wasn't the answer's.
    """

    request_id: str
    reward: float | None = None
    outcome: Mapping[str, float] | None = None
    action: int | str | None = None
    row: int = 0


@dataclass(frozen=True, slots=True)
class PredictItem:
    """One prediction of a batch."""

    model_type: str
    data: Data
    options: PredictOptions = field(default_factory=PredictOptions)
