"""What the report of an experiment says. Pure: from what was looked at to the text of a page.

Everything that comes from outside, names above all, reaches the page through jinja2's autoescape or as text of an SVG
element; only `plots.py` makes markup.
"""

import functools
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
import markupsafe

from control_plane.experiments.comparisons import Comparison
from control_plane.experiments.definition import Definition, Mode
from control_plane.experiments.design import Metric
from control_plane.experiments.operations import Looked
from control_plane.experiments.report import tables, words
from control_plane.experiments.report.plots import (
    About,
    Curve,
    IntervalPoint,
    Split,
    interval_plot,
    latency_plot,
    split_plot,
)
from control_plane.experiments.sequential import Interval
from control_plane.experiments.service import TimelinePoint
from control_plane.experiments.sketch import Sketch
from control_plane.experiments.state import observations_of
from control_plane.experiments.verdict import Verdict

_MOST_PLOTS = 40
_ONE_TREATMENT = 2
_VERDICTS = {
    Verdict.TREATMENT_BETTER: ("A treatment is better", "good"),
    Verdict.TREATMENT_WORSE: ("All treatments are worse", "bad"),
    Verdict.NO_DIFFERENCE_YET: ("No difference is shown yet", ""),
    Verdict.INCONCLUSIVE_AT_END: ("Ended without an answer", ""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """An SVG element and what stands below it."""

    svg: markupsafe.Markup
    caption: str


def render(looked: Looked, timeline: Sequence[TimelinePoint], *, now_s: float) -> str:
    """The page, as HTML.

    Args:
        looked: The experiment and its results.
        timeline: Earlier looks, oldest first.
        now_s: Wall time of the look.
    """
    experiment, results = looked.experiment, looked.results
    definition = experiment.definition
    ended_s = experiment.ended_at if experiment.ended_at is not None else experiment.ends_at
    names = [variant.name for variant in definition.variants]
    verdict, mood = _VERDICTS[results.verdict] if results.verdict is not None else ("No verdict", "")
    if results.mismatched:
        verdict, mood = "No verdict: the split is broken", "bad"
    elif len(names) == _ONE_TREATMENT:
        verdict = verdict.replace("A treatment is", "The treatment is").replace(
            "All treatments are", "The treatment is"
        )
    intervals = [
        _interval_plot(definition, one, timeline, place=place, now_s=min(now_s, experiment.ended_at or now_s))
        for place, one in enumerate(results.comparisons[:_MOST_PLOTS])
        if one.started
    ]
    page = _template().render(
        title=f"Experiment {definition.experiment_id}",
        subtitle=(
            f"{definition.mode.value} of {definition.model_type}, {experiment.status.value}: from "
            f"{words.moment(definition.created_at)} "
            + ("until it is stopped" if ended_s is None else f"to {words.moment(ended_s)}")
        ),
        verdict=verdict,
        mood=mood,
        sentences=results.sentences,
        warnings=tables.warnings(looked),
        names=names,
        control=names[definition.control],
        corrected_for=results.corrected_for,
        variants=tables.variants(looked),
        outcomes=tables.outcomes(looked),
        comparisons=tables.comparisons(looked),
        adjusted=tables.adjusted(looked),
        intervals=intervals,
        intervals_left_out=max(0, len(results.comparisons) - _MOST_PLOTS),
        latency=_latency_plot(looked, names),
        split=None if definition.mode is Mode.SHADOW else _split_plot(looked, names),
        checks=tables.checks(looked),
        guardrails=tables.guardrails(looked),
        certificate=tables.certificate(experiment.certificate),
        settings=tables.settings(definition),
        as_of=words.moment(now_s),
    )
    return page + "\n"


def _interval_plot(
    definition: Definition,
    comparison: Comparison,
    timeline: Sequence[TimelinePoint],
    *,
    place: int,
    now_s: float,
) -> Plot:
    metric = next(one for one in definition.metrics if one.name == comparison.metric)
    found = [
        (point.time_s, one["difference"], one["lower"], one["upper"])
        for point in timeline
        for one in point.comparisons
        if (one["variant"], one["metric"]) == (comparison.variant, comparison.metric)
    ]
    last = comparison.interval
    found.append((now_s, comparison.difference, last.lower, last.upper))
    points = [
        IntervalPoint(
            at_s=max(0.0, time_s - definition.created_at),
            middle=_scaled(metric, difference) or 0.0,
            lower=_scaled(metric, lower),
            upper=_scaled(metric, upper),
        )
        for time_s, difference, lower, upper in found
    ]
    control = definition.variants[definition.control].name
    level = f"{100.0 * (1.0 - definition.alpha):g} %"
    than = "" if metric.treatment_only else f" against {control}"
    title = f"{comparison.metric} of {comparison.variant}{than}, over time"
    summary = (
        f"Now {words.change(metric, comparison.difference)}; the always-valid {level} interval is from "
        f"{words.interval(metric, Interval(lower=last.lower, upper=last.upper))}."
    )
    name = words.unit(metric)
    about = About(plot_id=f"interval-{place}", title=title, summary=summary)
    svg = interval_plot(about, points, lambda value: f"{value:+.3g} {name}".rstrip() if value else "0")
    return Plot(svg=markupsafe.Markup(svg), caption=f"{title}. {summary}")  # noqa: S704  built as a tree


def _scaled(metric: Metric, value: float | str | None) -> float | None:
    return words.in_unit(metric, float(value)) if value is not None else None


def _latency_plot(looked: Looked, names: Sequence[str]) -> Plot | None:
    seen = observations_of(looked.experiment, looked.counts, ended=False)
    curves = []
    for place in range(len(names)):
        merged = Sketch()
        for epoch in seen.sketches:
            merged.merge(epoch[place])
        curves.append(Curve(colour=place, sketch=merged))
    if not any(curve.sketch.count for curve in curves):
        return None
    p95s = ", ".join(
        f"{name} {words.number(curve.sketch.quantile(0.95))} ms"
        for name, curve in zip(names, curves, strict=True)
        if curve.sketch.count
    )
    summary = f"Share of requests by latency, within 1 %. Vertical lines: P95 ({p95s})."
    about = About(plot_id="latency-plot", title="Distribution of latencies", summary=summary)
    return Plot(svg=markupsafe.Markup(latency_plot(about, curves)), caption=summary)  # noqa: S704  built as a tree


def _split_plot(looked: Looked, names: Sequence[str]) -> Plot:
    shown = tables.shown_epochs(looked)
    splits = [
        Split(
            label=f"epoch {epoch + 1}",
            counts=looked.results.ratio_checks[epoch].counts,
            declared=looked.experiment.shares[epoch],
        )
        for epoch in shown
    ]
    last = splits[-1]
    total = sum(last.counts) or 1
    told = ", ".join(
        f"{name} {words.percent(count / total)} of units, declared {words.percent(share)}"
        for name, count, share in zip(names, last.counts, last.declared, strict=True)
    )
    title = "Observed and declared split"
    about = About(plot_id="split-plot", title=title, summary=f"In the last share epoch: {told}.")
    svg = markupsafe.Markup(split_plot(about, splits))  # noqa: S704  built as a tree
    return Plot(svg=svg, caption=f"{title} of each share epoch. In the last one: {told}.")


@functools.cache
def _template() -> jinja2.Template:
    source = importlib.resources.files(__package__).joinpath("page.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)
