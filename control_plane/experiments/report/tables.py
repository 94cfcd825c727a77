"""The report's tables and its list of warnings. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from control_plane.experiments.counters import SHED
from control_plane.experiments.definition import AssignmentKind, Definition, Mode
from control_plane.experiments.design import Direction, Guardrail, Metric, MetricKind
from control_plane.experiments.operations import Looked
from control_plane.experiments.report import words
from control_plane.experiments.sequential import MIN_UNITS
from control_plane.experiments.state import are_units_requests, counted

MOST_EPOCHS = 12
"""Share epochs that are shown; of more the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text; the first cell of each names it. `prose` are columns of words, `marked` rows to notice."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    prose: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()


def warnings(looked: Looked) -> list[str]:
    """What a reader has to bear in mind."""
    experiment, results = looked.experiment, looked.results
    definition = experiment.definition
    found = []
    if experiment.rolled_back:
        found.append("It was rolled back: the control answers all requests, until the experiment is stopped.")
    if experiment.promoted:
        found.append("It was promoted: the treatment answers all requests, until the experiment is stopped.")
    if experiment.reason is not None:
        found.append(f"Why shares changed last: {experiment.reason}.")
    waiting = [one for one in results.comparisons if not one.started]
    if waiting:
        found.append(
            f"Not compared yet: {', '.join(f'{one.metric} of {one.variant}' for one in waiting)}. Both sides need "
            f"{definition.min_sample} requests and {MIN_UNITS} units (or buckets that differ)."
        )
    found += [
        f"{one.metric} of {one.variant}: {text}." for one in results.comparisons for text in one.warnings
    ]
    if are_units_requests(looked.counts) and any(one.requests for one in results.variants):
        found.append("No request carried a routing key: each was a unit of its own.")
    for text in (experiment.certificate or {}).get("warnings") or ():
        found.append(str(text))
    return found


def variants(looked: Looked) -> Table:
    """The figures of each variant."""
    experiment = looked.experiment
    versions = [variant.version for variant in experiment.definition.variants]
    headers = ("variant", "version", "share now", "requests", "units", "errors", "error rate")
    names = range(len(versions))
    shed = counted(looked.counts, SHED, epochs=experiment.epoch + 1, variants=len(names)).sum(axis=0)
    is_shadow = experiment.definition.mode is Mode.SHADOW
    return Table(
        caption="Requests, errors and latencies in ms (within 1 %)"
        + ("; shed are shadow calls left out under load" if is_shadow else ""),
        headers=(*headers, "mean", "P50", "P95", "P99", *(("shed",) if is_shadow else ())),
        rows=tuple(
            (
                one.name,
                version,
                words.percent(share),
                words.number(one.requests),
                words.number(one.units),
                words.number(one.errors),
                words.percent(one.error_rate),
                words.number(one.avg_latency_ms),
                words.number(one.p50_latency_ms),
                words.number(one.p95_latency_ms),
                words.number(one.p99_latency_ms),
                *((words.number(int(shed[place])),) if is_shadow else ()),
            )
            for place, one, version, share in zip(
                names, looked.results.variants, versions, experiment.shares[experiment.epoch], strict=True
            )
        ),
    )


def outcomes(looked: Looked) -> Table:
    """The means of what isn't counted for each request."""
    metrics = {metric.name: metric for metric in looked.experiment.definition.outcome_metrics()}
    return Table(
        caption="Outcomes",
        headers=("variant", "metric", "observations", "mean", "standard error"),
        rows=tuple(
            (
                one.name,
                metric.metric,
                words.number(metric.observations),
                words.level(metrics[metric.metric], metric.mean),
                words.level(metrics[metric.metric], metric.standard_error),
            )
            for one in looked.results.variants
            for metric in one.metrics
            if metric.metric in metrics and (metric.observations or not metrics[metric.metric].treatment_only)
        ),
    )


def comparisons(looked: Looked) -> Table:
    """Each treatment against the control."""
    metrics = _metrics(looked)
    found = looked.results.comparisons
    headers = (
        "treatment",
        "metric",
        "control",
        "treatment",
        "difference",
        "interval, any time",
        "p, any time",
    )
    return Table(
        caption=f"Always-valid intervals of {100.0 * (1.0 - looked.experiment.definition.alpha):g} %; latencies are "
        "compared by geometric means",
        headers=(*headers, "p, Holm", "interval, at the end", "p, at the end", "verdict"),
        rows=tuple(
            (
                one.variant,
                one.metric,
                words.NOTHING if metric.treatment_only else words.level(metric, one.control),
                words.level(metric, one.treatment),
                words.change(metric, one.difference if one.standard_error is not None else None),
                words.interval(metric, one.interval),
                words.p_value(one.p_always_valid),
                words.p_value(one.p_holm),
                words.interval(metric, one.fixed_horizon.interval),
                words.p_value(one.fixed_horizon.p),
                words.NOTHING if one.verdict is None else one.verdict.value.replace("_", " "),
            )
            for one, metric in ((one, metrics[one.metric]) for one in found)
        ),
    )


def adjusted(looked: Looked) -> Table:
    """The same with the covariate taken out, where requests carry one."""
    metrics = _metrics(looked)
    return Table(
        caption="With the covariate taken out (CUPED); the verdict doesn't rest on it",
        headers=("treatment", "metric", "difference", "interval, any time", "p, any time", "less variance"),
        rows=tuple(
            (
                one.variant,
                one.metric,
                words.change(metrics[one.metric], one.adjusted.difference),
                words.interval(metrics[one.metric], one.adjusted.interval),
                words.p_value(one.adjusted.p_always_valid),
                words.percent(one.adjusted.variance_reduction),
            )
            for one in looked.results.comparisons
            if one.adjusted is not None
        ),
    )


