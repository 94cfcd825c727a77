"""Ensembles: their weights, what they learned, how other weights would have done. Decides nothing:
`ensembles/operations.py` does.
"""

from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request

from control_plane.api.models import problems
from control_plane.api.resources import resources_of
from control_plane.api.schemas.ensembles import (
    EnsembleAnswer,
    EstimateAnswer,
    EvaluationAnswer,
    HistoryEntry,
    PolicyBody,
    PolicyValueAnswer,
    PosteriorAnswer,
    StateBody,
    state_answer,
)
from control_plane.ensembles.operations import EnsembleEvaluation, EnsembleView
from control_plane.errors import FieldError, InvalidInput

if TYPE_CHECKING:
    from control_plane.ensembles.confidence import Estimate
    from control_plane.ensembles.off_policy import PolicyValue
    from control_plane.ensembles.posteriors import Posterior

router = APIRouter(prefix="/ensembles", tags=["ensembles"])

_MISSING = HTTPStatus.NOT_FOUND
_CONFLICT = HTTPStatus.CONFLICT
_INVALID = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
_DOWN = HTTPStatus.SERVICE_UNAVAILABLE
_DIAGNOSTICS = (
    "expected_effective_size",
    "mean_weight",
    "mean_weight_error",
    "max_weight",
    "max_weight_share",
    "unsupported",
)


@router.get("/{model}", response_model=EnsembleAnswer, responses=problems(_MISSING, _DOWN))
async def get_ensemble(request: Request, model: str) -> EnsembleAnswer:
    """Weights, posteriors and history of `rl_ensemble-<version>`; `<version>` may be `latest` or an alias."""
    return _answer(await resources_of(request).ensembles.look(model))


@router.put(
    "/{model}", response_model=EnsembleAnswer, responses=problems(*_INVALID, _MISSING, _CONFLICT, _DOWN)
)
async def put_policy(request: Request, model: str, body: PolicyBody) -> EnsembleAnswer:
    """Sets how the weights follow from the rewards, for all workers at once. What was learned stays."""
    return _answer(await resources_of(request).ensembles.change_policy(model, body.settings()))


@router.post("/{model}/reset", response_model=EnsembleAnswer, responses=problems(_MISSING, _DOWN))
async def reset(request: Request, model: str) -> EnsembleAnswer:
    """Forgets all rewards, with the history and the log of the evaluation. The policy stays."""
    return _answer(await resources_of(request).ensembles.reset(model))


@router.get("/{model}/export", response_model=StateBody, responses=problems(_MISSING, _DOWN))
async def export(request: Request, model: str) -> dict[str, Any]:
    """All that the ensemble learned, for POST …/import here or elsewhere."""
    return state_answer(await resources_of(request).ensembles.export(model))


@router.post("/{model}/import", response_model=EnsembleAnswer, responses=problems(*_INVALID, _MISSING, _DOWN))
async def import_state(request: Request, model: str, body: StateBody) -> EnsembleAnswer:
    """Puts an exported state, policy and all, in the place of the present one."""
    return _answer(await resources_of(request).ensembles.import_state(model, body.state()))


@router.get(
    "/{model}/evaluation", response_model=EvaluationAnswer, responses=problems(*_INVALID, _MISSING, _DOWN)
)
async def evaluate(
    request: Request,
    model: str,
    weights: Annotated[
        str | None,
        Query(
            description="Weights to evaluate too: `ppo:0.7,a2c:0.3`; agents left out have 0", max_length=8192
        ),
    ] = None,
) -> EvaluationAnswer:
    """How each agent alone, uniform weights, the current and the given ones would have done on the rewarded requests.

    `not_identifiable` instead of a number where the log can't tell: greedy actions have no alternatives.
    """
    ensembles = resources_of(request).ensembles
    given = None if weights is None else _parse_weights(weights)
    return _evaluation(await ensembles.evaluate(model, given))


def _parse_weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition(":")
        name = name.strip()
        try:
            value = float(number)
        except ValueError:
            name = ""
        if not name or name in weights:
            raise InvalidInput(
                "weights can't be read.",
                expected="agents and numbers, as in ppo:0.7,a2c:0.3, each agent once",
                got=text[:200],
                errors=[FieldError(path="weights", message=f"{part[:80]!r} is no agent with a number")],
            )
        weights[name] = value
    return weights


def _answer(view: EnsembleView) -> EnsembleAnswer:
    learned = view.learned
    return EnsembleAnswer(
        model=view.card.triton_model,
        policy=learned.settings.policy.value,
        settings=PolicyBody(
            policy=learned.settings.policy.value,
            reward=learned.settings.reward.value,
            half_life_hours=learned.settings.half_life_hours,
            temperature=learned.settings.temperature,
            weights=learned.settings.weights,
            floor=learned.settings.floor,
        ),
        weights=dict(zip(learned.agents, learned.weights.tolist(), strict=True)),
        posteriors={
            agent: _posterior(posterior)
            for agent, posterior in zip(learned.agents, learned.posteriors, strict=True)
        },
        rewards=learned.state.rewards,
        history=[
            HistoryEntry(
                time=_time(point.time_s),
                weights=dict(zip(learned.agents, point.weights, strict=False)),
                rewards=point.rewards,
            )
            for point in view.history
        ],
        updated_at=None if learned.state.updated_at is None else _time(learned.state.updated_at),
        warnings=list(learned.warnings),
        timestamp=datetime.now(UTC),
    )


def _posterior(posterior: "Posterior") -> PosteriorAnswer:
    lower, upper = posterior.lower, posterior.upper
    return PosteriorAnswer(
        mean=posterior.mean,
        sd=posterior.sd,
        interval=None if lower is None or upper is None else (lower, upper),
        pulls=posterior.pulls,
    )


def _evaluation(result: EnsembleEvaluation) -> EvaluationAnswer:
    evaluation = result.evaluation
    return EvaluationAnswer(
        model=result.card.triton_model,
        status="ok" if evaluation is not None else "not_identifiable",
        reason=result.reason,
        entries=result.entries,
        left_out=result.left_out,
        sampled=None if evaluation is None else evaluation.sampled,
        level=None if evaluation is None else evaluation.level,
        interval_method=None if evaluation is None else evaluation.interval_method,
        logged=None if evaluation is None else _estimate(evaluation.logged),
        policies={}
        if evaluation is None
        else {
            name: _policy_value(value, result.weights[name]) for name, value in evaluation.policies.items()
        },
        not_identifiable={} if evaluation is None else dict(evaluation.not_identifiable),
        computed_at=_time(result.computed_at),
        timestamp=datetime.now(UTC),
    )


def _policy_value(value: "PolicyValue", weights: dict[str, float]) -> PolicyValueAnswer:
    return PolicyValueAnswer(
        weights=weights,
        estimate=value.estimate,
        standard_error=value.standard_error,
        interval=(value.interval.lower, value.interval.upper),
        naive_interval=(value.naive_interval.lower, value.naive_interval.upper),
        ips=_estimate(value.ips),
        snips=_estimate(value.snips),
        dr=_estimate(value.dr),
        effective_sample_size=value.effective_sample_size,
        diagnostics={name: getattr(value, name) for name in _DIAGNOSTICS},
    )


def _estimate(estimate: "Estimate") -> EstimateAnswer:
    return EstimateAnswer(
        estimate=estimate.estimate,
        standard_error=estimate.standard_error,
        interval=(estimate.lower, estimate.upper),
    )


def _time(wall_s: float) -> datetime:
    return datetime.fromtimestamp(wall_s, UTC)
