"""The request and the answer as pydantic models, for the peers that are built on them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Numbers = list[float]
Rows = list[list[float]]


class Request(BaseModel):
    """The body; the options that the benchmark leaves at their defaults are left out."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_type: Literal["cnn_lstm_hybrid"]
    model_version: str = "latest"
    data: list[list[list[float]]] = Field(min_length=1, max_length=1000)


class Predictions(BaseModel):
    """Of each row."""

    classification_probs: Rows
    classification_pred: list[int]
    regression_pred: Rows
    base_classification_probs: Rows
    base_regression_pred: Rows
    ensemble_classification_probs: Rows
    ensemble_regression_pred: Rows


class Interval(BaseModel):
    """Of the forecast."""

    level: float
    lower: Rows
    upper: Rows
    method: str
    calibrated: bool


class Uncertainty(BaseModel):
    """Of each row."""

    regression_uncertainty: Rows
    ensemble_weights: Numbers
    interval: Interval
    entropy: Numbers
    aleatoric: Numbers
    epistemic: Numbers


class Answer(BaseModel):
    """The whole answer."""

    model_config = ConfigDict(protected_namespaces=())

    request_id: str
    model_type: str
    model_version: str
    predictions: Predictions
    uncertainty: Uncertainty
    confidence_scores: Numbers
    processing_time_ms: float
    timestamp: str
    ab_test_group: str | None
    cached: bool
    degraded: str | None
    warnings: list[str]
