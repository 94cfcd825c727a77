"""Many made-up experiments at once, request by request, through the code that judges real ones. Pure, seeded.

Who asks and what comes of it is a `Population`'s; which variant and bucket it gets, what is counted and what each look
says is decided here, with the experiment's own settings.

Axes: experiments, requests (between two looks), pairs (of each treatment with the control, in declared order), metrics.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from control_plane.experiments.design import Design, Metric
from control_plane.experiments.estimates import Estimate, estimate
from control_plane.experiments.moments import BUCKETS, Floats, Integers, N, add, empty
from control_plane.experiments.sequential import p_always_valid, planned_information, started

Change = Callable[[Floats], Floats]
"""What a treatment makes of the control's outcomes, of any shape."""


class Population(Protocol):
    """Who sends requests, and what becomes of them."""

    @property
    def experiments(self) -> int:
        """How many, side by side."""

    @property
    def units(self) -> int:
        """How many different units there can be."""

    def arrive(self, requests: int) -> Integers:
        """Whose requests come next; int64 [experiments, requests], below `units`."""

    def answer(self, unit: Integers) -> Mapping[str, Floats]:
        """Their outcomes under the control by metric, float64 [experiments, requests]; NaN: not observed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look sees.

    Attributes:
        requests: Of each experiment until now.
        moments: By metric, float64 [epochs, variants, experiments, 256, moments]; changed in place by the next look.
        estimates: By metric and then pair; of float64 [experiments] each.
        p: Always-valid, float64 [experiments, pairs, metrics]; 1 before a valid look.
        planned_information: Likewise, 0 before it.
    """

    requests: int
    moments: Mapping[str, Floats]
    estimates: Mapping[str, Sequence[Estimate]]
    p: Floats
    planned_information: Floats


def judged_metrics(design: Design) -> tuple[Metric, ...]:
    """Those that a verdict rests on."""
    return tuple(metric for metric in design.metrics if not metric.treatment_only)


def looks_at(planned_requests: int, *, count: int, until: float = 1.0) -> list[int]:
    """Numbers of requests at which to look: `count` up to the planned end, evenly, and on to `until` times it."""
    ends = planned_requests * np.arange(1, math.ceil(count * until) + 1) / count
    return sorted({max(1, round(end)) for end in ends})


def simulate(
    design: Design,
    shares: npt.ArrayLike,
    population: Population,
    *,
    looks: Sequence[int],
    draw: np.random.Generator,
    changes: Mapping[str, Change] | None = None,
) -> Iterator[Look]:
    """Goes through the experiments, and looks.

    Args:
        design: Metrics without `treatment_only` are the population's, by name.
        shares: Of the share epochs, float [epochs, variants], in which the planned requests are divided evenly; what
            comes beyond them is in the last.
        population: Who asks.
        looks: After how many requests, ascending.
        draw: Of assignment and buckets.
        changes: What each treatment changes, by metric; nothing else differs from the control.
    """
    metrics, ends = judged_metrics(design), np.cumsum(np.asarray(shares, dtype=np.float64), axis=-1)
    epochs, variants = ends.shape
    ends[:, -1] = np.inf
    shape = (population.experiments, population.units)
    place, bucket = draw.random(shape), draw.integers(0, BUCKETS, shape)
    rows = np.arange(population.experiments)[:, np.newaxis]
    moments = {metric.name: empty(epochs, variants, population.experiments) for metric in metrics}
    met = np.zeros((variants, *shape), dtype=bool)
    pairs = [variant for variant in range(variants) if variant != design.control]
    planned = np.zeros((population.experiments, len(pairs), len(metrics)))
    before = 0
    for requests in looks:
        epoch = min(before * epochs // design.planned_requests, epochs - 1)
        unit = population.arrive(requests - before)
        if design.units_are_requests:
            places, buckets = draw.random(unit.shape), draw.integers(0, BUCKETS, unit.shape)
        else:
            places, buckets = place[rows, unit], bucket[rows, unit]
        outcomes = population.answer(unit)
        for variant in range(variants):
            mine = np.ones(unit.shape, dtype=bool)
            if not design.paired:
                mine = places < ends[epoch, variant]
                if variant:
                    mine &= places >= ends[epoch, variant - 1]
            if design.paired and variant != design.control:
                outcomes = population.answer(unit)
            for metric in metrics:
                y = outcomes[metric.name]
                if variant != design.control and changes and metric.name in changes:
                    y = changes[metric.name](y)
                add(moments[metric.name][epoch, variant], buckets, y, where=mine & ~np.isnan(y))
            if not design.units_are_requests:
                met[variant][np.broadcast_to(rows, unit.shape)[mine], unit[mine]] = True
        before = requests
        yield _look(design, metrics, moments, met.sum(axis=-1), pairs, planned, requests)


def _look(
    design: Design,
    metrics: Sequence[Metric],
    moments: Mapping[str, Floats],
    units: Integers,
    pairs: Sequence[int],
    planned: Floats,
    requests: int,
) -> Look:
    """Estimates and p-values, as comparisons.py makes them of one experiment; fixes `planned` in place."""
    p = np.ones(planned.shape)
    estimates: dict[str, list[Estimate]] = {}
    for column, metric in enumerate(metrics):
        counted = moments[metric.name]
        totals = counted[..., N].sum(axis=(0, -1))
        control = np.moveaxis(counted[:, design.control], 0, 1)
        for row, variant in enumerate(pairs):
            found = estimate(
                np.moveaxis(counted[:, variant], 0, 1),
                control,
                binary=metric.kind.binary,
                paired=design.paired,
            )
            estimates.setdefault(metric.name, []).append(found)
            arms = [variant, design.control]
            seen = totals[arms] if design.units_are_requests else units[arms]
            begun = started(totals[arms].T, seen.T, min_sample=design.min_sample)
            begun &= np.isfinite(found.standard_error)
            fixed = planned[:, row, column]
            new = begun & (fixed == 0.0)
            if new.any():
                whole = max(design.planned_requests, requests)
                fixed[new] = planned_information(found.standard_error, requests, whole)[new]
            known = np.where(begun, fixed, 0.0)
            p[:, row, column] = np.where(
                begun, p_always_valid(found.difference, found.standard_error, known, design.alpha), 1.0
            )
    return Look(
        requests=requests, moments=moments, estimates=estimates, p=p, planned_information=planned.copy()
    )
