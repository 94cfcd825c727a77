"""All that an experiment's sums say at one time: figures of variants, comparisons, checks, verdict. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from control_plane.experiments.comparisons import Comparison, compare
from control_plane.experiments.design import Design, Metric, MetricKind
from control_plane.experiments.estimates import level
from control_plane.experiments.guardrails import GuardrailResult, Observed, judge
from control_plane.experiments.moments import Floats, Integers, N, Y
from control_plane.experiments.ratio_mismatch import RatioCheck, check
from control_plane.experiments.sketch import Sketch
from control_plane.experiments.verdict import Verdict

_DECIDED = (Verdict.TREATMENT_BETTER, Verdict.TREATMENT_WORSE)
MISMATCH = (
    "No verdict: the variants didn't get the shares that were declared, so that requests or units were lost or "
    "counted twice somewhere, and no comparison can be trusted."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """What an experiment has counted.

    Attributes:
        moments: Of each metric by name, float64 [epochs, variants, 256, moments]; latency's y is ln(ms).
        sketches: Of latency in ms, [epochs][variants].
        first_assignments: Units by their first assignment in each epoch, int64 [epochs, variants]; exact, or losing
            units alike in all variants (ratio_mismatch.py).
        units: Different units of each variant over all epochs, [variants]; an estimate will do.
        shares: Declared, float64 [epochs, variants].
        planned_information: By variant and metric, as an earlier look fixed it.
        mismatched: An earlier look found the split broken: no later one takes that back.
        ended: Nothing more comes in.
    """

    moments: Mapping[str, Floats]
    sketches: Sequence[Sequence[Sketch]]
    first_assignments: Integers
    units: tuple[int, ...]
    shares: Floats
    planned_information: Mapping[tuple[str, str], float]
    mismatched: bool = False
    ended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricResult:
    """A metric of one variant: how often it was observed, its mean, and the mean's standard error (None: not known)."""

    metric: str
    observations: int
    mean: float | None
    standard_error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult:
    """One variant's figures; None without requests. Latencies in ms, within 1 %."""

    name: str
    requests: int
    units: int
    errors: int
    error_rate: float | None
    avg_latency_ms: float | None
    p50_latency_ms: float | None
    p95_latency_ms: float | None
    p99_latency_ms: float | None
    metrics: tuple[MetricResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentResults:
    """All of it.

    Attributes:
        variants: In declared order.
        comparisons: Of each treatment with the control, by treatment and then metric, in declared order.
        corrected_for: How many comparisons Holm's correction reckons with.
        ratio_checks: One for each share epoch; empty for shadows, which divide nothing.
        mismatched: The split is broken, now or at an earlier look.
        guardrails: By treatment, then guardrail.
        verdicts: Of each treatment: the first declared metric with a difference decides. None: withheld.
        verdict: Over all treatments: better when any is, worse when all are. None: withheld.
        sentences: What a reader is told: one for each difference found, otherwise one for each treatment.
        planned_information: To keep: what was given and what this look fixed.
    """

    variants: tuple[VariantResult, ...]
    comparisons: tuple[Comparison, ...]
    corrected_for: int
    ratio_checks: tuple[RatioCheck, ...]
    mismatched: bool
    guardrails: tuple[GuardrailResult, ...]
    verdicts: Mapping[str, Verdict | None]
    verdict: Verdict | None
    sentences: tuple[str, ...]
    planned_information: Mapping[tuple[str, str], float]


def evaluate(design: Design, seen: Observations) -> ExperimentResults:
    """Everything at one time.

    Args:
        design: Of the experiment. It has one metric of kind latency and one of kind error.
        seen: What was counted.
    """
    found = compare(
        design,
        seen.moments,
        units=seen.units,
        planned_information=seen.planned_information,
        ended=seen.ended,
    )
    information = {
        **{(c.variant, c.metric): c.planned_information for c in found if c.planned_information > 0.0},
        **seen.planned_information,
    }
    checks = (
        ()
        if design.paired
        else check(seen.first_assignments, seen.shares, planned_epochs=design.planned_epochs)
    )
    mismatched = seen.mismatched or any(one.alarm for one in checks)
    verdicts = {
        name: None if mismatched else _decide([c for c in found if c.variant == name])
        for place, name in enumerate(design.variants)
        if place != design.control
    }
    return ExperimentResults(
        variants=tuple(_variant(design, seen, place) for place in range(len(design.variants))),
        comparisons=found,
        corrected_for=sum(c.verdict is not None for c in found),
        ratio_checks=checks,
        mismatched=mismatched,
        guardrails=_guardrails(design, seen, found),
        verdicts=verdicts,
        verdict=None if mismatched else _overall([v for v in verdicts.values() if v is not None]),
        sentences=(MISMATCH,) if mismatched else _sentences(found),
        planned_information=information,
    )


def _decide(comparisons: Sequence[Comparison]) -> Verdict | None:
    verdicts = [c.verdict for c in comparisons if c.verdict is not None]
    return next((v for v in verdicts if v in _DECIDED), verdicts[0] if verdicts else None)


def _overall(verdicts: Sequence[Verdict]) -> Verdict | None:
    if Verdict.TREATMENT_BETTER in verdicts:
        return Verdict.TREATMENT_BETTER
    open_ones = [v for v in verdicts if v is not Verdict.TREATMENT_WORSE]
    return open_ones[0] if open_ones else (verdicts[0] if verdicts else None)


def _sentences(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    told: list[str] = []
    for name in dict.fromkeys(c.variant for c in comparisons):
        own = [c for c in comparisons if c.variant == name and c.verdict is not None]
        told += [c.sentence for c in own if c.verdict in _DECIDED] or [c.sentence for c in own[:1]]
    return tuple(told)


def _variant(design: Design, seen: Observations, place: int) -> VariantResult:
    errors = next(m for m in design.metrics if m.kind is MetricKind.ERROR)
    counted = seen.moments[errors.name][:, place]
    requests, failed = int(counted[..., N].sum()), int(counted[..., Y].sum())
    sketch = Sketch()
    for epoch in seen.sketches:
        sketch.merge(epoch[place])
    return VariantResult(
        name=design.variants[place],
        requests=requests,
        units=seen.units[place],
        errors=failed,
        error_rate=failed / requests if requests else None,
        avg_latency_ms=sketch.mean(),
        p50_latency_ms=sketch.quantile(0.5),
        p95_latency_ms=sketch.quantile(0.95),
        p99_latency_ms=sketch.quantile(0.99),
        metrics=tuple(_metric(m, seen.moments[m.name][:, place]) for m in design.metrics),
    )


def _metric(metric: Metric, moments: Floats) -> MetricResult:
    """The mean over all observations, whatever their epochs; of latency the geometric mean, its error relative."""
    n, y = float(moments[..., N].sum()), float(moments[..., Y].sum())
    error = float(level(moments, binary=metric.kind.binary).standard_error)
    mean = y / n if n else None
    return MetricResult(
        metric=metric.name,
        observations=int(n),
        mean=math.exp(mean) if mean is not None and metric.kind is MetricKind.LATENCY else mean,
        standard_error=error if np.isfinite(error) else None,
    )


def _guardrails(
    design: Design, seen: Observations, comparisons: Sequence[Comparison]
) -> tuple[GuardrailResult, ...]:
    by_name = {(c.variant, c.metric): c for c in comparisons}
    results = []
    for place, name in enumerate(design.variants):
        if place == design.control:
            continue
        for guardrail in design.guardrails:
            arms = [
                Observed(
                    name=design.variants[arm],
                    moments=seen.moments[guardrail.metric][:, arm],
                    sketches=[epoch[arm] for epoch in seen.sketches],
                )
                for arm in (place, design.control)
            ]
            pair = by_name[name, guardrail.metric]
            results.append(
                judge(
                    guardrail,
                    design,
                    treatment=arms[0],
                    control=arms[1],
                    started=pair.started,
                    planned_information=pair.planned_information,
                )
            )
    return tuple(results)
