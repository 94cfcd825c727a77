"""Does the treatment do harm? Tests that hold at any time, each with its own part of alpha. Pure.

The chance that a harmless treatment ever breaks any guardrail is at most alpha. Error rates and P95 latencies are
judged exactly (evidence.py), other metrics by the one-sided confidence sequence (sequential.py).

With routing keys error rates and latencies count as many requests as independent ones would say the same, by the
control's spread between buckets: an account that always fails, and happens to be given to the treatment, is no evidence
against it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from control_plane.experiments.design import Design, Direction, Guardrail, Metric, MetricKind
from control_plane.experiments.estimates import design_effect, estimate, level
from control_plane.experiments.evidence import combine_epochs, log_quantile_evidence, log_rate_evidence
from control_plane.experiments.moments import Floats, N, Y
from control_plane.experiments.sequential import half_width_one_sided, information_of
from control_plane.experiments.sketch import Sketch

QUANTILE = 0.95
"""Of a latency guardrail."""
_LARGEST_LOG = 700.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardrailResult:
    """One guardrail of one treatment.

    Attributes:
        metric: Its name.
        variant: The treatment.
        treatment: Observed: error rate, P95 in ms, or mean; None without observations.
        control: Likewise.
        limit: What the treatment must not pass, given the control's figure as observed; None without it.
        alpha: This guardrail's part.
        evidence: Against the hypothesis that the limit holds, 1 / alpha breaks it; None for metrics that are judged by
            a confidence sequence.
        broken: Whether the limit is passed beyond chance.
        reason: A sentence when broken, else None.
    """

    metric: str
    variant: str
    treatment: float | None
    control: float | None
    limit: float | None
    alpha: float
    evidence: float | None
    broken: bool
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What one variant did, by share epoch.

    Attributes:
        name: Of the variant.
        moments: Of the guardrail's metric, float64 [epochs, 256, moments].
        sketches: Of latency, one for each epoch. Needed for latency only.
    """

    name: str
    moments: Floats
    sketches: Sequence[Sketch] = ()


def judge(
    guardrail: Guardrail,
    design: Design,
    *,
    treatment: Observed,
    control: Observed,
    started: bool,
    planned_information: float,
) -> GuardrailResult:
    """One guardrail.

    Args:
        guardrail: Which; its metric is one of the design's.
        design: Of the experiment.
        treatment: The variant that might do harm.
        control: The one it is compared with.
        started: Both have enough for an approximation; error rates and P95 need none and don't wait.
        planned_information: Of the pair's difference; 0 while unknown. Not needed for error rates and P95.
    """
    metric = next(m for m in design.metrics if m.name == guardrail.metric)
    alpha = design.alpha / len(design.guardrails)
    if metric.kind is MetricKind.LATENCY:
        return _latency(guardrail, design, alpha, treatment, control)
    if metric.kind is MetricKind.ERROR:
        return _error_rate(guardrail, design, alpha, treatment, control)
    known = planned_information if started else 0.0
    return _mean(guardrail, metric, design, alpha, treatment, control, known)


def broken_by_mean(
    excess: npt.ArrayLike, standard_error: npt.ArrayLike, planned_information: npt.ArrayLike, alpha: float
) -> npt.NDArray[np.bool_]:
    """Whether a harm beyond the limit exceeds its bound; bool [...].

    Args:
        excess: Harm less what is allowed, [...].
        standard_error: Its, [...].
        planned_information: [...].
        alpha: One-sided.
    """
    half = half_width_one_sided(standard_error, information_of(standard_error), planned_information, alpha)
    found: npt.NDArray[np.bool_] = np.asarray(excess) > half
    return found


def _error_rate(
    guardrail: Guardrail, design: Design, alpha: float, treatment: Observed, control: Observed
) -> GuardrailResult:
    (k, n), (j, m) = (
        (arm.moments[..., Y].sum(axis=-1), arm.moments[..., N].sum(axis=-1)) for arm in (treatment, control)
    )
    effect = _effect(design, control)
    logs = log_rate_evidence(
        k / effect,
        n / effect,
        j / effect,
        m / effect,
        max_difference=guardrail.max_difference,
        max_ratio=guardrail.max_ratio,
        paired=design.paired,
    )
    ours, theirs = _over(k.sum(), n.sum()), _over(j.sum(), m.sum())
    return _exact(guardrail, design, alpha, treatment, logs, ours, theirs, "error rate", "")


