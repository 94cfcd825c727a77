"""Certificates: false alarms and power of an experiment's own settings, by simulation."""

import dataclasses
import io
import itertools
import json
from typing import Any

import msgspec
import numpy as np
import pytest

from control_plane.experiments.certificate import MOST_REQUESTS, Certificate, certify
from control_plane.experiments.certify import CertificateRequest, LoggedRequests, certificate_of, main
from control_plane.experiments.design import Design, Direction, Metric, MetricKind
from control_plane.experiments.populations import Declared, Law, Logged

PROFIT = Metric(name="profit", kind=MetricKind.MEAN, direction=Direction.UP)
LATENCY = Metric(name="latency", kind=MetricKind.LATENCY, direction=Direction.DOWN)
ERROR = Metric(name="error", kind=MetricKind.ERROR, direction=Direction.DOWN)
FLIPS = Metric(name="flips", kind=MetricKind.MEAN, direction=Direction.DOWN, treatment_only=True)
DESIGN = Design(variants=("control", "new"), metrics=(PROFIT,), planned_requests=2000)
EVEN = [[0.5, 0.5]]
LOOKS_ENOUGH = 750
"""On a clock that ticks at each look: 258 experiments without a difference, 208 with one."""


def certified(design: Design = DESIGN, law: Law | None = None, **changes: Any) -> Certificate:
    ticks = itertools.count()
    given: dict[str, Any] = {"shares": EVEN, "seed": 1, "seconds": LOOKS_ENOUGH, **changes}
    shares = given.pop("shares")
    return certify(design, shares, law or Law(), clock=lambda: float(next(ticks)), **given)


def logged(rows: int = 3000, accounts: int = 100) -> Logged:
    draw = np.random.default_rng(4)
    units = draw.integers(0, accounts, rows)
    latency = np.where(draw.random(rows) < 0.1, np.nan, draw.lognormal(2.0, 0.3, rows))
    profit = draw.standard_t(3, rows) + draw.normal(0.0, 0.8, accounts)[units]
    return Logged(values={"profit": profit, "latency": latency}, units=units)


def test_sound_settings_keep_alpha_and_find_what_they_can() -> None:
    found = certified()
    assert found.runs >= 200
    assert found.false_alarm_rate is not None
    assert found.false_alarm_rate <= 0.05
    assert found.false_alarm_upper is not None
    assert found.false_alarm_rate < found.false_alarm_upper <= 0.06
    (power,) = found.power
    assert power.effect == pytest.approx(2.8 * np.sqrt(4 / 2000), rel=0.12)
    assert 0.7 <= power.fixed <= 0.9
    assert 0.35 <= power.planned <= 0.7
    assert power.twice >= 0.78
    assert found.warnings == ()
    assert msgspec.json.decode(msgspec.json.encode(found), type=Certificate) == found


def test_seed_decides() -> None:
    first, again, other = (certified(seed=seed, seconds=260) for seed in (1, 1, 2))
    assert first == again
    assert other.power != first.power


def test_rates_and_latencies_have_effects_of_their_own_scale() -> None:
    design = dataclasses.replace(DESIGN, metrics=(ERROR, LATENCY))
    law = Law(declared={"error": Declared(level=0.05), "latency": Declared(level=8.0, sd=0.2)})
    found = certified(design, law, seconds=500)
    errors, latency = found.power
    assert errors.effect == pytest.approx(2.8 * np.sqrt(2 * (0.05 * 0.95 + 0.08 * 0.92) / 2000), rel=0.15)
    assert latency.effect == pytest.approx(np.expm1(2.8 * 0.2 * np.sqrt(4 / 2000)), rel=0.15)
    assert 0.65 <= errors.fixed <= 0.95
    assert 0.65 <= latency.fixed <= 0.95


def test_rate_that_cannot_rise_falls() -> None:
    design = dataclasses.replace(
        DESIGN, metrics=(Metric(name="hit", kind=MetricKind.RATE, direction=Direction.UP),)
    )
    found = certified(design, Law(declared={"hit": Declared(level=0.999)}), seconds=400)
    assert found.power[0].effect < 0
    assert found.power[0].fixed >= 0.6


def test_few_accounts_with_an_effect_are_warned_of() -> None:
    found = certified(law=Law(units=120, unit_effect=1.0), seconds=500)
    assert found.units == 120
    assert found.power[0].twice < 0.5
    assert "More units would help" in found.warnings[-1]


def test_logged_outcomes_bring_their_accounts() -> None:
    rows = logged()
    design = dataclasses.replace(DESIGN, metrics=(PROFIT, LATENCY))
    known, blind = (
        certified(design, Law(logged=one), seconds=400)
        for one in (rows, dataclasses.replace(rows, units=None))
    )
    assert known.resampled == ("profit", "latency")
    assert (known.logged_requests, known.units, blind.units) == (3000, 100, None)
    assert known.power[0].effect > 1.8 * blind.power[0].effect
    assert blind.power[0].effect == pytest.approx(
        2.8 * np.std(rows.values["profit"]) * np.sqrt(4 / 2000), rel=0.2
    )
    assert 0.6 <= blind.power[1].fixed <= 0.95


