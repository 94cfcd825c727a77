"""The API's calls as values: what to send, and how to read the answer. All that either client knows of the API."""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import numpy as np

from control_plane.client import results
from control_plane.client.errors import BadAnswer, ClientError, InvalidRequest, error_of
from control_plane.client.experiments import (
    Experiment,
    ExperimentResults,
    read_experiment,
    read_experiment_results,
    read_experiments,
)
from control_plane.client.options import (
    BodyFormat,
    Data,
    ExperimentOptions,
    FeedbackItem,
    LoadOptions,
    PredictItem,
    PredictOptions,
    WarmUpOptions,
)
from control_plane.client.request_ids import new_request_id

Result = TypeVar("Result")

_PREFIX = "/api/v1"
_JSON = "application/json"
_NPY = "application/x-npy"
_LONGEST_TIMEOUT_MS = 600_000.0
_OK = 200
_CREATED = frozenset({201})
_ACCEPTED = frozenset({202})
_MOST_FEEDBACK = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One HTTP request."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Result]):
    """One call of the API.

    `message` gives the request for the seconds that are left, `read` the result of the answer's JSON. `accepts` are
    statuses besides 200 that are answers, too.
    """

    message: Callable[[float], Message]
    read: Callable[[Any], Result]
    is_idempotent: bool = True
    timeout_s: float | None = None
    accepts: frozenset[int] = frozenset()

    def result(self, answer: Answer) -> Result:
        """The result.

        Raises:
            ClientError: the answer is an error, or none of this API's.
        """
        document, is_json = _decode(answer.content)
        if answer.status == _OK or answer.status in self.accepts:
            if not is_json:
                raise BadAnswer(f"{answer.status}, but no JSON: {answer.content[:200]!r}")
            return self.read(document)
        raise refusal(answer, document)


def refusal(answer: Answer, document: Any) -> ClientError:
    """The error for an answer that isn't a success."""
    retry_after = next((text for name, text in answer.headers.items() if name.lower() == "retry-after"), "")
    return error_of(
        answer.status,
        document,
        text=answer.content[:500].decode("utf-8", "replace"),
        retry_after_s=float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None,
    )


def predict(
    model_type: str, data: Data, options: PredictOptions, body_format: BodyFormat
) -> Call[results.Prediction]:
    """POST /predict."""
    timeout_ms = options.get("timeout_ms")
    fields: dict[str, Any] = {"model_type": model_type, **_given(options)}
    headers = {"X-Request-ID": str(options.get("request_id") or new_request_id())}
    path = f"{_PREFIX}/predict"
    if body_format is BodyFormat.NPY and not isinstance(data, Mapping):
        content = _npy(data)

        def binary(left_s: float) -> Message:
            query = {name: _text(value) for name, value in (fields | _timeout(left_s)).items()}
            return Message(
                method="POST",
                path=path,
                query=query,
                headers=headers | {"Content-Type": _NPY},
                content=content,
            )

        message = binary
    else:
        fields["data"] = _nested(data)

        def plain(left_s: float) -> Message:
            return _json_message("POST", path, fields | _timeout(left_s), headers)

        message = plain
    return Call(message=message, read=results.read_prediction, timeout_s=_seconds(timeout_ms))


def predict_batch(items: Sequence[PredictItem], priority: int) -> Call[results.BatchResult]:
    """POST /predict/batch."""
    requests = [
        {
            "model_type": item.model_type,
            "data": _nested(item.data, f"items[{number}].data"),
            **_given(item.options),
        }
        for number, item in enumerate(items)
    ]

    def message(left_s: float) -> Message:
        timed = [_timeout(left_s) | request for request in requests]
        return _json_message("POST", f"{_PREFIX}/predict/batch", {"requests": timed, "priority": priority})

    return Call(message=message, read=results.read_batch)


def load_model(model_type: str, version: str, options: LoadOptions) -> Call[results.LoadedModel]:
    """POST /models/load."""
    body = {"model_type": model_type, "version": version, **options}
    return _plain("POST", "/models/load", results.read_load, body)


def unload_model(model_type: str, version: str) -> Call[None]:
    """POST /models/unload."""
    return _plain("POST", "/models/unload", _nothing, {"model_type": model_type, "version": version})


def warm_up(
    models: Sequence[tuple[str, str]], options: WarmUpOptions
) -> Call[tuple[results.WarmedModel, ...]]:
    """POST /models/warmup."""
    targets = [{"model_type": model_type, "version": version} for model_type, version in models]
    return _plain("POST", "/models/warmup", results.read_warmup, {"models": targets, **options})


def models() -> Call[tuple[results.ModelInfo, ...]]:
    """GET /models."""
    return _plain("GET", "/models", results.read_models)


def model(model_type: str, version: str) -> Call[results.ModelInfo]:
    """GET /models/{model_type}/{version}."""
    return _plain("GET", f"/models/{_part(model_type)}/{_part(version)}", results.read_model)


def set_alias(model_type: str, alias: str, version: str) -> Call[results.AliasMove]:
    """PUT /models/{model_type}/aliases/{alias}."""
    path = f"/models/{_part(model_type)}/aliases/{_part(alias)}"
    return _plain("PUT", path, results.read_alias, {"version": version})


