"""From what a caller proposes to a definition that holds. Pure apart from what the registry has in memory."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from control_plane.errors import FieldError, InvalidInput
from control_plane.experiments.canary import Step
from control_plane.experiments.definition import (
    ERROR,
    LATENCY,
    AssignmentKind,
    Definition,
    Mode,
    Variant,
)
from control_plane.experiments.design import Direction, Guardrail, Metric, MetricKind
from control_plane.inference.routing import NO_EXPERIMENT
from control_plane.models.registry import ModelRegistry
from control_plane.models.serving import misfit

FEWEST_VARIANTS, MOST_VARIANTS = 2, 10
SHARES_TOLERANCE = 1e-3
MOST_EPOCHS = 150
"""Of a bandit: each has sums of its own, which all are read at a look."""
DISAGREEMENT = (
    Metric(name="class_flips", kind=MetricKind.MEAN, direction=Direction.DOWN, treatment_only=True),
    Metric(name="total_variation", kind=MetricKind.MEAN, direction=Direction.DOWN, treatment_only=True),
    Metric(name="regression_difference", kind=MetricKind.MEAN, direction=Direction.DOWN, treatment_only=True),
)
"""What a shadow's answers are compared by."""
DEFAULT_STEPS = tuple(Step(share=share, duration_s=600.0, requests=500) for share in (0.01, 0.05, 0.25, 0.5))
DEFAULT_GUARDRAILS = (
    Guardrail(metric=ERROR, max_difference=0.01),
    Guardrail(metric=LATENCY, max_ratio=1.1),
)
_TWO_ARMED = {Mode.SHADOW, Mode.CANARY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a caller asks for; types and ranges of single fields are checked already."""

    experiment_id: str
    model_variants: Mapping[str, tuple[str, str]]
    """Model type and version by variant, in declared order."""
    traffic_split: Mapping[str, float]
    duration_hours: float
    mode: Mode
    metrics: tuple[Metric, ...]
    alpha: float
    min_sample: int
    planned_requests: int
    salt: str | None
    assignment: AssignmentKind
    block_minutes: float
    guardrails: tuple[Guardrail, ...] | None
    steps: tuple[Step, ...] | None
    auto_promote: bool
    floor_share: float
    epoch_minutes: float


def define(proposal: Proposal, registry: ModelRegistry, *, now_s: float) -> Definition:
    """The definition.

    Raises:
        InvalidInput: names don't match, shares don't sum to 1, versions don't exist, or the mode can't work so.
        UnknownModel, UnknownVersion: as `ModelRegistry.resolve`; told as 422 by the caller.
    """
    if proposal.experiment_id == NO_EXPERIMENT:
        raise _wrong("experiment_id", f"another name: {NO_EXPERIMENT} means no experiment", NO_EXPERIMENT)
    names = list(proposal.model_variants)
    if not FEWEST_VARIANTS <= len(names) <= MOST_VARIANTS:
        raise _wrong("model_variants", f"{FEWEST_VARIANTS} to {MOST_VARIANTS} variants", f"{len(names)}")
    if set(proposal.traffic_split) != set(names):
        raise _wrong(
            "traffic_split", f"a share for each of {', '.join(names)}", ", ".join(proposal.traffic_split)
        )
    total = math.fsum(proposal.traffic_split.values())
    if abs(total - 1) > SHARES_TOLERANCE:
        raise _wrong("traffic_split", "shares that sum to 1", f"a sum of {total:.6g}")
    if any(share <= 0 for share in proposal.traffic_split.values()):
        raise _wrong("traffic_split", "a share above 0 for each variant", str(dict(proposal.traffic_split)))
    if proposal.mode in _TWO_ARMED and len(names) != FEWEST_VARIANTS:
        raise _wrong("model_variants", f"two variants for a {proposal.mode}", f"{len(names)}")
    types = {model_type for model_type, _ in proposal.model_variants.values()}
    if len(types) > 1:
        raise _wrong("model_variants", "variants of one model type", ", ".join(sorted(types)))
    variants = []
    for name, (model_type, version) in proposal.model_variants.items():
        model = registry.find(model_type, version)
        if model is None:
            known = ", ".join(one.version for one in registry.versions(model_type)) or "none"
            raise _wrong(
                f"model_variants.{name}.version",
                f"a registered version of {model_type}: {known} (no alias, and not latest)",
                version,
            )
        variants.append(Variant(name=name, version=model.version))
    _check_inputs(variants, types, registry)
    metrics = _metrics(proposal)
    definition = Definition(
        experiment_id=proposal.experiment_id,
        model_type=types.pop(),
        variants=tuple(variants),
        shares=tuple(proposal.traffic_split[name] / total for name in names),
        mode=proposal.mode,
        metrics=metrics,
        alpha=proposal.alpha,
        min_sample=proposal.min_sample,
        planned_requests=proposal.planned_requests,
        salt=proposal.salt,
        assignment=proposal.assignment,
        block_minutes=proposal.block_minutes,
        guardrails=_guardrails(proposal, metrics),
        steps=_steps(proposal),
        auto_promote=proposal.auto_promote,
        floor_share=proposal.floor_share,
        epoch_minutes=proposal.epoch_minutes,
        duration_hours=proposal.duration_hours,
        created_at=now_s,
        ends_at=now_s + proposal.duration_hours * 3600,
    )
    _check_mode(definition)
    return definition


def _check_inputs(variants: list[Variant], types: set[str], registry: ModelRegistry) -> None:
    """All take what the first does: else some requests could be answered by one variant only."""
    (model_type,) = types
    found = [registry.find(model_type, variant.version) for variant in variants]
    for variant, model in zip(variants, found, strict=True):
        first = found[0]
        if first is None or model is None:
            continue
        fault = misfit(first.card, model.card) or misfit(model.card, first.card)
        if fault is not None:
            raise _wrong(
                f"model_variants.{variant.name}",
                f"a version that takes the same inputs as {variants[0].version}",
                f"{variant.version}, which {fault}",
            )


def _metrics(proposal: Proposal) -> tuple[Metric, ...]:
    names = [metric.name for metric in proposal.metrics]
    if len(set(names)) != len(names):
        raise _wrong("metrics", "each name once", ", ".join(names))
    metrics = proposal.metrics
    for kind, name in ((MetricKind.ERROR, ERROR), (MetricKind.LATENCY, LATENCY)):
        of_kind = [metric for metric in metrics if metric.kind is kind]
        if len(of_kind) > 1:
            raise _wrong("metrics", f"one metric of kind {kind}", f"{len(of_kind)}")
        if not of_kind:
            if name in names:
                raise _wrong("metrics", f"{name} of kind {kind}", "another kind")
            metrics += (Metric(name=name, kind=kind, direction=Direction.DOWN),)
        elif of_kind[0].direction is not Direction.DOWN:
            raise _wrong("metrics", f"down as the direction of {of_kind[0].name}: less is better", "up")
    if proposal.mode is Mode.SHADOW:
        if taken := sorted(set(names) & {metric.name for metric in DISAGREEMENT}):
            raise _wrong("metrics", "names that shadows don't measure themselves", ", ".join(taken))
        metrics += DISAGREEMENT
    return metrics


def _guardrails(proposal: Proposal, metrics: tuple[Metric, ...]) -> tuple[Guardrail, ...]:
    kinds = {metric.kind: metric.name for metric in metrics}
    if proposal.guardrails is None:
        if proposal.mode is not Mode.CANARY:
            return ()
        named = {ERROR: kinds[MetricKind.ERROR], LATENCY: kinds[MetricKind.LATENCY]}
        return tuple(
            Guardrail(metric=named[one.metric], max_ratio=one.max_ratio, max_difference=one.max_difference)
            for one in DEFAULT_GUARDRAILS
        )
    known = {metric.name: metric for metric in metrics}
    for place, guardrail in enumerate(proposal.guardrails):
        path = f"guardrails[{place}]"
        metric = known.get(guardrail.metric)
        if metric is None:
            raise _wrong(f"{path}.metric", f"one of {', '.join(known)}", guardrail.metric)
        if (guardrail.max_ratio is None) == (guardrail.max_difference is None):
            raise _wrong(path, "either max_ratio or max_difference", "both or neither")
        if metric.kind is MetricKind.LATENCY and guardrail.max_ratio is None:
            raise _wrong(path, "max_ratio for a latency", "max_difference")
    return proposal.guardrails


def _steps(proposal: Proposal) -> tuple[Step, ...]:
    if proposal.mode is not Mode.CANARY:
        if proposal.steps is not None:
            raise _wrong("steps", f"no steps for mode {proposal.mode}", "steps")
        return ()
    steps = proposal.steps or DEFAULT_STEPS
    shares = [step.share for step in steps]
    if shares != sorted(set(shares)):
        raise _wrong("steps", "shares that rise from step to step", ", ".join(f"{one:g}" for one in shares))
    return steps


def _check_mode(definition: Definition) -> None:
    if definition.mode is Mode.BANDIT:
        if not definition.outcome_metrics():
            raise _wrong("metrics", "a metric of kind rate or mean, which a bandit follows", "none")
        epochs = definition.duration_hours * 60 / definition.epoch_minutes
        if epochs > MOST_EPOCHS:
            raise _wrong("epoch_minutes", f"at most {MOST_EPOCHS} epochs in the experiment", f"{epochs:.0f}")
        if definition.floor_share * len(definition.variants) > 1:
            most = 1 / len(definition.variants)
            raise _wrong("floor_share", f"at most {most:g}", f"{definition.floor_share:g}")
    if definition.assignment is AssignmentKind.SWITCHBACK and definition.mode is not Mode.AB:
        raise _wrong("assignment", "hash, but for mode ab", "switchback")


def _wrong(path: str, expected: str, got: str) -> InvalidInput:
    return InvalidInput(
        f"{path} can't be those of an experiment.",
        expected=expected,
        got=got[:500],
        remedy="docs/experiments.md explains the fields.",
        errors=[FieldError(path=path, message=f"expected {expected}, got {got[:200]}")],
    )
