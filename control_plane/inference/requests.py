"""The requests of POST /predict and /predict/batch: their fields, and how bytes become them.

`data` becomes a float64 array (the fast path: arrays of the known types), nested lists of floats, or raw JSON (all
else); `tensors.py` and `shapes.py` turn it into tensors once the model's are known.
"""

import re
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from control_plane.errors import FieldError, InvalidInput, TooManyRequestsInBatch
from control_plane.inference.explanations import (
    explain,
    has_marked,
    is_at_non_finite,
    quote_first_non_finite,
    quote_non_finite,
)
from control_plane.inference.json_arrays import read_floats

HYBRID = "cnn_lstm_hybrid"
RL_ENSEMBLE = "rl_ensemble"
MAX_BATCH_REQUESTS = 100

Data = TypeVar("Data")

RequestId = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:@/+=-]+$")]
Reference = Annotated[str, Meta(min_length=1)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
BatchSize = Annotated[int, Meta(ge=1, le=1000)]
Level = Annotated[float, Meta(gt=0, lt=1)]
Priority = Annotated[int, Meta(ge=1, le=5)]
TimeoutMs = Annotated[float, Meta(gt=0, le=600_000)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Covariate = Annotated[float, Meta(ge=-1e100, le=1e100)]
"""Sums of its products with others are to stay finite."""
Weight = Annotated[float, Meta(ge=0)]

Matrix = list[list[float]]
Cube = list[list[list[float]]]


class PredictRequest(msgspec.Struct, Generic[Data], forbid_unknown_fields=True, kw_only=True):
    """A prediction; docs/api.md explains the fields."""

    model_type: Reference
    data: Data
    model_version: Reference = "latest"
    return_uncertainty: bool = True
    use_ensemble: bool = True
    batch_size: BatchSize = 32
    request_id: RequestId | None = None
    routing_key: Name | None = None
    covariate: Covariate | None = None
    experiment_id: Name | None = None
    interval: Level = 0.9
    interval_method: Literal["mc"] = "mc"
    return_attention: bool = False
    weights: list[Weight] | dict[str, Weight] | None = None
    action_selection: Literal["greedy", "sample"] = "greedy"
    seed: Seed | None = None
    timeout_ms: TimeoutMs | None = None
    priority: Priority = 3
    on_overload: Literal["reject", "degrade"] | None = None


class BatchRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Up to 100 predictions, each kept as raw JSON so that a bad one fails alone."""

    requests: list[msgspec.Raw]
    priority: Priority = 1


AnyPredictRequest = PredictRequest[Any]

_options = msgspec.json.Decoder(PredictRequest[None])
_cube = msgspec.json.Decoder(PredictRequest[Cube])
_matrix = msgspec.json.Decoder(PredictRequest[Matrix])
_raw = msgspec.json.Decoder(PredictRequest[msgspec.Raw])
_batch = msgspec.json.Decoder(BatchRequest)
_FAST_NAMES = (b'"' + HYBRID.encode() + b'"', b'"' + RL_ENSEMBLE.encode() + b'"')
_DATA = re.compile(rb'"data"\s*:\s*(?=\[)')
_FAST_TYPES = frozenset({HYBRID, RL_ENSEMBLE})
_READ_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
PREDICT_FIELDS = {
    "model_type": "the name of a registered model type",
    "data": "an array of numbers",
    "model_version": "a version, an alias, or 'latest'",
    "return_uncertainty": "true or false",
    "use_ensemble": "true or false",
    "batch_size": "an integer from 1 to 1000",
    "request_id": "1 to 128 of the characters A-Z a-z 0-9 . _ : @ / + = -",
    "routing_key": "a string of 1 to 256 characters",
    "covariate": "a number of at most 1e100 in size, or null",
    "experiment_id": "an experiment's name, 'none', or null",
    "interval": "a level above 0 and below 1",
    "interval_method": "'mc'",
    "return_attention": "true or false",
    "weights": "numbers of at least 0: an array in the order of the model's parts, or an object by their names",
    "action_selection": "'greedy' or 'sample'",
    "seed": "an integer of at least 0, or null",
    "timeout_ms": "a number above 0, at most 600000",
    "priority": "an integer from 1 (highest) to 5",
    "on_overload": "'reject', 'degrade', or null for the version's own setting",
}
BATCH_FIELDS = {
    "requests": f"an array of 1 to {MAX_BATCH_REQUESTS} requests",
    "priority": "an integer from 1 (highest) to 5",
}


def decode_predict(body: bytes) -> AnyPredictRequest:
    """Decodes the body of POST /predict.

    Good bodies of the known types go the fast way. Whatever it doesn't take is read again, slowly: both give the same
    requests, and the slow way also says what is wrong.

    Raises:
        MalformedRequest: not JSON.
        InvalidInput: a field is unknown, missing, of the wrong type or out of range.
    """
    request = _decode_split(body)
    if request is not None:
        return request
    if any(name in body for name in _FAST_NAMES):
        decoder = _cube if b"[[[" in body else _matrix
        try:
            request = decoder.decode(body)
        except msgspec.ValidationError:
            pass
        except _READ_ERRORS as error:
            _refuse_first_non_finite(error, body, decoder)
        else:
            if request.model_type in _FAST_TYPES:
                return request
    try:
        return _raw.decode(body)
    except _READ_ERRORS as error:
        if not is_at_non_finite(error, body):
            raise explain(error, body, PREDICT_FIELDS) from error
        return _decode_quoted(quote_non_finite(body), error, body)


def decode_options(text: bytes, data: Any) -> AnyPredictRequest:
    """A request whose options are JSON, with `"data": null`, and whose data came in another form.

    Raises:
        InvalidInput: a field is unknown, missing, of the wrong type or out of range.
    """
    try:
        request: AnyPredictRequest = _options.decode(text)
    except _READ_ERRORS as error:
        raise explain(error, text, PREDICT_FIELDS) from error
    request.data = data
    return request


def _decode_split(body: bytes) -> AnyPredictRequest | None:
    """Cuts the array out of the body, and reads the two apart; None where that isn't sure to be right.

    What is left around the array is valid JSON with one key `data`, and that one is where the array was: with no
    backslash in it, no string there can hold what looks like the key.
    """
    found = _DATA.search(body)
    if found is None:
        return None
    start, end = found.end(), body.rfind(b"]") + 1
    rest = body[:start] + b"null" + body[end:]
    if b"\\" in rest or rest.count(b'"data"') != 1:
        return None
    try:
        request: AnyPredictRequest = _options.decode(rest)
    except _READ_ERRORS:
        return None
    if request.model_type not in _FAST_TYPES:
        return None
    request.data = read_floats(body[start:end])
    return None if request.data is None else request


def _refuse_first_non_finite(error: Exception, body: bytes, decoder: msgspec.json.Decoder[Any]) -> None:
    """Names the first NaN or infinity in `data` where `decoder` gets to it; else leaves the fault to the slow way."""
    if not is_at_non_finite(error, body):
        return
    quoted = quote_first_non_finite(error, body)
    try:
        decoder.decode(quoted)
    except msgspec.ValidationError as second:
        if "`$.data" in str(second):
            raise explain(second, quoted, PREDICT_FIELDS) from error
    except _READ_ERRORS:
        return


def _decode_quoted(quoted: bytes, first: Exception, body: bytes) -> AnyPredictRequest:
    """Reads a body whose NaN and infinities were quoted; those in `data` are refused with their path later."""
    try:
        request = _raw.decode(quoted)
    except _READ_ERRORS as error:
        raise explain(error, quoted, PREDICT_FIELDS) from error
    if not has_marked(bytes(request.data)):
        raise explain(first, body, PREDICT_FIELDS) from first
    return request


def decode_batch(body: bytes) -> BatchRequest:
    """Decodes the body of POST /predict/batch; its members are decoded one by one with `decode_predict`.

    Raises:
        MalformedRequest: not JSON.
        TooManyRequestsInBatch: over 100 requests.
        InvalidInput: a field is unknown, missing, of the wrong type or out of range.
    """
    try:
        batch = _batch.decode(body)
    except _READ_ERRORS as error:
        # NaN in one member is that member's fault alone: as a marked string, the rest can be read.
        if not is_at_non_finite(error, body):
            raise explain(error, body, BATCH_FIELDS) from error
        quoted = quote_non_finite(body)
        try:
            batch = _batch.decode(quoted)
        except _READ_ERRORS as second:
            raise explain(second, quoted, BATCH_FIELDS) from second
    if not batch.requests:
        raise InvalidInput(
            "The batch is empty.",
            expected=f"1 to {MAX_BATCH_REQUESTS} requests",
            got="0 requests",
            remedy="Put at least one request into it.",
            errors=[FieldError(path="requests", message="is empty")],
        )
    if len(batch.requests) > MAX_BATCH_REQUESTS:
        raise TooManyRequestsInBatch(
            f"The batch holds {len(batch.requests)} requests.",
            expected=f"1 to {MAX_BATCH_REQUESTS} requests",
            got=f"{len(batch.requests)} requests",
            remedy="Split the batch, or send several rows in one request's data.",
        )
    return batch
