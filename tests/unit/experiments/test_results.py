"""All results of an experiment from what was counted."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.experiments.design import Design, Direction, Guardrail, Metric, MetricKind
from control_plane.experiments.moments import BUCKETS, add, empty
from control_plane.experiments.results import ExperimentResults, Observations, evaluate
from control_plane.experiments.sketch import Sketch
from control_plane.experiments.verdict import Verdict

LATENCY = Metric(name="latency", kind=MetricKind.LATENCY, direction=Direction.DOWN)
ERROR = Metric(name="error", kind=MetricKind.ERROR, direction=Direction.DOWN)
PROFIT = Metric(name="profit", kind=MetricKind.MEAN, direction=Direction.UP)
DESIGN = Design(
    variants=("control", "new"),
    metrics=(PROFIT, ERROR, LATENCY),
    guardrails=(Guardrail(metric="error", max_difference=0.01), Guardrail(metric="latency", max_ratio=1.2)),
)


def run(
    design: Design = DESIGN,
    *,
    seed: int = 1,
    requests: int = 4000,
    slower: float = 1.0,
    failing: float = 0.01,
    profit: float = 0.0,
    covariate: bool = False,
    **changes: Any,
) -> Observations:
    """One epoch of an even split; the first variant is sound."""
    draw = np.random.default_rng(seed)
    count = len(design.variants)
    moments = {metric.name: empty(1, count) for metric in design.metrics}
    sketches = []
    units = draw.multinomial(requests, np.full(count, 1 / count)) if requests else np.zeros(count, dtype=int)
    for place, n in enumerate(units):
        buckets = draw.integers(0, BUCKETS, n)
        ms = draw.lognormal(2, 0.3, n) * (slower if place else 1.0)
        x = draw.normal(0, 1, n)
        add(moments["latency"][0, place], buckets, np.log(ms))
        add(moments["error"][0, place], buckets, (draw.random(n) < (failing if place else 0.01)) * 1.0)
        add(
            moments["profit"][0, place],
            buckets,
            x + draw.normal(0, 0.5, n) + (profit if place else 0.0),
            x if covariate else None,
        )
        sketches.append(Sketch())
        sketches[-1].add(ms)
    given = {
        "moments": moments,
        "sketches": [sketches],
        "first_assignments": units[np.newaxis],
        "units": tuple(units.tolist()),
        "shares": np.full((1, count), 1 / count),
        "planned_information": {},
    }
    return Observations(**{**given, **changes})


def finite(value: Any) -> bool:
    """Whether no figure anywhere is NaN or infinite."""
    if dataclasses.is_dataclass(value):
        return all(finite(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, tuple | list):
        return all(map(finite, value))
    return math.isfinite(value) if isinstance(value, int | float) else True


def by(found: ExperimentResults, metric: str) -> Any:
    return next(one for one in found.comparisons if one.metric == metric)


def test_figures_of_variants_are_those_that_were_counted() -> None:
    found = evaluate(DESIGN, run())
    control = found.variants[0]
    assert control.requests + found.variants[1].requests == 4000
    assert control.error_rate == control.errors / control.requests
    assert control.p50_latency_ms == pytest.approx(np.exp(2), rel=0.03)
    assert control.avg_latency_ms == pytest.approx(np.exp(2 + 0.045), rel=0.03)
    assert control.metrics[2].mean == pytest.approx(np.exp(2), rel=0.03)
    assert finite(found)


def test_equal_variants_show_no_difference() -> None:
    found = evaluate(DESIGN, run())
    assert found.verdict is Verdict.NO_DIFFERENCE_YET
    assert found.corrected_for == 3
    assert not any(one.broken for one in found.guardrails)
    assert len(found.sentences) == 1
    assert evaluate(DESIGN, run(ended=True)).verdict is Verdict.INCONCLUSIVE_AT_END


def test_slow_or_failing_treatment_is_called_worse() -> None:
    slow = evaluate(DESIGN, run(slower=1.3))
    assert slow.verdict is Verdict.TREATMENT_WORSE
    assert by(slow, "latency").relative == pytest.approx(0.3, abs=0.04)
    assert by(slow, "latency").ratio_interval.lower > 1.2
    assert slow.sentences == (by(slow, "latency").sentence,)
    failing = evaluate(DESIGN, run(failing=0.06))
    assert failing.verdict is Verdict.TREATMENT_WORSE
    assert [one.broken for one in failing.guardrails] == [True, False]


def test_first_declared_metric_with_a_difference_decides() -> None:
    found = evaluate(DESIGN, run(profit=1.0, slower=1.3))
    assert found.verdict is Verdict.TREATMENT_BETTER
    assert len(found.sentences) == 2


def test_planned_information_is_fixed_at_the_first_look() -> None:
    early = evaluate(DESIGN, run(requests=400))
    assert set(early.planned_information) == {("new", metric.name) for metric in DESIGN.metrics}
    later = evaluate(DESIGN, run(requests=4000, planned_information=early.planned_information))
    assert later.planned_information == early.planned_information
    se = by(early, "profit").standard_error
    assert early.planned_information["new", "profit"] == pytest.approx(10_000 / 400 / se**2)


def test_too_few_requests_or_units_say_nothing_yet() -> None:
    for seen in (run(requests=150), run(units=(49, 2000))):
        found = evaluate(DESIGN, seen)
        profit = by(found, "profit")
        assert (profit.started, profit.p_always_valid, profit.interval.lower) == (False, None, None)
        assert found.planned_information == {}
        assert found.sentences[0].startswith("Too early")


def test_broken_split_withholds_the_verdict_for_good() -> None:
    broken = run(profit=1.0, first_assignments=np.array([[2400, 1600]]))
    found = evaluate(DESIGN, broken)
    assert (found.mismatched, found.verdict, found.verdicts) == (True, None, {"new": None})
    assert found.sentences[0].startswith("No verdict")
    assert evaluate(DESIGN, run(profit=1.0, mismatched=True)).verdict is None


def test_covariate_is_reported_beside_the_plain_estimate() -> None:
    found = by(evaluate(DESIGN, run(covariate=True, profit=0.1)), "profit")
    assert found.adjusted.variance_reduction == pytest.approx(0.8, abs=0.05)
    plain, taken = (one.interval.upper - one.interval.lower for one in (found, found.adjusted))
    assert taken < plain / 1.8
    assert by(evaluate(DESIGN, run()), "profit").adjusted is None


def test_several_treatments_are_corrected_for() -> None:
    design = dataclasses.replace(DESIGN, variants=("old", "new", "newer"), guardrails=())
    found = evaluate(design, run(design, requests=6000, profit=0.13))
    assert found.corrected_for == 6
    assert [one.variant for one in found.comparisons] == ["new"] * 3 + ["newer"] * 3
    assert all(one.p_holm >= one.p_always_valid for one in found.comparisons)
    assert set(found.verdicts) == {"new", "newer"}


def test_errors_of_independent_requests_use_the_exact_test() -> None:
    design = dataclasses.replace(DESIGN, units_are_requests=True)
    methods = [by(evaluate(design, run(requests=n)), "error").fixed_horizon.method for n in (1000, 4000)]
    assert methods == ["fisher_exact", "score"]
    assert by(evaluate(DESIGN, run()), "error").fixed_horizon.method == "welch_t"


def test_few_large_units_are_warned_of() -> None:
    seen = run()
    seen.moments["profit"][0, 1, 3] *= 400
    assert by(evaluate(DESIGN, seen), "profit").warnings
    assert not by(evaluate(DESIGN, run()), "profit").warnings


def test_shadow_has_no_split_and_its_disagreement_no_verdict() -> None:
    flips = Metric(name="profit", kind=MetricKind.MEAN, direction=Direction.DOWN, treatment_only=True)
    design = dataclasses.replace(DESIGN, metrics=(flips, ERROR, LATENCY), paired=True, guardrails=())
    seen = run(design, profit=1.0)
    seen.moments["profit"][:, 0] = 0.0
    found = evaluate(design, seen)
    assert found.ratio_checks == ()
    assert found.corrected_for == 2
    alone = by(found, "profit")
    assert (alone.verdict, alone.treatment) == (None, pytest.approx(1.0, abs=0.1))
    assert alone.interval.lower > 0.8
    assert found.verdict is Verdict.NO_DIFFERENCE_YET


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**16), st.sampled_from([0, 1, 2, 3, 60, 300]), st.booleans(), st.booleans(), st.booleans()
)
def test_results_of_any_size_are_finite(
    seed: int, requests: int, covariate: bool, paired: bool, plain: bool
) -> None:
    design = dataclasses.replace(DESIGN, paired=paired, units_are_requests=plain, min_sample=1)
    seen = run(design, seed=seed, requests=requests, covariate=covariate, units=(100, 100))
    assert finite(evaluate(design, seen))
