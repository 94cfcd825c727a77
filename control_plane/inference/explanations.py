"""Why a body could not be read, told so that the sender can mend it. Runs on the failure path only."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import msgspec

from control_plane.errors import FieldError, InvalidInput, MalformedRequest, ServingError

_syntax = msgspec.json.Decoder(msgspec.Raw)
_STRING_OR_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|-?Infinity|NaN')
_MARK = "\x00"
_MARK_JSON = b"\\u0000"
_BYTE = re.compile(r"\(byte (\d+)\)")
_AT = re.compile(r" - at `(?:\$|key in \$)?([^`]*)`$")
_STEP = re.compile(r"\[(\d+|\.\.\.)\]|\.?([^.\[]+)")
_UNKNOWN = "Object contains unknown field "
_MISSING = "Object missing required field "
_LONGEST_SEARCHED_BYTES = 8 * 1024 * 1024
_LONGEST_SHOWN = 80
_ARRAYS = "Send data as [batch][channels][time] or [batch][features]."
_NOUNS = {
    "float": "number", "int": "integer", "str": "string", "bool": "boolean", "null": "null",
    "array": "array", "object": "object",
}  # fmt: skip


def quote_non_finite(body: bytes) -> bytes:
    """The body with NaN, Infinity and -Infinity as marked strings.

    JSON has no such numbers, yet Python's json writes them: the sender is told which element it is (422) instead of
    an offset in the text (400).
    """

    def quote(match: re.Match[bytes]) -> bytes:
        token = match.group()
        return token if token.startswith(b'"') else b'"' + _MARK_JSON + token + b'"'

    return _STRING_OR_TOKEN.sub(quote, body)


def quote_first_non_finite(error: Exception, body: bytes) -> bytes:
    """Like `quote_non_finite`, for the token at which `error` stands only: cheap on a large body."""
    found = _BYTE.search(str(error))
    position = int(found.group(1)) if found else 0
    token = b"NaN" if body.startswith(b"NaN", position) else b"Infinity"
    start = position - 1 if body[position - 1 : position] == b"-" else position
    end = position + len(token)
    return body[:start] + b'"' + _MARK_JSON + body[start:end] + b'"' + body[end:]


def has_marked(raw: bytes) -> bool:
    """Whether the JSON text holds a string made by `quote_non_finite`."""
    return _MARK_JSON in raw


def is_at_non_finite(error: Exception, body: bytes) -> bool:
    """Whether a syntax error is a NaN or an infinity, so that quoting those can help."""
    found = _BYTE.search(str(error)) if type(error) is msgspec.DecodeError else None
    return found is not None and body.startswith((b"NaN", b"Infinity"), int(found.group(1)))


def syntax_fault(body: bytes) -> ServingError | None:
    """Our error for a text that isn't JSON; None for one that is."""
    try:
        _syntax.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return explain(error, body, {})
    return None


def explain(error: Exception, body: bytes, fields: Mapping[str, str], *, base: str = "") -> ServingError:
    """Our error for one that msgspec raised on `body`.

    Args:
        error: What msgspec raised.
        body: The JSON text.
        fields: The fields that the object may have, each with what it takes.
        base: Path of the text inside the request, such as `data`.

    Returns:
        MalformedRequest when the text isn't JSON, else InvalidInput naming the path.
    """
    if isinstance(error, msgspec.ValidationError) and not base:
        # It stands for the first fault only: what isn't JSON further on makes the whole no JSON.
        try:
            _syntax.decode(body)
        except msgspec.DecodeError as fault:
            error = error if is_at_non_finite(fault, body) else fault
        except RecursionError as fault:
            error = fault
    if isinstance(error, RecursionError):
        if not base and not body.lstrip().startswith(b"{"):
            return MalformedRequest(
                "The body is nested too deeply to be read.",
                expected="a JSON object",
                got="hundreds of nested arrays or more",
                remedy=_ARRAYS,
            )
        return InvalidInput(
            f"{base or 'The body'} is nested too deeply.",
            expected="arrays nested at most 8 deep",
            got="hundreds of levels or more",
            remedy=_ARRAYS,
        )
    if isinstance(error, UnicodeDecodeError):
        return MalformedRequest(
            "The body is not UTF-8.",
            expected="JSON in UTF-8",
            got=f"byte 0x{error.object[error.start]:02x} that begins no character",
            remedy="Encode the JSON text as UTF-8.",
        )
    if isinstance(error, msgspec.ValidationError):
        return _explain_validation(str(error), body, fields, base)
    return _explain_syntax(str(error), body, base)


