"""What an experiment does next by itself: ends in time, steps up, rolls back, is promoted, divides anew. Pure."""

from dataclasses import dataclass, field

from control_plane.experiments import bandit
from control_plane.experiments.assignment import canary_shares
from control_plane.experiments.canary import Action, CanaryState, next_step
from control_plane.experiments.counters import REQUESTS
from control_plane.experiments.definition import Mode, Status
from control_plane.experiments.results import ExperimentResults, Observations
from control_plane.experiments.state import Experiment, counted, next_epoch
from control_plane.store.experiments import StoredCounts

_TO = {Action.STEP: "step", Action.PROMOTE: "promoted", Action.ROLLBACK: "rolled_back"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A change of state. `to` names it in log and metric."""

    to: str
    changes: dict[str, str] = field(default_factory=dict)
    ends: bool = False
    reason: str | None = None


def end(experiment: Experiment, *, now_s: float) -> Move | None:
    """The end, where the time is over."""
    if experiment.ends_at is None or now_s < experiment.ends_at:
        return None
    return Move(
        to=Status.COMPLETED.value,
        changes={"status": Status.COMPLETED.value, "ended_at": repr(experiment.ends_at)},
        ends=True,
    )


def needs_a_look(experiment: Experiment, *, now_s: float) -> bool:
    """Whether counts may move it now."""
    if experiment.rolled_back or experiment.promoted:
        return False
    if experiment.definition.mode is Mode.BANDIT:
        return now_s >= experiment.step_began_s + experiment.definition.epoch_minutes * 60
    return experiment.definition.mode is Mode.CANARY


def look(
    experiment: Experiment,
    stored: StoredCounts,
    seen: Observations,
    results: ExperimentResults,
    *,
    now_s: float,
) -> Move | None:
    """The move that counts make due; None: none."""
    if not needs_a_look(experiment, now_s=now_s):
        return None
    if experiment.definition.mode is Mode.BANDIT:
        return _divide_anew(experiment, seen, now_s=now_s)
    return _canary(experiment, stored, results, now_s=now_s)


def promotion(experiment: Experiment, *, now_s: float, reason: str) -> Move:
    """The treatment takes all."""
    return Move(
        to=_TO[Action.PROMOTE],
        changes={
            **next_epoch(experiment, canary_shares(1.0, control=experiment.definition.control)),
            "promoted": "1",
            "step_began_s": repr(now_s),
            "reason": reason,
        },
        reason=reason,
    )


def _canary(
    experiment: Experiment, stored: StoredCounts, results: ExperimentResults, *, now_s: float
) -> Move | None:
    definition = experiment.definition
    treatment = 1 - definition.control
    requests = counted(stored, REQUESTS, epochs=experiment.epoch + 1, variants=len(definition.variants))[
        experiment.epoch, treatment
    ]
    decision = next_step(
        CanaryState(
            steps=definition.steps,
            step=experiment.step,
            step_began_s=experiment.step_began_s,
            auto_promote=definition.auto_promote,
        ),
        now_s=now_s,
        requests=int(requests),
        broken=[one.reason for one in results.guardrails if one.reason is not None],
    )
    if decision.action is Action.HOLD:
        return None
    if results.mismatched and decision.action is not Action.ROLLBACK:
        return None  # units were lost or counted twice: no guardrail can be trusted to have held
    if decision.action is Action.PROMOTE:
        return promotion(experiment, now_s=now_s, reason=decision.reason)
    changes = {
        **next_epoch(experiment, canary_shares(decision.share, control=definition.control)),
        "step_began_s": repr(now_s),
        "reason": decision.reason,
    }
    if decision.action is Action.ROLLBACK:
        changes["rolled_back"] = "1"
    else:
        changes["step"] = str(experiment.step + 1)
    return Move(to=_TO[decision.action], changes=changes, reason=decision.reason)


def _divide_anew(experiment: Experiment, seen: Observations, *, now_s: float) -> Move:
    definition = experiment.definition
    metric = definition.outcome_metrics()[0]
    shares = bandit.shares(
        seen.moments[metric.name],
        metric.kind,
        metric.direction,
        floor_share=definition.floor_share,
        seed=experiment.epoch,
    )
    return Move(to="reweighted", changes={**next_epoch(experiment, shares), "step_began_s": repr(now_s)})