def remove_alias(model_type: str, alias: str) -> Call[results.AliasMove]:
    """DELETE /models/{model_type}/aliases/{alias}; sent twice, the second would be told that there is none."""
    path = f"/models/{_part(model_type)}/aliases/{_part(alias)}"
    return _plain("DELETE", path, results.read_alias, is_idempotent=False)


def give_feedback(items: Sequence[FeedbackItem]) -> Iterator[Call[tuple[results.FeedbackResult, ...]]]:
    """POST /feedback, in parts of a length that the server takes; each counts once, however often it is sent."""
    for start in range(0, len(items), _MOST_FEEDBACK):
        body = [_feedback(item) for item in items[start : start + _MOST_FEEDBACK]]
        yield _plain("POST", "/feedback", results.read_feedback, body, accepts=_ACCEPTED)


def ensemble(model: str) -> Call[results.EnsembleInfo]:
    """GET /ensembles/{model}."""
    return _plain("GET", f"/ensembles/{_part(model)}", results.read_ensemble)


def create_experiment(
    experiment_id: str,
    model_variants: Mapping[str, tuple[str, str]],
    traffic_split: Mapping[str, float],
    options: ExperimentOptions,
) -> Call[Experiment]:
    """POST /experiments/create; sent twice, the second would be told that the id is taken."""
    body = {
        "experiment_id": experiment_id,
        "model_variants": {
            name: {"model_type": model_type, "version": version}
            for name, (model_type, version) in model_variants.items()
        },
        "traffic_split": {name: float(share) for name, share in traffic_split.items()},
        **options,
    }
    path = "/experiments/create"
    return _plain("POST", path, read_experiment, body, is_idempotent=False, accepts=_CREATED)


def experiments() -> Call[tuple[Experiment, ...]]:
    """GET /experiments."""
    return _plain("GET", "/experiments", read_experiments)


def experiment_results(experiment_id: str) -> Call[ExperimentResults]:
    """GET /experiments/{experiment_id}/results."""
    return _plain("GET", f"/experiments/{_part(experiment_id)}/results", read_experiment_results)


def stop_experiment(experiment_id: str) -> Call[Experiment]:
    """DELETE /experiments/{experiment_id}; one that has ended stays as it is."""
    return _plain("DELETE", f"/experiments/{_part(experiment_id)}", read_experiment)


def health() -> Call[results.Health]:
    """GET /health; `unhealthy` is an answer, too."""
    return _plain("GET", "/health", results.read_health, accepts=frozenset({503}))


def is_ready() -> Call[bool]:
    """GET /health/ready."""
    return _plain(
        "GET", "/health/ready", lambda answer: bool(answer["status"] == "ready"), accepts=frozenset({503})
    )


def _plain(
    method: str,
    path: str,
    read: Callable[[Any], Result],
    body: Any = None,
    *,
    is_idempotent: bool = True,
    accepts: frozenset[int] = frozenset(),
) -> Call[Result]:
    message = (
        Message(method=method, path=_PREFIX + path)
        if body is None
        else _json_message(method, _PREFIX + path, body)
    )
    return Call(message=lambda _: message, read=read, is_idempotent=is_idempotent, accepts=accepts)


def _json_message(method: str, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Message:
    return Message(
        method=method,
        path=path,
        headers={**(headers or {}), "Content-Type": _JSON},
        content=json.dumps(body, separators=(",", ":")).encode(),
    )


def _decode(content: bytes) -> tuple[Any, bool]:
    try:
        return json.loads(content), True
    except (ValueError, RecursionError):
        return None, False


def _nothing(document: Any) -> None:
    del document


def _given(options: PredictOptions) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _seconds(timeout_ms: float | None) -> float | None:
    return None if timeout_ms is None else timeout_ms / 1000


def _timeout(left_s: float) -> dict[str, float]:
    """The rest of the client's deadline as the server's."""
    return {"timeout_ms": min(max(round(left_s * 1000, 3), 0.001), _LONGEST_TIMEOUT_MS)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _feedback(item: FeedbackItem) -> dict[str, Any]:
    # What a caller computed with numpy is no number to json.
    fields: dict[str, Any] = {
        "request_id": item.request_id,
        "reward": None if item.reward is None else float(item.reward),
        "outcome": None if item.outcome is None else {name: float(one) for name, one in item.outcome.items()},
        "action": item.action if isinstance(item.action, str | None) else int(item.action),
        "row": int(item.row),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _npy(data: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, _array(data, "data"), allow_pickle=False)
    return buffer.getvalue()


def _nested(data: Data, path: str = "data") -> Any:
    if isinstance(data, Mapping):
        return {name: _array(part, f"{path}.{name}").tolist() for name, part in data.items()}
    return _array(data, path).tolist()


def _array(data: Any, path: str) -> results.Array:
    """The caller's numbers.

    Raises:
        InvalidRequest: there is something else among them, or rows differ in length.
    """
    try:
        array = np.asarray(data)
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"{path} can't be sent: its arrays differ in length ({error}).") from error
    if array.dtype.kind not in "biuf":
        got = "None" if data is None else f"elements that aren't (dtype {array.dtype})"
        raise InvalidRequest(f"{path} can't be sent: expected an array of numbers, got {got}.")
    return array


def _part(text: str) -> str:
    return quote(text, safe="")
