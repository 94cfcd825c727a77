"""Requests and answers of /models/{model_type}/{version}/serving."""

from datetime import datetime
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from control_plane.errors import FieldError, InvalidInput
from control_plane.models.card import ServingOptions, Tuning

_LONGEST_S = 86_400


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ResponseCacheBody(_Body):
    """Keeps a version's outputs for identical inputs, in each worker's memory."""

    ttl_s: float = Field(gt=0, le=_LONGEST_S, description="How long kept outputs answer, in seconds")
    max_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=1024,
        le=2**40,
        description="Most memory of one worker for them, in bytes",
    )
    stale_for_s: float = Field(
        default=0.0,
        ge=0,
        le=_LONGEST_S,
        description="How long after `ttl_s` they may answer an overloaded request that degrades, in seconds",
    )


class ServingBody(_Body):
    """How a version is served. What is left out takes its default, apart from `tuning`."""

    on_overload: Literal["reject", "degrade"] = Field(
        default="reject", description="What happens to a request that can't finish in time"
    )
    fallback: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="A cheaper version of the same type that takes the same inputs; no alias",
    )
    response_cache: ResponseCacheBody | None = Field(default=None, description="null: off")
    tuning: dict[str, Any] | None = Field(
        default=None,
        description="Left out, or as GET gives it: kept. null: forgotten. It can't be set",
    )

    def options(self) -> ServingOptions:
        """The options, without `tuning`."""
        return msgspec.convert(self.model_dump(exclude={"tuning"}), ServingOptions)

    def given_tuning(self) -> Tuning | msgspec.UnsetType | None:
        """`tuning`; UNSET where it is left out.

        Raises:
            InvalidInput: it is no measurement at all.
        """
        if "tuning" not in self.model_fields_set:
            return msgspec.UNSET
        try:
            return None if self.tuning is None else msgspec.convert(self.tuning, Tuning)
        except msgspec.ValidationError as error:
            raise InvalidInput(
                "tuning is what was measured, and can't be set.",
                expected="left out, as GET gives it, or null to forget it",
                errors=[
                    FieldError(path="tuning", message="can't be set; leave it out to keep what was measured")
                ],
            ) from error


class TuningAnswer(BaseModel):
    """What was measured and chosen for the dispatcher."""

    rows_per_call: int
    calls_in_flight: int
    objective_p95_ms: float
    p95_ms: float
    rows_per_s: float
    measured_at: str


class ServingOptionsAnswer(BaseModel):
    """The options that hold."""

    on_overload: Literal["reject", "degrade"]
    fallback: str | None
    response_cache: ResponseCacheBody | None
    tuning: TuningAnswer | None


class ServingAnswer(BaseModel):
    """How a version is served."""

    model_config = ConfigDict(protected_namespaces=())

    model_type: str
    version: str
    serving: ServingOptionsAnswer
    warnings: list[str] = Field(description="What is amiss with the options")
    timestamp: datetime


def serving_answer(serving: ServingOptions) -> ServingOptionsAnswer:
    """The options, as answers show them."""
    return ServingOptionsAnswer.model_validate(msgspec.to_builtins(serving))
