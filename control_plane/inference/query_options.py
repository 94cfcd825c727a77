"""The options of a binary body: query parameters, named and checked as the fields of a JSON one.

They become the JSON text of a request without its data, which goes the way of all others: so the rules and the words
of the refusals are the same.
"""

from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from control_plane.errors import FieldError, InvalidInput
from control_plane.inference.requests import AnyPredictRequest, decode_options

_TEXTS = frozenset(
    {
        "model_type",
        "model_version",
        "request_id",
        "routing_key",
        "experiment_id",
        "interval_method",
        "action_selection",
        "on_overload",
    }
)
_WORDS = {"true": b"true", "false": b"false", "null": b"null"}
_MOST_PARAMETERS = 64
_LONGEST_KEPT_BYTES = 1024


def request_of(query: bytes, data: Any) -> AnyPredictRequest:
    """The request of a binary body.

    Args:
        query: The URL's query string.
        data: What the body holds.

    Raises:
        InvalidInput: an option is unknown, missing, given twice, of the wrong type or out of range.
    """
    text = _kept(query) if len(query) <= _LONGEST_KEPT_BYTES else _as_json(query)
    return decode_options(text, data)


def _as_json(query: bytes) -> bytes:
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=_MOST_PARAMETERS,
        )
    except ValueError as error:
        raise _invalid("query", "percent-encoded UTF-8 of at most 64 parameters", "something else") from error
    parts = [b'"data":null']
    seen = {"data"}
    for name, value in pairs:
        if name in seen:
            got = "a query parameter" if name == "data" else "several"
            raise _invalid(name[:80], "the body" if name == "data" else "the parameter once", got)
        seen.add(name)
        parts.append(msgspec.json.encode(name) + b":" + _value(name, value))
    return b"{" + b",".join(parts) + b"}"


_kept = lru_cache(maxsize=256)(_as_json)


def _value(name: str, value: str) -> bytes:
    """The value as JSON: as it stands where it is JSON, and the field isn't text; else as a string."""
    if name not in _TEXTS:
        if (word := _WORDS.get(value.lower())) is not None:
            return word
        raw = value.encode()
        try:
            msgspec.json.decode(raw)
        except (msgspec.MsgspecError, RecursionError):
            pass
        else:
            return raw
    return msgspec.json.encode(value)


def _invalid(path: str, expected: str, got: str) -> InvalidInput:
    return InvalidInput(
        f"{path} is wrong.",
        expected=expected,
        got=got,
        remedy="Options are query parameters, data is the body. /docs describes every field.",
        errors=[FieldError(path=path, message=f"expected {expected}, got {got}")],
    )
