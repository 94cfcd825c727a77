"""Requests and answers of /ensembles."""

from datetime import datetime
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from control_plane.ensembles.exported import ExportedState
from control_plane.ensembles.policies import HALF_LIFE_HOURS, TEMPERATURE, PolicySettings

DEFAULT_TEMPERATURE = PolicySettings().temperature


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class PolicyBody(_Body):
    """How the weights follow from the rewards. What is left out takes its default."""

    policy: Literal["thompson", "fixed", "softmax"] = Field(
        default="thompson",
        description="thompson: the probability that the agent is the best. softmax: by mean reward. fixed: as given",
    )
    reward: Literal["normal", "binary"] = Field(
        default="normal", description="normal: any number. binary: 0 or 1, or a share between them"
    )
    half_life_hours: float | None = Field(
        default=None,
        ge=HALF_LIFE_HOURS[0],
        le=HALF_LIFE_HOURS[1],
        description="After which a reward counts half; null: never",
    )
    temperature: float = Field(
        default=DEFAULT_TEMPERATURE,
        ge=TEMPERATURE[0],
        le=TEMPERATURE[1],
        description="softmax: standard deviations of the reward that make e times the weight",
    )
    weights: dict[str, float] | None = Field(
        default=None, description="fixed: by agent, with the sum 1; null: uniform"
    )
    floor: float = Field(default=0.0, ge=0, le=1, description="The least weight of each agent")

    def settings(self) -> PolicySettings:
        """As the ensembles take it."""
        return msgspec.convert(self.model_dump(), PolicySettings)


class StateBody(_Body):
    """What GET …/export gave."""

    model: str = Field(max_length=256)
    agents: list[str] = Field(min_length=1, max_length=64)
    policy: PolicyBody
    sums: dict[str, list[list[float]]] = Field(
        description="By period of the decay: for each agent Σc, Σc², Σc·r, Σc·r²"
    )
    rewards: int = Field(ge=0)
    exported_at: float
    format: int = 1

    def state(self) -> ExportedState:
        """As the ensembles take it."""
        return msgspec.convert(self.model_dump(), ExportedState)


class PosteriorAnswer(BaseModel):
    """What is known of an agent's mean reward; null until rewards have shown a scale."""

    mean: float | None
    sd: float | None
    interval: tuple[float, float] | None = Field(description="95 % credible interval")
    pulls: float = Field(description="Effective number of rewards")


class HistoryEntry(BaseModel):
    """The weights at one time."""

    time: datetime
    weights: dict[str, float]
    rewards: int


class EnsembleAnswer(BaseModel):
    """An ensemble as of now."""

    model: str
    policy: str
    settings: PolicyBody
    weights: dict[str, float]
    posteriors: dict[str, PosteriorAnswer]
    rewards: int = Field(description="How many were counted")
    history: list[HistoryEntry]
    updated_at: datetime | None = Field(description="When something was learned or changed; null: never")
    warnings: list[str]
    timestamp: datetime


class EstimateAnswer(BaseModel):
    """An estimator's value."""

    estimate: float
    standard_error: float
    interval: tuple[float, float]


class PolicyValueAnswer(BaseModel):
    """What a policy would have earned for each request; docs/off_policy.md explains the fields."""

    weights: dict[str, float]
    estimate: float
    standard_error: float
    interval: tuple[float, float]
    naive_interval: tuple[float, float]
    ips: EstimateAnswer
    snips: EstimateAnswer
    dr: EstimateAnswer
    effective_sample_size: float
    diagnostics: dict[str, float]


class EvaluationAnswer(BaseModel):
    """How policies would have done, as far as the log can tell."""

    model: str
    status: Literal["ok", "not_identifiable"]
    reason: str | None = Field(description="Why there is no number, where there is none")
    entries: int = Field(description="Rewarded decisions in the log")
    left_out: int = Field(description="Of these, with numbers that no decision has: not probabilities")
    sampled: int | None = Field(description="Of these, drawn with a known propensity")
    level: float | None
    interval_method: str | None
    logged: EstimateAnswer | None = Field(description="What was really earned")
    policies: dict[str, PolicyValueAnswer]
    not_identifiable: dict[str, str] = Field(
        description="Policies that the log says nothing reliable about, and why"
    )
    computed_at: datetime
    timestamp: datetime


def state_answer(state: ExportedState) -> dict[str, Any]:
    """JSON of an exported state."""
    document: dict[str, Any] = msgspec.to_builtins(state)
    return document
