"""`python -m benchmarks.simulate experiments` in small, with fixed seeds: what must hold, and what others don't.

That intervals cover the truth at all looks is test_joint_coverage.py's.
"""

import functools
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.simulate.experiments_canaries import (
    ALPHA,
    FAILING,
    HARMLESS,
    SLOW,
    WITHIN,
    Canary,
    rolled_back_at,
)
from benchmarks.simulate.experiments_checks import BROKEN, SPLITS, ratio_check
from benchmarks.simulate.experiments_laws import (
    ALIKE,
    BERNOULLI,
    COMING,
    DRIFTING,
    METRIC,
    NORMAL,
    STUDENT,
    Accounts,
    Law,
)
from benchmarks.simulate.experiments_sequences import (
    CANARY,
    EVEN,
    FOUND_BY_FIXED,
    PLANNED,
    Outcome,
    Trial,
    effect_of,
    run_trial,
    share_of,
)
from control_plane.experiments.comparisons import compare
from control_plane.experiments.moments import Floats
from control_plane.experiments.simulation import simulate

EXPERIMENTS = 150


@functools.cache
def same(law: Law, *, routing_keys: bool) -> Outcome:
    trial = Trial(law=law, routing_keys=routing_keys, every=100)
    return run_trial(trial, experiments=EXPERIMENTS, seed=(11, routing_keys))


@pytest.mark.parametrize("routing_keys", [True, False])
@pytest.mark.parametrize("law", [BERNOULLI, STUDENT, ALIKE], ids=["bernoulli", "t3", "accounts"])
def test_verdict_is_seldom_wrong_and_a_repeated_t_test_often(law: Law, routing_keys: bool) -> None:
    found = same(law, routing_keys=routing_keys)
    assert share_of(found.found) <= 0.04
    assert share_of(found.naive_t) >= 0.2
    assert share_of(found.bucket_t) >= 0.1


def test_naive_standard_error_makes_even_the_verdict_wrong_where_accounts_differ() -> None:
    assert share_of(same(ALIKE, routing_keys=True).naive_missed) >= 0.25
    assert share_of(same(ALIKE, routing_keys=False).naive_missed) <= 0.05


@pytest.mark.parametrize(
    ("law", "routing_keys"),
    [(NORMAL, False), (BERNOULLI, True), (COMING, True)],
    ids=["normal", "bernoulli", "coming"],
)
def test_verdict_finds_by_twice_the_plan_what_a_single_test_finds(law: Law, routing_keys: bool) -> None:
    spread = same(law, routing_keys=routing_keys).spread
    effect = effect_of(law, spread, FOUND_BY_FIXED)
    trial = Trial(law=law, routing_keys=routing_keys, effect=effect, until=2.0, every=200)
    found = run_trial(trial, experiments=EXPERIMENTS, seed=(12,))
    assert found.fixed.mean() == pytest.approx(0.8, abs=0.1)
    assert share_of(found.found) >= max(0.75, found.fixed.mean() - 0.05)
    assert share_of(found.found, by=PLANNED) < found.fixed.mean()


@pytest.mark.parametrize("routing_keys", [True, False])
def test_steps_of_a_canary_raise_no_alarm_while_the_level_drifts(routing_keys: bool) -> None:
    trial = Trial(
        law=replace(DRIFTING[0], accounts=1000), routing_keys=routing_keys, shares=CANARY, every=200
    )
    found = run_trial(trial, experiments=100, seed=(13,))
    assert share_of(found.found) <= 0.05
    assert share_of(found.pooled_found) >= 0.9


def test_ratio_check_finds_broken_splits_only() -> None:
    for shares in SPLITS.values():
        sound = ratio_check(shares, shares, runs=1000, seed=14)
        assert share_of(sound.alarmed) <= 0.01
        assert share_of(sound.chi_square) > share_of(sound.alarmed)
    assert share_of(ratio_check((0.5, 0.5), BROKEN, runs=300, seed=15).alarmed) >= 0.95


@pytest.mark.parametrize("canary", HARMLESS, ids=["same", "limit", "accounts"])
def test_harmless_canaries_are_not_rolled_back(canary: Canary) -> None:
    assert share_of(rolled_back_at(replace(canary, every=100), runs=20, seed=(16,))) <= ALPHA


@pytest.mark.parametrize(("canary", "least"), [(FAILING, 0.75), (SLOW[0], 0.95), (SLOW[1], 0.95)])
def test_harmful_canaries_are_rolled_back(canary: Canary, least: float) -> None:
    at: Floats = rolled_back_at(replace(canary, every=25), runs=40, seed=(17,))
    assert share_of(at, by=WITHIN) >= least


@pytest.mark.parametrize("routing_keys", [True, False])
@pytest.mark.parametrize("shares", [EVEN, CANARY], ids=["even", "canary"])
def test_simulated_looks_say_what_results_say(
    shares: tuple[tuple[float, float], ...], routing_keys: bool
) -> None:
    trial = Trial(law=BERNOULLI, routing_keys=routing_keys, shares=shares)
    draw = np.random.default_rng(18)
    population = Accounts(trial.law, experiments=3, planned_requests=PLANNED, requests=PLANNED, draw=draw)
    looks = [500, 4000, 9000]
    informed = 0
    known: list[dict[tuple[str, str], float]] = [{}, {}, {}]
    for look in simulate(trial.design, shares, population, looks=looks, draw=draw):
        for experiment in range(3):
            (one,) = compare(
                trial.design,
                {METRIC: look.moments[METRIC][:, :, experiment]},
                units=(100, 100),
                planned_information=known[experiment],
                ended=False,
            )
            if one.planned_information:
                known[experiment].setdefault((one.variant, one.metric), one.planned_information)
            assert look.p[experiment, 0, 0] == pytest.approx(one.p_always_valid or 1.0, rel=1e-9)
            assert look.estimates[METRIC][0].difference[experiment] == pytest.approx(one.difference)
            informed += one.p_always_valid is not None
    assert informed >= 3
