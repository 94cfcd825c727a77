"""What an experiment's own settings are worth: its false-alarm rate and its power, by simulation.

A/A experiments, in which no variant differs, are looked at 50 times until the planned end: how often is a difference
called, in any metric of any treatment? Then experiments with a difference, until twice the planned end: how often is it
found? Estimates, intervals and Holm's correction are those of real results. Pure but for the clock.

Not simulated: the ratio check, guardrails, and how the shares of a bandit follow outcomes.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from control_plane.experiments.design import Design, Metric, MetricKind
from control_plane.experiments.populations import Law
from control_plane.experiments.sequential import MIN_UNITS
from control_plane.experiments.simulation import judged_metrics
from control_plane.experiments.trials import Ran, Trial, change_of

MOST_REQUESTS = 50_000
"""Simulated of each experiment; a larger one is certified at this size: approximations only get better with more."""
FEW_ROWS = 200
"""Logged requests below which they say little of their law."""
_POWER = 0.8
_TOO_FEW_RUNS = 100
_BOUND = 0.95
"""Level of the upper bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPower:
    """How well a difference in one metric is found, were there none in the others.

    Attributes:
        metric: Its name.
        effect: Treatment - control; of latency the ratio less 1.
        fixed: Share in which a test at the planned end finds it.
        planned: Share in which the always-valid verdict has found it by the planned end.
        twice: Share by twice the planned end.
    """

    metric: str
    effect: float
    fixed: float
    planned: float
    twice: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What the simulations say.

    Attributes:
        false_alarm_rate: Share of A/A experiments in which a difference was ever called; None: not one was finished.
        false_alarm_upper: Upper 95 % bound of its probability.
        runs: A/A experiments.
        power: Of each metric with a verdict, in declared order; empty when time was over before. Of several treatments
            that with the smallest share.
        power_runs: Experiments with a difference.
        simulated_requests: Planned requests of each simulated experiment.
        resampled: The metrics whose logged outcomes were drawn again; the others' law is declared.
        logged_requests: How many were logged.
        units: How many different ones there can be; None: each request is one.
        seconds: That it took.
        warnings: Where settings don't fit.
    """

    false_alarm_rate: float | None
    false_alarm_upper: float | None
    runs: int
    power: tuple[MetricPower, ...]
    power_runs: int
    simulated_requests: int
    resampled: tuple[str, ...]
    logged_requests: int
    units: int | None
    seconds: float
    warnings: tuple[str, ...]


def certify(
    design: Design,
    shares: Sequence[Sequence[float]],
    law: Law,
    *,
    seed: int,
    seconds: float,
    effect: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Certificate:
    """Simulates the experiment. With enough time the seed decides everything but `seconds`.

    Args:
        design: Of the experiment; whether requests are the units is the law's to say.
        shares: Of each share epoch, [epochs][variants]: one row, or those of a canary's steps, over which the planned
            requests are divided evenly.
        law: Outcomes of the control.
        seed: Of all random numbers.
        seconds: At most, about.
        effect: To be found in the first metric, as `MetricPower.effect`. None, and for the others: what a test with
            the experiment's alpha finds in 80 % at the planned end.
        clock: Seconds.
    """
    begun, metrics = clock(), judged_metrics(design)
    small = dataclasses.replace(
        design,
        planned_requests=min(design.planned_requests, MOST_REQUESTS),
        units_are_requests=law.known_units is None,
    )
    trial = Trial(design=small, shares=shares, law=law, seed=seed, clock=clock)
    same = trial.run(until=1.0, changes=None, deadline=begun + 0.4 * seconds)
    differing = None
    effects: list[float] = []
    if same is not None and len(same.last) > 1:
        pair = trial.least_pair()
        spread = same.last[:, pair].std(axis=0, ddof=1)
        effects = [
            _effect(metric, small.alpha, float(spread[place]), same.levels[place], trial.control_part(pair))
            for place, metric in enumerate(metrics)
        ]
        if effect is not None:
            effects[0] = float(np.log1p(effect)) if metrics[0].kind is MetricKind.LATENCY else effect
        changes = {
            metric.name: change_of(metric, one, level, np.random.default_rng([seed, 3, place]))
            for place, (metric, one, level) in enumerate(zip(metrics, effects, same.levels, strict=True))
        }
        differing = trial.run(until=2.0, changes=changes, deadline=begun + seconds)
    power = () if differing is None else _power(metrics, effects, differing, trial)
    runs = 0 if same is None else len(same.found)
    alarms = 0 if same is None else int(np.count_nonzero(same.least <= small.alpha))
    found = Certificate(
        false_alarm_rate=alarms / runs if runs else None,
        false_alarm_upper=upper_bound(alarms, runs) if runs else None,
        runs=runs,
        power=power,
        power_runs=0 if differing is None else len(differing.found),
        simulated_requests=small.planned_requests,
        resampled=law.resampled(metrics),
        logged_requests=law.logged.rows if law.logged is not None else 0,
        units=law.known_units,
        seconds=round(clock() - begun, 3),
        warnings=(),
    )
    return dataclasses.replace(found, warnings=_warnings(design, shares, found, alarms, effect))


def upper_bound(hits: int, runs: int) -> float:
    """Of a probability: the upper 95 % bound of Clopper and Pearson."""
    from scipy import special  # noqa: PLC0415

    return 1.0 if hits == runs else float(special.betaincinv(hits + 1, runs - hits, _BOUND))


def _effect(metric: Metric, alpha: float, spread: float, level: float, control_part: float) -> float:
    """What a test finds in 80 %; of a rate with the treatment's own variance, down where it can't go up.

    Args:
        metric: Which.
        alpha: Of the test.
        spread: Sd of the difference without any effect.
        level: The control's mean.
        control_part: Of the requests of both.
    """
    from scipy import special  # noqa: PLC0415

    errors = float(special.ndtri(1.0 - alpha / 2.0) + special.ndtri(_POWER))
    if not metric.kind.binary or not 0.0 < level < 1.0:
        return errors * spread
    variance = level * (1.0 - level)
    for way in (1.0, -1.0):
        effect = errors * spread
        for _ in range(50):
            other = min(max(level + way * effect, 0.0), 1.0)
            own = other * (1.0 - other)
            effect = errors * spread * np.sqrt(control_part * own / variance + 1.0 - control_part)
        if 0.0 <= level + way * effect <= 1.0:
            return float(way * effect)
    return float(1.0 - level if level < 0.5 else -level)


def _power(
    metrics: Sequence[Metric], effects: Sequence[float], ran: Ran, trial: Trial
) -> tuple[MetricPower, ...]:
    alpha, pair = trial.design.alpha, trial.least_pair()
    return tuple(
        MetricPower(
            metric=metric.name,
            effect=float(np.expm1(one)) if metric.kind is MetricKind.LATENCY else one,
            fixed=float(np.mean(ran.fixed_p[:, pair, place] <= alpha)),
            planned=float(np.mean(ran.by_planned[:, pair, place] <= alpha)),
            twice=float(np.mean(ran.found[:, pair, place] <= alpha)),
        )
        for place, (metric, one) in enumerate(zip(metrics, effects, strict=True))
    )


def _warnings(
    design: Design,
    shares: Sequence[Sequence[float]],
    found: Certificate,
    alarms: int,
    effect: float | None,
) -> tuple[str, ...]:
    told = []
    mean = np.mean(np.asarray(shares), axis=0)
    place = int(np.argmin(mean))
    name, least = design.variants[place], int(design.planned_requests * mean[place])
    if not design.paired and least < design.min_sample:
        told.append(
            f"{name} gets {least:,} of {design.planned_requests:,} planned requests, and min_sample is "
            f"{design.min_sample:,}: there is no verdict by the planned end."
        )
    if not design.paired and found.units is not None:
        largest = np.max(np.asarray(shares), axis=0)
        few = int(np.argmin(largest))
        if found.units * largest[few] < MIN_UNITS:
            told.append(
                f"{design.variants[few]} gets about {found.units * largest[few]:.0f} of {found.units:,} units, and a "
                f"verdict needs {MIN_UNITS}."
            )
    if found.logged_requests and found.logged_requests < FEW_ROWS:
        told.append(f"Only {found.logged_requests:,} logged requests: they say little of what is to come.")
    told += _alarm_warnings(design, found, alarms)
    if found.power:
        first = found.power[0]
        if effect is not None and first.planned < 0.5:
            told.append(
                f"A difference of {effect:g} in {first.metric} is found by the planned end in {first.planned:.0%} "
                "only: plan for more requests, or a larger difference."
            )
        elif effect is None and first.twice < 0.5:
            told.append(
                f"What a single test at the planned end finds in 80 % of the cases, a difference of {first.effect:.3g} "
                f"in {first.metric}, is found in {first.twice:.0%} only by twice as many requests."
                + (" More units would help, more requests of the same ones hardly." if found.units else "")
            )
    return tuple(told)


def _alarm_warnings(design: Design, found: Certificate, alarms: int) -> list[str]:
    told = []
    few = min(found.runs, found.power_runs) < _TOO_FEW_RUNS
    if few:
        told.append(
            f"Only {found.runs} experiments without a difference and {found.power_runs} with one could be simulated in "
            f"{found.seconds:.0f} s: these figures are rough."
        )
    if found.false_alarm_upper is None or found.false_alarm_upper <= 1.2 * design.alpha:
        return told
    if alarms > design.alpha * found.runs:
        told.append(
            f"A difference that isn't there was called in {found.false_alarm_rate:.1%} of {found.runs:,} simulated "
            f"experiments, and alpha is {design.alpha:.1%}: requests or units are too few for it."
        )
    elif not few:
        told.append(
            f"{found.runs:,} simulated experiments are too few to show an alpha of {design.alpha:.2%}: the rate of "
            f"false alarms may be {found.false_alarm_upper:.2%}."
        )
    return told
