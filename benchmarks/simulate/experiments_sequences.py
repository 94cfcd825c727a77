"""Experiments that are looked at again and again: how often, and when, does each method call a difference?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.simulate.experiments_laws import METRIC, Accounts, Law
from control_plane.experiments.design import Design, Direction, Metric, MetricKind
from control_plane.experiments.estimates import estimate
from control_plane.experiments.fixed_horizon import t_half_width, t_p
from control_plane.experiments.moments import YY, Floats, N, Y
from control_plane.experiments.sequential import half_width, information_of, planned_information
from control_plane.experiments.simulation import Look, looks_at, simulate

ALPHA = 0.05
PLANNED = 10_000
FOUND_BY_FIXED = 2.8016
"""z(0.975) + z(0.8): standard errors between 0 and an effect that a test with alpha 5 % finds in 80 %."""
EVEN = ((0.5, 0.5),)
CANARY = tuple((1.0 - share, share) for share in (0.01, 0.05, 0.25, 0.5))
_SIDE_BY_SIDE = 250
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A setting.

    Attributes:
        law: How outcomes arise.
        routing_keys: Accounts are the units, instead of requests.
        effect: Treatment - control.
        shares: Of the epochs.
        until: Looked at until this many times the planned requests.
        every: Requests between looks.
    """

    law: Law
    routing_keys: bool
    effect: float = 0.0
    shares: tuple[tuple[float, ...], ...] = EVEN
    until: float = 1.0
    every: int = 50

    @property
    def looks(self) -> list[int]:
        """After how many requests."""
        return looks_at(PLANNED, count=PLANNED // self.every, until=self.until)

    @property
    def design(self) -> Design:
        """One metric, whose better direction is of no matter."""
        kind = MetricKind.MEAN if self.law.rate is None else MetricKind.RATE
        return Design(
            variants=("control", "treatment"),
            metrics=(Metric(name=METRIC, kind=kind, direction=Direction.UP),),
            alpha=ALPHA,
            planned_requests=PLANNED,
            planned_epochs=len(self.shares),
            units_are_requests=not self.routing_keys,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """When each happened for the first time: requests, int64 [experiments]; `NEVER`: not at all.

    Attributes:
        found: The always-valid verdict called a difference.
        missed: The always-valid interval missed the truth.
        naive_missed: The same interval with the standard error of independent requests did.
        pooled_found: The always-valid verdict did on sums over all epochs.
        naive_t: The t-test of independent requests called a difference (p < alpha).
        bucket_t: The t-test with the bucketed standard error did.
        fixed: Whether the latter did at the planned end, bool [experiments].
        spread: Sd of the difference at the planned end.
    """

    found: Floats
    missed: Floats
    naive_missed: Floats
    pooled_found: Floats
    naive_t: Floats
    bucket_t: Floats
    fixed: Bools
    spread: float


NEVER = np.inf


def run_trial(trial: Trial, *, experiments: int, seed: Sequence[int]) -> Outcome:
    """The trial, many times, some experiments side by side."""
    parts = [
        _run(trial, min(_SIDE_BY_SIDE, experiments - begin), [*seed, begin])
        for begin in range(0, experiments, _SIDE_BY_SIDE)
    ]
    joined: dict[str, Any] = {
        name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "last"
    }
    return Outcome(**joined, spread=float(np.concatenate([part["last"] for part in parts]).std()))


def _run(trial: Trial, experiments: int, seed: Sequence[int]) -> dict[str, Any]:
    draw = np.random.default_rng(list(seed))
    looks, design, truth = trial.looks, trial.design, trial.effect
    population = Accounts(
        trial.law, experiments=experiments, planned_requests=PLANNED, requests=looks[-1], draw=draw
    )
    first = {
        name: np.full(experiments, NEVER)
        for name in ("found", "missed", "naive_missed", "pooled_found", "naive_t", "bucket_t")
    }
    naive_plan, pooled_plan = np.zeros(experiments), np.zeros(experiments)
    fixed, last = np.zeros(experiments, dtype=bool), np.zeros(experiments)
    changes = {METRIC: trial.law.change(truth, draw)} if truth else None
    for look in simulate(design, trial.shares, population, looks=looks, draw=draw, changes=changes):

        def note(name: str, happens: Bools, requests: int = look.requests) -> None:
            first[name][happens & (first[name] == NEVER)] = requests

        one = look.estimates[METRIC][0]
        planned = look.planned_information[:, 0, 0]
        begun, away = planned > 0.0, np.abs(one.difference - truth)
        note("found", begun & (look.p[:, 0, 0] <= ALPHA))
        half = half_width(one.standard_error, information_of(one.standard_error), planned, ALPHA)
        note("missed", begun & (away > half))
        naive = _naive_error(look)
        naive_half = _sequence(naive, begun, naive_plan, look.requests)
        note("naive_missed", begun & (away > naive_half))
        degrees = np.maximum(one.degrees, 1.0)
        note("naive_t", begun & (np.abs(one.difference) > t_half_width(naive, np.full(1, 1e6), ALPHA)))
        bucket_t = t_p(one.difference, one.standard_error, degrees) <= ALPHA
        note("bucket_t", begun & bucket_t)
        if len(trial.shares) > 1:
            note("pooled_found", _pooled(look, design, begun, pooled_plan))
        if look.requests == PLANNED:
            fixed, last = bucket_t, one.difference
    return {**first, "fixed": fixed, "last": last}


def _sequence(error: Floats, begun: Bools, plan: Floats, requests: int) -> Floats:
    """Half-widths with another standard error; fixes the planned information in place."""
    new = begun & (plan == 0.0) & np.isfinite(error)
    plan[new] = planned_information(error, requests, max(PLANNED, requests))[new]
    found: Floats = half_width(error, information_of(error), np.where(begun, plan, 0.0), ALPHA)
    return found


def _pooled(look: Look, design: Design, begun: Bools, plan: Floats) -> Bools:
    """The verdict that sums over all epochs would give."""
    control, treatment = (look.moments[METRIC][:, arm].sum(axis=0)[:, np.newaxis] for arm in (0, 1))
    one = estimate(treatment, control, binary=design.metrics[0].kind.binary)
    return begun & (np.abs(one.difference) > _sequence(one.standard_error, begun, plan, look.requests))


def _naive_error(look: Look) -> Floats:
    """The standard error of independent requests; infinite without spread."""
    sums = look.moments[METRIC].sum(axis=(0, 3))
    total = np.zeros(sums.shape[1])
    for arm in sums:
        n = np.maximum(arm[:, N], 1.0)
        total += (arm[:, YY] / n - (arm[:, Y] / n) ** 2) / n
    return np.where(total > 0.0, np.sqrt(np.maximum(total, 1e-300)), np.inf)


def effect_of(law: Law, spread: float, standard_errors: float) -> float:
    """The effect that is so many standard errors at the planned end.

    Args:
        law: Which; of a rate the treatment's own variance counts.
        spread: Sd of the difference then, as A/A experiments had it.
        standard_errors: How many.
    """
    return standard_errors * spread if law.rate is None else law.effect_found(standard_errors, PLANNED)


def share_of(first: Floats, *, by: float = NEVER) -> float:
    """In how many of the experiments it happened by that number of requests."""
    return float(np.mean((first <= by) & (first < NEVER)))


def upper_bound(share: float, experiments: int) -> float:
    """Of the probability: the upper 95 % bound of Clopper and Pearson."""
    from scipy import special  # noqa: PLC0415

    hits = round(share * experiments)
    return 1.0 if hits == experiments else float(special.betaincinv(hits + 1, experiments - hits, 0.95))