def _explain_syntax(message: str, body: bytes, base: str) -> ServingError:
    if not body.strip():
        return MalformedRequest(
            "The body is empty.", expected="a JSON object", got="nothing", remedy="Send the request as JSON."
        )
    reason = _BYTE.sub("", message).replace("JSON is malformed:", "").strip()
    got = f"an end too early, at byte {len(body)}"
    if found := _BYTE.search(message):
        position = int(found.group(1))
        line = body.count(b"\n", 0, position) + 1
        column = position - (body.rfind(b"\n", 0, position) + 1) + 1
        rest = body[position : position + 20].decode("utf-8", "replace")
        got = f"a fault at byte {position} (line {line}, column {column}), before {rest!r}"
    return MalformedRequest(
        f"{base or 'The body'} is not valid JSON: {reason}.",
        expected="JSON in UTF-8 (RFC 8259)",
        got=got,
        remedy="Check the text there.",
    )


def _explain_validation(message: str, body: bytes, fields: Mapping[str, str], base: str) -> InvalidInput:
    at = _AT.search(message)
    inner = at.group(1).lstrip(".") if at else ""
    path = _joined(base, inner)
    text = message[: at.start()] if at else message
    if text.startswith(_UNKNOWN):
        return _explain_unknown(text, body, fields, path)
    if text.startswith(_MISSING):
        name = _joined(path, text[len(_MISSING) :].strip("`"))
        return _invalid(
            name,
            "is missing",
            expected=fields.get(name, f"the field {name}"),
            got="no such field",
            remedy=f"Add the field {name}.",
        )
    found, got = _value_at(body, inner)
    is_marked = isinstance(got, str) and got.startswith(_MARK)
    if is_marked or (not found and text.endswith("got `str`") and has_marked(body)):
        return _invalid(
            path,
            "is not a finite number",
            expected="finite numbers",
            got=got[1:] if is_marked else "NaN or an infinity",
            remedy="Replace missing or infinite values before sending.",
        )
    if text == "Number out of range":
        return _invalid(
            path,
            "is too large for any floating-point number",
            expected="finite numbers",
            got=_shown(found, got) or "a number beyond 1.8e308",
            remedy="Rescale the feature.",
        )
    expected, came = _reworded(text)
    # What a field takes says little about an element deep inside it.
    expected = fields.get(path, expected)
    return _invalid(
        path or "The body",
        "is wrong",
        expected=expected if path else "a JSON object",
        got=_shown(found, got) or came,
        remedy="/docs describes every field." if fields else "Send numbers in arrays of equal length.",
    )


def _explain_unknown(text: str, body: bytes, fields: Mapping[str, str], path: str) -> InvalidInput:
    names = [text[len(_UNKNOWN) :].strip("`")]
    found, document = _value_at(body, "")
    if found and isinstance(document, dict):
        names = [str(name) for name in document if name not in fields] or names
    shown = [name[:_LONGEST_SHOWN] for name in names[:10]]
    close = get_close_matches(shown[0], list(fields), n=1)
    return InvalidInput(
        f"Unknown field{'s' if len(shown) > 1 else ''}: {', '.join(_joined(path, name) for name in shown)}.",
        expected=f"only the fields {', '.join(fields)}",
        got=", ".join(shown),
        remedy=f"Did you mean {close[0]!r}?" if close else f"Remove {'them' if len(shown) > 1 else 'it'}.",
        errors=[FieldError(path=_joined(path, name), message="unknown field") for name in shown],
    )


def _invalid(path: str, fault: str, *, expected: str, got: str, remedy: str) -> InvalidInput:
    return InvalidInput(
        f"{path} {fault}.",
        expected=expected,
        got=got,
        remedy=remedy,
        errors=[FieldError(path=path, message=f"expected {expected}, got {got}")],
    )


def _reworded(text: str) -> tuple[str, str]:
    """msgspec's message as (expected, got), in JSON's words."""
    got = "something else"
    if (match := re.fullmatch(r"Expected (.*), got `(\w+)`", text)) is not None:
        text = f"Expected {match.group(1)}"
        got = _NOUNS.get(match.group(2), match.group(2))
    if text.startswith("Invalid enum value"):
        return "one of the allowed values (see /docs)", text.removeprefix("Invalid enum value ")
    text = text.removeprefix("Expected ")
    return re.sub(r"`([^`]*)`", lambda found: _in_json_words(found.group(1)), text), got


def _in_json_words(types: str) -> str:
    return " or ".join(_NOUNS.get(part.strip(), part.strip()) for part in types.split("|"))


def _joined(base: str, inner: str) -> str:
    return base + inner if not base or not inner or inner.startswith("[") else f"{base}.{inner}"


def _value_at(body: bytes, path: str) -> tuple[bool, Any]:
    """The value at msgspec's path, where it can be had cheaply: (found, value)."""
    if len(body) > _LONGEST_SEARCHED_BYTES:
        return False, None
    try:
        value = msgspec.json.decode(body)
        for index, key in _STEP.findall(path):
            value = value[int(index)] if index else value[key]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError, ValueError):
        return False, None
    return True, value


def _shown(found: bool, value: Any) -> str:  # noqa: FBT001
    if not found:
        return ""
    if isinstance(value, list):
        return f"an array of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