def test_false_alarms_of_a_skewed_metric_are_told() -> None:
    draw = np.random.default_rng(5)
    skewed = Logged(values={"profit": np.exp(3.0 * draw.standard_normal(20_000))})
    found = certified(
        dataclasses.replace(DESIGN, min_sample=10), Law(logged=skewed), shares=[[0.97, 0.03]], seconds=400
    )
    assert found.false_alarm_rate is not None
    assert found.false_alarm_rate > 0.1
    assert any("A difference that isn't there" in text for text in found.warnings)


def test_settings_without_a_verdict_are_warned_of() -> None:
    found = certified(
        dataclasses.replace(DESIGN, planned_requests=300), Law(units=200), shares=[[0.9, 0.1]], seconds=400
    )
    assert found.warnings[0].startswith("new gets 30 of 300 planned requests, and min_sample is 100")
    assert found.warnings[1].startswith("new gets about 20 of 200 units, and a verdict needs 50")
    assert found.power[0].twice == 0.0


def test_effect_that_is_too_small_to_find_is_warned_of() -> None:
    small, large = (certified(effect=effect, seconds=600) for effect in (0.02, 0.5))
    assert (small.power[0].effect, large.power[0].effect) == (0.02, 0.5)
    assert "is found by the planned end in" in small.warnings[-1]
    assert large.power[0].planned >= 0.99
    assert large.warnings == ()


def test_alpha_beyond_what_the_runs_can_show_is_told() -> None:
    found = certified(dataclasses.replace(DESIGN, alpha=0.0001), seconds=600)
    assert "too few to show an alpha of 0.01%" in found.warnings[-1]


def test_several_treatments_and_steps_keep_alpha() -> None:
    several = dataclasses.replace(DESIGN, variants=("old", "new", "newer"))
    for design, shares in (
        (several, [[0.4, 0.4, 0.2]]),
        (dataclasses.replace(DESIGN, planned_requests=4000), [[1 - s, s] for s in (0.01, 0.05, 0.25, 0.5)]),
    ):
        found = certified(design, Law(units=2000), shares=shares, seconds=400)
        assert found.false_alarm_rate is not None
        assert found.false_alarm_rate <= 0.05
        assert found.power[0].fixed >= 0.6


def test_shadow_judges_what_both_have() -> None:
    design = dataclasses.replace(DESIGN, metrics=(LATENCY, FLIPS), paired=True)
    found = certified(design, Law(logged=logged()), shares=[[1.0, 0.0]], seconds=600)
    assert [one.metric for one in found.power] == ["latency"]
    assert 0.6 <= found.power[0].fixed <= 0.95
    assert found.false_alarm_rate is not None
    assert found.false_alarm_rate <= 0.05


def test_time_bounds_what_is_simulated() -> None:
    found = certified(dataclasses.replace(DESIGN, planned_requests=10**9), seconds=20)
    assert (found.runs, found.false_alarm_rate, found.power) == (0, None, ())
    assert found.simulated_requests == MOST_REQUESTS
    assert found.warnings[-1].startswith("Only 0 experiments without a difference and 0 with one")


def answered(request: bytes) -> tuple[int, bytes]:
    sink = io.BytesIO()
    return main(io.BytesIO(request), sink), sink.getvalue()


def request(**changes: Any) -> bytes:
    given = {"design": msgspec.to_builtins(DESIGN), "shares": EVEN, "seed": 3, "seconds": 0.0}
    return json.dumps({**given, **changes}).encode()


def test_request_is_answered_with_its_certificate() -> None:
    code, answer = answered(request(units=80, declared={"profit": {"level": 1.0, "sd": 2.0}}))
    found = msgspec.json.decode(answer, type=Certificate)
    assert (code, found.units, found.runs) == (0, 80, 0)


def test_logged_requests_are_read_with_what_is_missing() -> None:
    design = dataclasses.replace(DESIGN, metrics=(PROFIT, LATENCY))
    given = CertificateRequest(
        design=design,
        shares=EVEN,
        seed=1,
        seconds=0.0,
        logged=LoggedRequests(
            values={"profit": [1.0, None, 2.0], "latency": [0.0, None, None], "else": [1.0, 1.0, 1.0]},
            units=["a", "b", "a"],
        ),
    )
    found = certificate_of(given)
    assert (found.resampled, found.units, found.logged_requests) == (("profit",), 2, 3)
    assert found.warnings[1].startswith("Only 3 logged requests")


@pytest.mark.parametrize("bad", [
    b"{",
    request(shares=[]),
    request(shares=[[0.2, 0.3, 0.5]]),
    request(logged={"values": {"profit": [1.0]}, "units": ["a", "b"]}),
    request(logged={"values": {"profit": ["x"]}}),
    request(surprise=1),
])  # fmt: skip
def test_request_that_cannot_be_read_is_refused(bad: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = answered(bad)
    assert (code, answer) == (2, b"")
    assert "not a request for a certificate" in capsys.readouterr().err
