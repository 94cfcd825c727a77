"""Guardrails on error rates, latencies and outcomes."""

import dataclasses

import numpy as np
import pytest

from control_plane.experiments.design import Design, Direction, Guardrail, Metric, MetricKind
from control_plane.experiments.guardrails import GuardrailResult, Observed, broken_by_mean, judge
from control_plane.experiments.moments import BUCKETS, Floats, add, empty
from control_plane.experiments.sketch import Sketch

METRICS = (
    Metric(name="latency", kind=MetricKind.LATENCY, direction=Direction.DOWN),
    Metric(name="error", kind=MetricKind.ERROR, direction=Direction.DOWN),
    Metric(name="profit", kind=MetricKind.MEAN, direction=Direction.UP),
    Metric(name="loss", kind=MetricKind.MEAN, direction=Direction.DOWN),
    Metric(name="flips", kind=MetricKind.RATE, direction=Direction.DOWN, treatment_only=True),
)


def design(*guardrails: Guardrail, epochs: int = 1, paired: bool = False) -> Design:
    return Design(
        variants=("control", "new"),
        metrics=METRICS,
        guardrails=guardrails,
        planned_epochs=epochs,
        paired=paired,
    )


def observed(name: str, *epochs: Floats, latency: bool = False) -> Observed:
    draw = np.random.default_rng(len(name))
    moments, sketches = empty(len(epochs)), []
    for place, y in enumerate(epochs):
        add(moments[place], draw.integers(0, BUCKETS, y.size), np.log(y) if latency else y)
        sketches.append(Sketch())
        if latency:
            sketches[-1].add(y)
    return Observed(name=name, moments=moments, sketches=sketches)


def judged(
    guardrail: Guardrail,
    treatment: list[Floats],
    control: list[Floats],
    *,
    started: bool = True,
    paired: bool = False,
) -> GuardrailResult:
    latency = guardrail.metric == "latency"
    return judge(
        guardrail,
        design(guardrail, epochs=max(len(treatment), 1), paired=paired),
        treatment=observed("new", *treatment, latency=latency),
        control=observed("control", *control, latency=latency),
        started=started,
        planned_information=100.0,
    )


def errors(count: int, requests: int) -> Floats:
    return np.repeat([1.0, 0.0], [count, requests - count])


def test_failing_treatment_breaks_the_error_guardrail_with_its_reason() -> None:
    found = judged(Guardrail(metric="error", max_difference=0.01), [errors(25, 500)], [errors(10, 9500)])
    assert found.broken
    assert found.evidence is not None
    assert found.evidence >= 1 / found.alpha
    assert found.limit == pytest.approx(10 / 9500 + 0.01)
    assert found.reason == (
        "error rate of new is 0.05 against 0.001053: worse by more than a difference of 0.01"
    )


def test_harmless_treatment_breaks_nothing() -> None:
    for guardrail in (
        Guardrail(metric="error", max_difference=0.01),
        Guardrail(metric="error", max_ratio=2.0),
    ):
        found = judged(guardrail, [errors(6, 500)], [errors(100, 9500)])
        assert (found.broken, found.reason) == (False, None)


def test_failure_in_a_late_step_is_found_after_harmless_ones() -> None:
    guardrail = Guardrail(metric="error", max_difference=0.01)
    quiet, control = errors(5, 5000), errors(5, 5000)
    assert judged(guardrail, [quiet, quiet, errors(40, 500)], [control] * 3).broken
    assert not judged(guardrail, [quiet, quiet, errors(1, 500)], [control] * 3).broken


def test_slow_treatment_breaks_the_latency_guardrail() -> None:
    draw = np.random.default_rng(1)
    control = draw.lognormal(2, 0.2, 9500)
    guardrail = Guardrail(metric="latency", max_ratio=1.1)
    slow = judged(guardrail, [1.3 * draw.lognormal(2, 0.2, 500)], [control])
    assert slow.broken
    assert slow.treatment == pytest.approx(1.3 * np.exp(2 + 0.2 * 1.645), rel=0.05)
    assert slow.limit == pytest.approx(1.1 * np.exp(2 + 0.2 * 1.645), rel=0.03)
    assert slow.reason is not None
    assert slow.reason.startswith("P95 latency of new is ")
    assert not judged(guardrail, [draw.lognormal(2, 0.2, 500)], [control]).broken
    by_ms = Guardrail(metric="latency", max_difference=1.0)
    assert judged(by_ms, [1.3 * draw.lognormal(2, 0.2, 500)], [control]).broken
    assert not judged(by_ms, [0.5 + draw.lognormal(2, 0.2, 500)], [control]).broken