def shown_epochs(looked: Looked) -> range:
    """The latest share epochs."""
    count = len(looked.results.ratio_checks)
    return range(max(0, count - MOST_EPOCHS), count)


def checks(looked: Looked) -> Table:
    """Whether units were divided as declared."""
    shown = shown_epochs(looked)
    found = [(epoch, looked.results.ratio_checks[epoch]) for epoch in shown]
    left_out = f"; the {shown.start} before are left out" if shown.start else ""
    return Table(
        caption=f"Ratio check: a Bayes factor at the threshold means a broken split{left_out}",
        headers=(
            "share epoch",
            "units",
            "expected",
            "Bayes factor",
            "threshold",
            "p, any time",
            "p, one look",
        ),
        rows=tuple(
            (
                str(epoch + 1),
                " : ".join(words.number(count) for count in one.counts),
                " : ".join(words.number(count, 6) for count in one.expected),
                words.number(one.bayes_factor, 3) if one.bayes_factor < 1e6 else f"{one.bayes_factor:.1e}",
                words.number(one.threshold),
                words.p_value(one.p_any_time),
                words.p_value(one.p_chi_square),
            )
            for epoch, one in found
        ),
        marked=frozenset(row for row, (_, one) in enumerate(found) if one.alarm),
    )


def guardrails(looked: Looked) -> Table:
    """Whether limits hold."""
    metrics = _metrics(looked)
    found = looked.results.guardrails
    headers = ("metric", "treatment", "its figure", "the control's", "limit", "part of alpha")
    return Table(
        caption="A guardrail is broken when its limit is passed beyond chance",
        headers=(*headers, "evidence", "state"),
        rows=tuple(
            (
                f"{one.metric} (P95)" if metrics[one.metric].kind is MetricKind.LATENCY else one.metric,
                one.variant,
                words.level(metrics[one.metric], one.treatment),
                words.level(metrics[one.metric], one.control),
                words.level(metrics[one.metric], one.limit),
                f"{one.alpha:.3g}",
                words.NOTHING
                if one.evidence is None
                else f"{one.evidence:.3g} of {words.number(1.0 / one.alpha)}",
                one.reason or "holds",
            )
            for one in found
        ),
        prose=frozenset({7}),
        marked=frozenset(row for row, one in enumerate(found) if one.broken),
    )


def certificate(given: Mapping[str, Any] | None) -> Table:
    """What simulations found for this experiment's settings."""
    plain = [
        (name.replace("_", " "), value if isinstance(value, str) else words.number(value))
        for name, value in (given or {}).items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ]
    return Table(caption="Found by simulation", headers=("figure", "value"), rows=tuple(plain))


def settings(definition: Definition) -> Table:
    """As it was created."""
    names = [variant.name for variant in definition.variants]
    metrics = {metric.name: metric for metric in definition.metrics}
    rows = [
        ("mode", definition.mode.value),
        ("traffic split", ", ".join(map(_share, names, definition.shares))),
        ("versions", ", ".join(f"{one.name}: {one.version}" for one in definition.variants)),
        ("control", names[definition.control]),
        (
            "metrics",
            ", ".join(f"{one.name} ({one.kind.value}, {one.direction.value})" for one in definition.metrics),
        ),
        ("guardrails", ", ".join(_limit(one, metrics) for one in definition.guardrails) or "none"),
        ("alpha", f"{definition.alpha:g}"),
        ("min_sample", words.number(definition.min_sample)),
        ("planned_requests", words.number(definition.planned_requests)),
        ("duration", f"{definition.duration_hours:g} h"),
        ("salt", definition.salt or "none"),
    ]
    if definition.mode is Mode.AB:
        rows.append(("assignment", definition.assignment.value))
    if definition.assignment is AssignmentKind.SWITCHBACK:
        rows.append(("blocks", f"{definition.block_minutes:g} min"))
    if definition.mode is Mode.CANARY:
        steps = (
            f"{words.percent(one.share)} for {one.duration_s / 60:g} min and {one.requests:,} requests"
            for one in definition.steps
        )
        rows += [("steps", "; ".join(steps)), ("auto_promote", "yes" if definition.auto_promote else "no")]
    if definition.mode is Mode.BANDIT:
        rows.append(("floor_share", words.percent(definition.floor_share)))
        rows.append(("epochs", f"{definition.epoch_minutes:g} min"))
    return Table(caption="As created", headers=("field", "value"), rows=tuple(rows), prose=frozenset({1}))


def _metrics(looked: Looked) -> dict[str, Metric]:
    return {metric.name: metric for metric in looked.experiment.definition.metrics}


def _share(name: str, share: float) -> str:
    return f"{name}: {words.percent(share)}"


def _limit(one: Guardrail, metrics: Mapping[str, Metric]) -> str:
    is_up = metrics[one.metric].direction is Direction.UP
    if one.max_ratio is None:
        way = "below" if is_up else "above"
        return f"{one.metric} at most {one.max_difference:g} {way} the control's"
    if is_up:
        return f"{one.metric} at least the control's divided by {one.max_ratio:g}"
    return f"{one.metric} at most {one.max_ratio:g} times the control's"
