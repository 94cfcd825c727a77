"""Each treatment against the control, metric by metric: estimates, intervals, p-values, verdicts. Pure."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from control_plane.experiments.design import Design, Metric, MetricKind
from control_plane.experiments.estimates import Estimate, adjusted, estimate, level
from control_plane.experiments.fixed_horizon import FixedTest, error_rates, t_test
from control_plane.experiments.holm import holm
from control_plane.experiments.moments import XN, Floats, N, Y
from control_plane.experiments.sequential import (
    Interval,
    half_width,
    information_of,
    p_always_valid,
    planned_information,
    started,
)
from control_plane.experiments.verdict import Verdict, sentence, verdict

FEW_UNITS = 20.0
"""Effective units below which a note is due: a few large ones make most of the requests."""
_FEW = (
    "a few large units make most of the requests: more units would narrow the interval, more requests hardly"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustedComparison:
    """The comparison with a covariate taken out (CUPED). Numbers as in `Comparison`."""

    difference: float
    standard_error: float | None
    interval: Interval
    p_always_valid: float | None
    theta: float
    variance_reduction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One treatment and the control in one metric.

    Attributes:
        variant: The treatment.
        metric: Name of the metric.
        started: Both have the requests and units that a valid look needs.
        treatment: Mean, stratified by epoch; of latency the geometric mean in ms. None without a common epoch.
        control: Likewise.
        difference: Treatment - control; of latency the logarithm of the ratio. 0 while nothing is known.
        standard_error: Of `difference`; None while nothing is known.
        relative: treatment / control - 1; None where that makes no sense.
        fixed_horizon: Valid only at the planned end.
        interval: Always-valid, of `difference`; without bounds before `started`.
        ratio_interval: Of latency: the interval of the ratio of geometric means.
        p_always_valid: None before `started`.
        p_holm: After Holm's correction over all comparisons; the verdict rests on it.
        effective_units: Of the smaller side: of how many equally large units the requests say as much, at most 256.
        planned_information: 1 / se² expected at the planned end, fixed at the first look; 0 before it.
        adjusted: With a covariate taken out; None where no request carries one.
        verdict: None for a metric that the treatment alone has.
        sentence: The verdict in words.
        warnings: What to bear in mind.
    """

    variant: str
    metric: str
    started: bool
    treatment: float | None
    control: float | None
    difference: float
    standard_error: float | None
    relative: float | None
    fixed_horizon: FixedTest
    interval: Interval
    ratio_interval: Interval | None
    p_always_valid: float | None
    p_holm: float | None
    effective_units: float
    planned_information: float
    adjusted: AdjustedComparison | None
    verdict: Verdict | None
    sentence: str
    warnings: tuple[str, ...]


def compare(
    design: Design,
    moments: Mapping[str, Floats],
    *,
    units: Sequence[int],
    planned_information: Mapping[tuple[str, str], float],
    ended: bool,
) -> tuple[Comparison, ...]:
    """All comparisons, by treatment and then metric.

    Args:
        design: Of the experiment.
        moments: Of each metric, float64 [epochs, variants, 256, moments].
        units: Different ones of each variant.
        planned_information: By variant and metric, as an earlier look fixed it.
        ended: Nothing more comes in.
    """
    requests = max(float(values[..., N].sum()) for values in moments.values())
    treatments = [place for place in range(len(design.variants)) if place != design.control]
    found = [
        _pair(
            design,
            metric,
            moments[metric.name],
            place,
            units=(units[place], units[design.control]),
            requests=requests,
            planned=planned_information.get((design.variants[place], metric.name), 0.0),
        )
        for place in treatments
        for metric in design.metrics
    ]
    judged = [place for place, one in enumerate(found) if one.verdict is not None]
    corrected = holm([_or_one(found[place].p_always_valid) for place in judged])
    kinds = {metric.name: metric for metric in design.metrics}
    for place, p in zip(judged, corrected, strict=True):
        found[place] = _judged(found[place], design, kinds[found[place].metric], p, ended=ended)
    return tuple(found)


