"""Python client of the REST API: numpy in and out, sync and async. Needs httpx and numpy, and nothing of the server's.

    from control_plane.client import Client

    with Client("http://localhost:8080") as client:
        answer = client.predict("cnn_lstm_hybrid", window)
        answer.predictions["regression_pred"]

docs/client.md explains it.
"""

from control_plane.client.aio import AsyncClient
from control_plane.client.errors import (
    BadAnswer,
    ClientError,
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    NotFound,
    Problem,
    ServerFailed,
    ServiceUnavailable,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
)
from control_plane.client.experiments import Experiment, ExperimentResults, VariantFigures
from control_plane.client.options import (
    BodyFormat,
    ExperimentOptions,
    FeedbackItem,
    LoadOptions,
    PredictItem,
    PredictOptions,
    WarmUpOptions,
)
from control_plane.client.results import (
    AgentPosterior,
    AliasMove,
    BatchResult,
    EnsembleInfo,
    FailedPrediction,
    FeedbackResult,
    Health,
    Interval,
    LoadedModel,
    ModelInfo,
    Prediction,
    Uncertainty,
    WarmedModel,
    WeightsPoint,
)
from control_plane.client.retries import RetryPolicy
from control_plane.client.sync import Client

__all__ = [
    "AgentPosterior",
    "AliasMove",
    "AsyncClient",
    "BadAnswer",
    "BatchResult",
    "BodyFormat",
    "Client",
    "ClientError",
    "Conflict",
    "ConnectionFailed",
    "DeadlineExceeded",
    "EnsembleInfo",
    "Experiment",
    "ExperimentOptions",
    "ExperimentResults",
    "FailedPrediction",
    "FeedbackItem",
    "FeedbackResult",
    "Forbidden",
    "Health",
    "Interval",
    "InvalidRequest",
    "LoadOptions",
    "LoadedModel",
    "ModelInfo",
    "NotFound",
    "PredictItem",
    "PredictOptions",
    "Prediction",
    "Problem",
    "RetryPolicy",
    "ServerFailed",
    "ServiceUnavailable",
    "TooManyRequests",
    "Unauthorized",
    "Uncertainty",
    "UnsupportedMediaType",
    "VariantFigures",
    "WarmUpOptions",
    "WarmedModel",
    "WeightsPoint",
]
