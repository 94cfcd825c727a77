"""Plans as the command gives them; the figures themselves are tested with planning.py."""

import dataclasses
import io
import json
import math
from typing import Any

import pytest
from rich.console import Console

from control_plane.experiments.planning import plan_mean, plan_rate
from control_plane.experiments_cli.plan import (
    PlanOptions,
    certified,
    computed,
    document_of,
    duration,
    print_certificate,
    print_plan,
)

RATE = PlanOptions(
    kind="rate",
    effect=0.01,
    base=0.02,
    sd=None,
    shares=(1.0, 1.0),
    alpha=0.05,
    power=0.8,
    requests_per_hour=500.0,
    requests_per_unit=1.0,
    correlation=0.0,
)


def test_plan_is_that_of_the_statistics() -> None:
    assert computed(RATE) == plan_rate(base=0.02, effect=0.01, shares=(0.5, 0.5), requests_per_hour=500)
    latency = dataclasses.replace(RATE, kind="latency", base=None, sd=0.5, effect=0.1)
    assert computed(latency) == plan_mean(
        sd=0.5, effect=math.log(1.1), shares=(0.5, 0.5), requests_per_hour=500
    )
    alike = dataclasses.replace(RATE, requests_per_unit=11.0, correlation=0.1)
    assert computed(alike).fixed.requests == pytest.approx(2 * computed(RATE).fixed.requests, rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"base": None},
        {"base": 0.995},
        {"effect": 0.0},
        {"kind": "mean"},
        {"kind": "mean", "sd": 0.0},
        {"kind": "latency", "sd": 1.0, "effect": -1.0},
        {"shares": (1.0,)},
        {"shares": (1.0, 0.0)},
        {"alpha": 0.0},
        {"power": 0.01},
        {"requests_per_hour": 0.0},
        {"requests_per_unit": 0.5},
        {"correlation": 2.0},
    ],
)
def test_impossible_plans_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        computed(dataclasses.replace(RATE, **changes))


def test_plan_prints_what_to_create() -> None:
    out = io.StringIO()
    found = computed(RATE)
    print_plan(RATE, found, Console(file=out, width=100))
    assert f'"planned_requests": {found.always_valid.requests}' in out.getvalue()
    assert "looked at once" in out.getvalue()
    document = json.loads(json.dumps(document_of(RATE, found)))
    assert document["fixed"]["requests"] == found.fixed.requests
    assert document["settings"]["kind"] == "rate"


def test_durations_in_words() -> None:
    assert [duration(one) for one in (None, 5, 600, 9000, 864_000)] == [
        "–",
        "5 seconds",
        "10.0 minutes",
        "2.5 hours",
        "10.0 days",
    ]


def test_planned_experiment_is_simulated_with_its_own_numbers() -> None:
    found = computed(RATE)
    certificate = certified(RATE, found, seconds=3)
    assert certificate.runs > 0
    assert certificate.false_alarm_rate is not None
    assert certificate.false_alarm_rate < 0.1
    (power,) = certificate.power
    assert power.effect == pytest.approx(0.01)
    assert power.twice > 0.7
    out = io.StringIO()
    print_certificate(certificate, Console(file=out, width=200))
    assert "without a difference" in out.getvalue()
    assert document_of(RATE, found, certificate)["certificate"]["runs"] == certificate.runs
