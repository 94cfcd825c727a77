"""The OpenAPI description of POST /predict and /predict/batch.

The hot path doesn't use these models: `inference/requests.py` reads the requests, `inference/answers.py` writes the
answers. A test holds the two to each other.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from control_plane.inference.arrow import ARROW_STREAM
from control_plane.inference.npy import NPY
from control_plane.inference.requests import MAX_BATCH_REQUESTS

_REF = "#/components/schemas/{model}"
_PROBLEM_JSON = "application/problem+json"

Numbers = list[float]
Weight = Annotated[float, Field(ge=0)]
Matrix = list[Numbers]
Cube = list[Matrix]
AnsweredNumbers = list[float | None]
"""Null where the model gave NaN or an infinity."""
AnsweredMatrix = list[AnsweredNumbers]


class PredictRequestBody(BaseModel):
    """One prediction. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", title="PredictRequest", protected_namespaces=())

    model_type: str = Field(
        min_length=1, description="`cnn_lstm_hybrid`, `rl_ensemble`, or any registered type"
    )
    data: Cube | Matrix | list[Any] | dict[str, list[Any]] = Field(
        description="cnn_lstm_hybrid: [batch][channels][time], or one sample as [channels][time] or [time][channels]. "
        "rl_ensemble: [batch][features]. Other types: the array of the one input, or an object of arrays by input. "
        "NaN and infinities are refused."
    )
    model_version: str = Field(default="latest", min_length=1, description="A version, an alias, or `latest`")
    return_uncertainty: bool = Field(default=True, description="Ask for the uncertainty, too")
    use_ensemble: bool = Field(default=True, description="The ensemble's forecast instead of the base heads'")
    batch_size: int = Field(
        default=32,
        ge=1,
        le=1000,
        description="Most of this request's rows in one call to Triton, and never more than the model takes",
    )
    request_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9._:@/+=-]+$",
        description="Your name for this request; else X-Request-ID, else a new UUIDv7",
    )
    routing_key: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="The unit that experiments assign; default the request id",
    )
    covariate: float | None = Field(
        default=None, ge=-1e100, le=1e100, description="A number that experiments may adjust for"
    )
    experiment_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Take part in this experiment; `none` opts out",
    )
    interval: float = Field(default=0.9, gt=0, lt=1, description="Level of the interval")
    interval_method: Literal["mc"] = Field(default="mc", description="Where the interval comes from")
    return_attention: bool = Field(default=False, description="Give the temporal attention weights, too")
    weights: list[Weight] | dict[str, Weight] | None = Field(
        default=None,
        description="rl_ensemble: the agents' weights (at least 0, with the sum 1), in their order or by their names",
    )
    action_selection: Literal["greedy", "sample"] = Field(
        default="greedy", description="rl_ensemble: the most probable action, or one drawn from the mixture"
    )
    seed: int | None = Field(
        default=None, ge=0, le=2**63 - 1, description="rl_ensemble: makes `sample` reproducible"
    )
    timeout_ms: float | None = Field(
        default=None, gt=0, le=600_000, description="Deadline in milliseconds; default api.request_timeout_s"
    )
    priority: int = Field(default=3, ge=1, le=5, description="1 (highest) to 5; waiting raises it")
    on_overload: Literal["reject", "degrade"] | None = Field(
        default=None,
        description="Where the deadline can't be kept: refuse, or let the version's fallback or an older answer "
        "stand in; default the version's own setting",
    )