def _latency(
    guardrail: Guardrail, design: Design, alpha: float, treatment: Observed, control: Observed
) -> GuardrailResult:
    effect = _effect(design, control)
    logs = [
        log_quantile_evidence(
            ours,
            theirs,
            max_difference=guardrail.max_difference,
            max_ratio=guardrail.max_ratio,
            quantile=QUANTILE,
            paired=design.paired,
            design_effect=effect,
        )
        for ours, theirs in zip(treatment.sketches, control.sketches, strict=True)
    ]
    figures = [_merged(arm.sketches).quantile(QUANTILE) for arm in (treatment, control)]
    return _exact(guardrail, design, alpha, treatment, logs, figures[0], figures[1], "P95 latency", " ms")


def _effect(design: Design, control: Observed) -> float:
    return 1.0 if design.units_are_requests else float(design_effect(control.moments))


def _exact(
    guardrail: Guardrail,
    design: Design,
    alpha: float,
    treatment: Observed,
    logs: Sequence[float],
    ours: float | None,
    theirs: float | None,
    words: str,
    unit: str,
) -> GuardrailResult:
    log = float(combine_epochs(logs, planned_epochs=design.planned_epochs or len(logs))) if len(logs) else 0.0
    broken = log >= -math.log(alpha)
    limit = _limit(guardrail, theirs, harm_is_up=True)
    return GuardrailResult(
        metric=guardrail.metric,
        variant=treatment.name,
        treatment=ours,
        control=theirs,
        limit=limit,
        alpha=alpha,
        evidence=math.exp(min(log, _LARGEST_LOG)),
        broken=broken,
        reason=_reason(guardrail, treatment.name, words, ours, theirs, unit) if broken else None,
    )


def _mean(
    guardrail: Guardrail,
    metric: Metric,
    design: Design,
    alpha: float,
    treatment: Observed,
    control: Observed,
    planned_information: float,
) -> GuardrailResult:
    up = metric.direction is Direction.UP
    harmed, other = (control, treatment) if up else (treatment, control)
    ratio = guardrail.max_ratio if guardrail.max_ratio is not None else 1.0
    binary = metric.kind.binary
    found = (
        level(treatment.moments, binary=binary)
        if metric.treatment_only
        else estimate(harmed.moments, other.moments, binary=binary, paired=design.paired, ratio=ratio)
    )
    excess = float(found.difference) - (guardrail.max_difference or 0.0)
    broken = bool(broken_by_mean(excess, found.standard_error, planned_information, alpha))
    known = bool(np.isfinite(found.standard_error))
    harm, against = (float(found.treatment), float(found.control)) if known else (None, None)
    ours, theirs = (against, harm) if up else (harm, against)
    return GuardrailResult(
        metric=guardrail.metric,
        variant=treatment.name,
        treatment=ours,
        control=theirs,
        limit=_limit(guardrail, theirs, harm_is_up=not up),
        alpha=alpha,
        evidence=None,
        broken=broken,
        reason=_reason(guardrail, treatment.name, metric.name, ours, theirs, "") if broken else None,
    )


def _limit(guardrail: Guardrail, control: float | None, *, harm_is_up: bool) -> float | None:
    if control is None:
        return None
    if guardrail.max_ratio is not None:
        return control * guardrail.max_ratio if harm_is_up else control / guardrail.max_ratio
    allowed = guardrail.max_difference or 0.0
    return control + allowed if harm_is_up else control - allowed


def _reason(
    guardrail: Guardrail, name: str, words: str, ours: float | None, theirs: float | None, unit: str
) -> str:
    allowed = (
        f"a ratio of {guardrail.max_ratio:g}"
        if guardrail.max_ratio is not None
        else f"a difference of {guardrail.max_difference:g}"
    )
    return f"{words} of {name} is {ours:.4g}{unit} against {theirs:.4g}{unit}: worse by more than {allowed}"


def _over(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _merged(sketches: Sequence[Sketch]) -> Sketch:
    total = Sketch()
    for sketch in sketches:
        total.merge(sketch)
    return total