def _pair(
    design: Design,
    metric: Metric,
    moments: Floats,
    place: int,
    *,
    units: tuple[int, int],
    requests: float,
    planned: float,
) -> Comparison:
    treatment, control = moments[:, place], moments[:, design.control]
    found = _estimated(design, metric, treatment, control)
    se = float(found.standard_error)
    known = math.isfinite(se)
    counts = [float(arm[..., N].sum()) for arm in (treatment, control)]
    enough = (
        started(counts[:1] * 2, units[:1] * 2, min_sample=design.min_sample)
        if metric.treatment_only
        else started(counts, units, min_sample=design.min_sample)
    )
    begun = bool(enough) and known
    if begun and not planned:
        planned = float(planned_information(se, requests, max(design.planned_requests, requests)))
    valid, p = _always_valid(found, planned if begun else 0.0, design.alpha)
    latency = metric.kind is MetricKind.LATENCY
    levels = [float(found.treatment), float(found.control)] if known else None
    buckets = [float(found.treatment_buckets), float(found.control_buckets)]
    effective = buckets[0] if metric.treatment_only else min(buckets)
    few = begun and effective < FEW_UNITS
    return Comparison(
        variant=design.variants[place],
        metric=metric.name,
        started=begun,
        treatment=_level(levels, 0, latency=latency),
        control=_level(levels, 1, latency=latency),
        difference=float(found.difference),
        standard_error=se if known else None,
        relative=_relative(levels, latency=latency),
        fixed_horizon=_fixed(design, metric, found, treatment, control),
        interval=valid,
        ratio_interval=_exponential(valid) if latency else None,
        p_always_valid=p,
        p_holm=None,
        effective_units=effective,
        planned_information=planned,
        adjusted=_adjusted(design, metric, treatment, control, planned if begun else 0.0),
        verdict=None if metric.treatment_only else Verdict.NO_DIFFERENCE_YET,
        sentence="",
        warnings=(_FEW,) if few else (),
    )


def _estimated(design: Design, metric: Metric, treatment: Floats, control: Floats) -> Estimate:
    if metric.treatment_only:
        return level(treatment, binary=metric.kind.binary)
    return estimate(treatment, control, binary=metric.kind.binary, paired=design.paired)


def _always_valid(found: Estimate, planned: float, alpha: float) -> tuple[Interval, float | None]:
    if not planned > 0.0 or not np.isfinite(found.standard_error):
        return Interval(lower=None, upper=None), None
    half = float(half_width(found.standard_error, information_of(found.standard_error), planned, alpha))
    middle = float(found.difference)
    p = float(p_always_valid(found.difference, found.standard_error, planned, alpha))
    return Interval(lower=middle - half, upper=middle + half), p


def _fixed(design: Design, metric: Metric, found: Estimate, treatment: Floats, control: Floats) -> FixedTest:
    both = [arm for arm in (treatment, control) if arm[..., N].any()]
    epochs = int(np.count_nonzero(treatment[..., N].any(axis=-1) | control[..., N].any(axis=-1)))
    plain = (
        metric.kind.binary and design.units_are_requests and not design.paired and not metric.treatment_only
    )
    if plain and epochs == 1 and len(both) == 2:
        (k, n), (j, m) = ((int(arm[..., Y].sum()), int(arm[..., N].sum())) for arm in both)
        return error_rates(treatment_errors=k, treatment=n, control_errors=j, control=m, alpha=design.alpha)
    return t_test(float(found.difference), float(found.standard_error), float(found.degrees), design.alpha)


def _adjusted(
    design: Design, metric: Metric, treatment: Floats, control: Floats, planned: float
) -> AdjustedComparison | None:
    if metric.treatment_only or not (treatment[..., XN].any() and control[..., XN].any()):
        return None
    found = adjusted(treatment, control, binary=metric.kind.binary, paired=design.paired)
    # The adjusted estimate knows more by the same factor from the beginning to the end.
    gain = max(1.0 - float(found.variance_reduction), 1e-6)
    valid, p = _always_valid(found.estimate, planned / gain, design.alpha)
    se = float(found.estimate.standard_error)
    return AdjustedComparison(
        difference=float(found.estimate.difference),
        standard_error=se if math.isfinite(se) else None,
        interval=valid,
        p_always_valid=p,
        theta=float(found.theta),
        variance_reduction=float(found.variance_reduction),
    )


def _judged(one: Comparison, design: Design, metric: Metric, p: float, *, ended: bool) -> Comparison:
    known = one.p_always_valid is not None
    called = verdict(one.difference, p if known else None, metric.direction, alpha=design.alpha, ended=ended)
    words = sentence(
        called,
        metric,
        treatment=one.variant,
        control=design.variants[design.control],
        difference=one.difference,
        interval=one.interval,
        alpha=design.alpha,
    )
    return dataclasses.replace(one, p_holm=p if known else None, verdict=called, sentence=words)


def _level(levels: Sequence[float] | None, place: int, *, latency: bool) -> float | None:
    if levels is None:
        return None
    return math.exp(levels[place]) if latency else levels[place]


def _relative(levels: Sequence[float] | None, *, latency: bool) -> float | None:
    if levels is None:
        return None
    if latency:
        return math.expm1(levels[0] - levels[1])
    return levels[0] / levels[1] - 1.0 if levels[1] else None


def _exponential(interval: Interval) -> Interval:
    """Of a difference of logarithms, the interval of the ratio; infinity is no bound."""
    lower, upper = (
        None if bound is None or bound > _LARGEST_LOG else math.exp(bound)
        for bound in (interval.lower, interval.upper)
    )
    return Interval(lower=lower, upper=upper)


def _or_one(p: float | None) -> float:
    return 1.0 if p is None else p


_LARGEST_LOG = 700.0