class BatchRequestBody(BaseModel):
    """Several predictions at once. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", title="BatchRequest")

    requests: list[PredictRequestBody] = Field(
        min_length=1, max_length=MAX_BATCH_REQUESTS, description="1 to 100 predictions; a bad one fails alone"
    )
    priority: int = Field(default=1, ge=1, le=5, description="Of all of them: 1 (highest) to 5")


class IntervalBody(BaseModel):
    """A central interval around the reported forecast."""

    model_config = ConfigDict(extra="forbid", title="Interval")

    level: float
    lower: AnsweredMatrix
    upper: AnsweredMatrix
    method: Literal["mc"]
    calibrated: bool


class UncertaintyBody(BaseModel):
    """cnn_lstm_hybrid: all but `agreement`. rl_ensemble: `ensemble_weights` and `agreement`."""

    model_config = ConfigDict(extra="forbid", title="Uncertainty")

    regression_uncertainty: AnsweredMatrix | None = Field(
        default=None, description="Standard deviation [batch][targets]"
    )
    ensemble_weights: AnsweredNumbers | None = Field(
        default=None, description="Of the members or agents; null without ensemble"
    )
    interval: IntervalBody | None = None
    entropy: AnsweredNumbers | None = Field(
        default=None, description="Predictive entropy of each row, in nats"
    )
    aleatoric: AnsweredNumbers | None = Field(
        default=None, description="Its part that more data would leave, in nats"
    )
    epistemic: AnsweredNumbers | None = Field(
        default=None, description="Its part that more data would shrink, in nats"
    )
    agreement: AnsweredNumbers | None = Field(
        default=None, description="Weighted share of agents that agree with the mixture"
    )


class PredictAnswerBody(BaseModel):
    """The answer to one prediction."""

    model_config = ConfigDict(extra="forbid", title="PredictAnswer", protected_namespaces=())

    request_id: str
    model_type: str
    model_version: str = Field(description="The version that answered")
    predictions: dict[str, Any] = Field(
        description="cnn_lstm_hybrid: classification_probs, classification_pred, regression_pred and their base_ and "
        "ensemble_ variants. rl_ensemble: action_probs, action, values, agents, propensity. Else the outputs by name."
    )
    uncertainty: UncertaintyBody | None
    confidence_scores: list[float | None] | None = Field(
        description="One for each row; null for ready-made models"
    )
    processing_time_ms: float
    timestamp: str = Field(description="RFC 3339, UTC")
    ab_test_group: str | None = Field(description="`experiment_id:variant`")
    cached: bool = Field(description="Whether the model's outputs came from the version's response cache")
    degraded: Literal["fallback", "stale"] | None = Field(
        description="What stood in under overload: the version's fallback, or an older answer; `warnings` says more"
    )
    warnings: list[str]


class FailedPredictionBody(BaseModel):
    """A member of a batch that failed."""

    model_config = ConfigDict(extra="forbid", title="FailedPrediction")

    request_id: str
    error: dict[str, Any] = Field(description="A problem document (RFC 9457)")


class BatchAnswerBody(BaseModel):
    """The results of a batch, in the order of its requests."""

    model_config = ConfigDict(extra="forbid", title="BatchAnswer")

    batch_id: str
    total_requests: int
    successful_predictions: int
    failed_predictions: int
    results: list[PredictAnswerBody | FailedPredictionBody]
    total_processing_time_ms: float
    timestamp: str


_ERRORS = {
    400: "Malformed JSON, or over 100 requests in a batch",
    404: "Unknown model, version or experiment",
    413: "The body is too large",
    415: "A body of another type than those listed, or Arrow where pyarrow isn't installed",
    422: "A field has the wrong type, shape or value",
    500: "The model failed",
    503: "Overloaded, stopping, or Triton is down; see Retry-After",
    504: "Not in time",
}


_NPY_BODY = {
    "schema": {"type": "string", "format": "binary"},
    "description": "One array: float16, float32, float64, integers or booleans; no pickle",
}
_ARROW_BODY = {
    "schema": {"type": "string", "format": "binary"},
    "description": "An uncompressed Arrow IPC stream: one column of (nested) lists or fixed-shape tensors with a row "
    "for each sample, or columns of plain numbers for [rows][columns]",
}
_ARROW_ANSWER = {
    "schema": {"type": "string", "format": "binary"},
    "description": "When Accept asks for it: a record batch with a row for each sample; columns are named by their "
    "path in the JSON answer, and what isn't by row is JSON under `answer` in the schema's metadata",
}


def _query_parameters(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The options of a binary body: a query parameter for each field but `data`."""
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": f"Binary bodies only{', required there' if name in schema['required'] else ''}. "
            + described["description"],
            "schema": {key: value for key, value in described.items() if key not in ("description", "title")},
        }
        for name, described in schema["properties"].items()
        if name != "data"
    ]


def describe_paths(document: dict[str, Any], prefix: str) -> None:
    """Adds the two paths and their schemas to an OpenAPI document, in place."""
    models = (PredictRequestBody, BatchRequestBody, PredictAnswerBody, BatchAnswerBody)
    names, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions["$defs"])
    paths = document.setdefault("paths", {})
    for path, name, summary, body, answer in (
        ("/predict", "predict", "Predict one to 1,000 rows", PredictRequestBody, PredictAnswerBody),
        (
            "/predict/batch",
            "predict_batch",
            "Predict for up to 100 requests",
            BatchRequestBody,
            BatchAnswerBody,
        ),
    ):
        paths[prefix + path] = {
            "post": {
                "tags": ["predictions"],
                "summary": summary,
                "operationId": name,
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": names[body, "validation"]}},
                },
                "responses": {
                    "200": {
                        "description": "The answer",
                        "content": {"application/json": {"schema": names[answer, "validation"]}},
                    },
                    **{str(status): _problem(text) for status, text in _ERRORS.items()},
                },
            }
        }
    _describe_binary(paths[prefix + "/predict"]["post"], schemas[PredictRequestBody.__name__])


def _describe_binary(operation: dict[str, Any], schema: dict[str, Any]) -> None:
    """Adds the binary forms of body and answer to POST /predict."""
    operation["parameters"] = _query_parameters(schema)
    operation["requestBody"]["content"] |= {NPY: _NPY_BODY, ARROW_STREAM: _ARROW_BODY}
    operation["responses"]["200"]["content"][ARROW_STREAM] = _ARROW_ANSWER


def _problem(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {
            _PROBLEM_JSON: {
                "schema": {
                    "type": "object",
                    "required": ["type", "title", "status", "detail", "instance", "request_id"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                        "instance": {"type": "string"},
                        "request_id": {"type": "string"},
                    },
                }
            }
        },
    }
