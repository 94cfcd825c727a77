"""What callers say came of their predictions, and what became of that: the forms that all who learn from it share."""

from dataclasses import dataclass
from enum import StrEnum

import msgspec


class FeedbackStatus(StrEnum):
    """What became of a feedback."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    INVALID = "invalid"


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one prediction; `api/schemas/feedback.py` explains the fields."""

    request_id: str
    reward: float | None = None
    outcome: dict[str, float] | None = None
    action: int | str | None = None
    row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackResult:
    """What became of it; `reason` says why where it wasn't taken."""

    request_id: str
    status: FeedbackStatus
    reason: str | None = None
