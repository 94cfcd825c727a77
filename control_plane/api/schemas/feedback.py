"""Requests and answers of POST /feedback.

The body is read by msgspec, past pydantic: a list may hold a thousand entries. The models describe it.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from pydantic import BaseModel, ConfigDict, Field

from control_plane.errors import InvalidInput, MalformedRequest
from control_plane.inference.explanations import explain, is_at_non_finite, quote_non_finite
from control_plane.inference.feedback import Feedback
from control_plane.inference.requests import RequestId

MOST_FEEDBACK = 1_000
LARGEST_REWARD = 1e100
"""Sums of squares of larger ones would overflow."""
_READ_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

Number = Annotated[float, Meta(ge=-LARGEST_REWARD, le=LARGEST_REWARD)]
MetricName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]


class _Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    request_id: RequestId
    reward: Number | None = None
    outcome: Annotated[dict[MetricName, Number], Meta(min_length=1, max_length=32)] | None = None
    action: Annotated[int, Meta(ge=0)] | Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    row: Annotated[int, Meta(ge=0, le=999)] = 0


FEEDBACK_FIELDS = {
    "request_id": "the id that the prediction's answer carries",
    "reward": "a finite number of at most 1e100 in size, or null",
    "outcome": "an object of 1 to 32 numbers by metric name, or null",
    "action": "the index or the class name of the action really taken, or null for the answer's",
    "row": "which row of the request, from 0",
}
_one = msgspec.json.Decoder(_Entry)
_many = msgspec.json.Decoder(list[_Entry])


class FeedbackBody(BaseModel):
    """What came of one prediction. At least one of `reward` and `outcome`."""

    model_config = ConfigDict(extra="forbid", title="Feedback")

    request_id: str = Field(description="As the prediction's answer has it")
    reward: float | None = Field(default=None, description="From which the ensemble's weights learn")
    outcome: dict[str, float] | None = Field(default=None, description="Further metrics, by name")
    action: int | str | None = Field(
        default=None, description="The action really taken, by index or class name; left out: the answer's"
    )
    row: int = Field(default=0, ge=0, le=999, description="Which row of the request")


class FeedbackEntry(BaseModel):
    """What became of one feedback."""

    request_id: str
    status: Literal["accepted", "duplicate", "conflict", "unknown", "expired", "invalid"]
    reason: str | None = Field(default=None, description="Why, where it wasn't taken")


class FeedbackListAnswer(BaseModel):
    """What became of each, in their order."""

    results: list[FeedbackEntry]


def decode_feedback(body: bytes) -> tuple[list[Feedback], bool]:
    """The feedback in a body, and whether it came as a list.

    Raises:
        MalformedRequest: not JSON.
        InvalidInput: a field is missing, unknown, of the wrong type or out of range; nothing to count; too many.
    """
    is_list = body.lstrip()[:1] == b"["
    decoder: msgspec.json.Decoder[Any] = _many if is_list else _one
    try:
        decoded = decoder.decode(body)
    except _READ_ERRORS as error:
        if not is_at_non_finite(error, body):
            raise explain(error, body, FEEDBACK_FIELDS) from error
        quoted = quote_non_finite(body)
        try:
            decoder.decode(quoted)
        except _READ_ERRORS as second:
            raise explain(second, quoted, FEEDBACK_FIELDS) from error
        raise MalformedRequest("NaN and infinities aren't JSON.") from error
    entries: list[_Entry] = decoded if is_list else [decoded]
    if not 1 <= len(entries) <= MOST_FEEDBACK:
        raise InvalidInput(
            "The list is empty." if not entries else "The list is too long.",
            expected=f"1 to {MOST_FEEDBACK} entries",
            got=f"{len(entries)}",
            remedy="Split it.",
        )
    for position, entry in enumerate(entries):
        if entry.reward is None and entry.outcome is None:
            raise InvalidInput(
                f"Entry {position} says nothing." if is_list else "The feedback says nothing.",
                expected="a reward, an outcome, or both",
                got="neither",
                remedy="Add one, or leave the entry out.",
            )
    return [Feedback(**msgspec.structs.asdict(entry)) for entry in entries], is_list