@pytest.mark.parametrize(("metric", "harm"), [("profit", -1.0), ("loss", 1.0)])
def test_outcome_guardrail_knows_which_way_is_harm(metric: str, harm: float) -> None:
    draw = np.random.default_rng(2)
    for limit in ({"max_difference": 0.3}, {"max_ratio": 1.05}):
        guardrail = Guardrail(metric=metric, **limit)
        control = draw.normal(5, 1, 2000)
        assert judged(guardrail, [draw.normal(5 + harm, 1, 2000)], [control]).broken
        assert not judged(guardrail, [draw.normal(5 - harm, 1, 2000)], [control]).broken
        assert not judged(guardrail, [draw.normal(5, 1, 2000)], [control]).broken
        assert not judged(guardrail, [draw.normal(5 + harm, 1, 2000)], [control], started=False).broken


def test_disagreement_is_compared_with_zero() -> None:
    guardrail = Guardrail(metric="flips", max_difference=0.1)
    nothing = np.zeros(0)
    found = judged(guardrail, [errors(300, 1000)], [nothing], paired=True)
    assert (found.broken, found.treatment, found.limit) == (True, pytest.approx(0.3), pytest.approx(0.1))
    assert not judged(guardrail, [errors(90, 1000)], [nothing], paired=True).broken


@pytest.mark.parametrize("guardrail", [
    Guardrail(metric="error", max_ratio=2.0),
    Guardrail(metric="latency", max_ratio=2.0),
    Guardrail(metric="profit", max_difference=0.0),
])  # fmt: skip
def test_guardrail_without_requests_holds(guardrail: Guardrail) -> None:
    nothing = [np.zeros(0)]
    found = judged(guardrail, nothing, nothing)
    assert (found.broken, found.treatment, found.control, found.limit) == (False, None, None, None)
    assert judged(guardrail, [], []).broken is False


def test_mean_guardrail_false_alarms_stay_below_its_part_of_alpha() -> None:
    draw = np.random.default_rng(3)
    steps = draw.normal(0, np.sqrt(50.0), (2000, 200)).cumsum(axis=1)
    information = 50.0 * np.arange(1, 201)
    broken = broken_by_mean(steps / information, 1 / np.sqrt(information), np.full(200, 10_000.0), 0.05)
    assert broken.any(axis=1).mean() <= 0.05


def rolled_back(draw: np.random.Generator, *, requests_are_independent: bool) -> bool:
    """A harmless canary at a share of 5 %, where 2 % of 300 accounts always fail: ever rolled back in 20 looks?"""
    accounts = 300
    failing, treated = draw.random(accounts) < 0.02, draw.random(accounts) < 0.05
    buckets = draw.integers(0, BUCKETS, accounts)
    arms = [empty(1), empty(1)]
    plan = design(Guardrail(metric="error", max_difference=0.01))
    plan = dataclasses.replace(plan, units_are_requests=requests_are_independent)
    for _ in range(20):
        here = draw.integers(0, accounts, 500)
        for arm, mask in zip(arms, (treated[here], ~treated[here]), strict=True):
            add(arm[0], buckets[here[mask]], failing[here[mask]] * 1.0)
        found = judge(
            plan.guardrails[0],
            plan,
            treatment=Observed(name="new", moments=arms[0]),
            control=Observed(name="control", moments=arms[1]),
            started=True,
            planned_information=0.0,
        )
        if found.broken:
            return True
    return False


def test_account_that_always_fails_is_no_evidence_against_the_treatment() -> None:
    draw = np.random.default_rng(5)
    aware, unaware = (
        np.mean([rolled_back(draw, requests_are_independent=alone) for _ in range(150)])
        for alone in (False, True)
    )
    assert aware <= 0.02
    assert unaware >= 0.08
