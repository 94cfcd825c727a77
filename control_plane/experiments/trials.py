"""Simulated experiments for a certificate: batches, as many as time and memory allow. Pure but for the clock."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from control_plane.experiments.design import Design, Metric
from control_plane.experiments.moments import BUCKETS, MOMENTS, Floats, N, Y
from control_plane.experiments.populations import Drawn, Law
from control_plane.experiments.simulation import Change, Look, judged_metrics, looks_at, simulate

MOST_RUNS = 1000
"""Experiments of each kind."""
LOOKS = 50
"""Until the planned end."""
_FIRST_BATCH, _LARGEST_BATCH = 8, 50
_MOST_BYTES = 48 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What experiments did.

    Attributes:
        least: The least Holm-corrected p-value of all comparisons and looks, float64 [experiments].
        found: That of each alone at any look, corrected as if no other were any less, [experiments, pairs, metrics].
        by_planned: Likewise, until the planned end.
        fixed_p: Of a t-test at the planned end, likewise.
        last: Differences at the planned end, likewise.
        levels: Mean of the control of each metric.
    """

    least: Floats
    found: Floats
    by_planned: Floats
    fixed_p: Floats
    last: Floats
    levels: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """An experiment that is simulated again and again.

    Attributes:
        design: Of the experiment.
        shares: Of each share epoch, [epochs][variants].
        law: Outcomes of the control.
        seed: Of all random numbers.
        clock: Seconds.
    """

    design: Design
    shares: Sequence[Sequence[float]]
    law: Law
    seed: int
    clock: Callable[[], float]

    def run(self, *, until: float, changes: Mapping[str, Change] | None, deadline: float) -> Ran | None:
        """Batch after batch until `MOST_RUNS` or the deadline.

        Args:
            until: Times the planned requests.
            changes: What treatments change, by metric.
            deadline: On the clock. A batch that isn't finished then doesn't count.

        Returns:
            None: not one was finished.
        """
        parts: list[Ran] = []
        done, number = 0, 0
        while done < MOST_RUNS and self.clock() < deadline:
            batch = min(_FIRST_BATCH if not parts else self._largest(), MOST_RUNS - done)
            draw = np.random.default_rng([self.seed, round(until), number])
            part = self._batch(batch, draw, until=until, changes=changes, deadline=deadline)
            if part is None:
                break
            parts.append(part)
            done, number = done + batch, number + 1
        return _joined(parts) if parts else None

    def least_pair(self) -> int:
        """The treatment with the smallest share."""
        totals = np.delete(np.sum(np.asarray(self.shares), axis=0), self.design.control)
        return int(np.argmin(totals))

    def control_part(self, pair: int) -> float:
        """The control's part of the requests of both."""
        totals = np.sum(np.asarray(self.shares), axis=0)
        control = totals[self.design.control]
        return float(control / (control + np.delete(totals, self.design.control)[pair]))

    def _largest(self) -> int:
        """As many side by side as memory bears."""
        sums = (
            len(self.shares) * len(self.design.variants) * len(self.design.metrics) * BUCKETS * len(MOMENTS)
        )
        units = (self.law.known_units or 1) * (16 + len(self.design.variants) + 8 * len(self.design.metrics))
        each = 8 * sums + units + 64 * self.design.planned_requests // LOOKS
        return int(np.clip(_MOST_BYTES // each, 1, _LARGEST_BATCH))

    def _batch(
        self,
        experiments: int,
        draw: np.random.Generator,
        *,
        until: float,
        changes: Mapping[str, Change] | None,
        deadline: float,
    ) -> Ran | None:
        design, metrics = self.design, judged_metrics(self.design)
        population = Drawn(self.law, metrics, experiments=experiments, draw=draw)
        shape = (experiments, len(design.variants) - 1, len(metrics))
        least, by_planned, fixed_p = np.ones(shape), np.ones(shape), np.ones(shape)
        last, levels = np.zeros(shape), [0.0] * len(metrics)
        looks = looks_at(design.planned_requests, count=LOOKS, until=until)
        for look in simulate(design, self.shares, population, looks=looks, draw=draw, changes=changes):
            least = np.minimum(least, look.p)
            if look.requests <= design.planned_requests:
                by_planned = least
            if look.requests == design.planned_requests:
                fixed_p, last, levels = _at_the_end(look, metrics, design.control)
            if self.clock() > deadline:
                return None
        comparisons = shape[1] * shape[2]
        return Ran(
            least=np.min(least, axis=(1, 2)) * comparisons,
            found=least * comparisons,
            by_planned=by_planned * comparisons,
            fixed_p=fixed_p,
            last=last,
            levels=tuple(levels),
        )


def _at_the_end(look: Look, metrics: Sequence[Metric], control: int) -> tuple[Floats, Floats, list[float]]:
    """p-values of t-tests, differences, and the control's levels."""
    from control_plane.experiments.fixed_horizon import t_p  # noqa: PLC0415  with scipy

    every = [look.estimates[metric.name] for metric in metrics]
    ps = [[t_p(one.difference, one.standard_error, one.degrees) for one in pairs] for pairs in every]
    differences = [[one.difference for one in pairs] for pairs in every]
    levels = []
    for metric in metrics:
        sums = look.moments[metric.name][:, control].sum(axis=(0, 1, 2))
        levels.append(float(sums[Y] / sums[N]) if sums[N] else 0.0)
    return np.transpose(ps, (2, 1, 0)), np.transpose(differences, (2, 1, 0)), levels


def _joined(parts: Sequence[Ran]) -> Ran:
    sizes = [len(part.least) for part in parts]
    levels = np.average([part.levels for part in parts], axis=0, weights=sizes)
    return Ran(
        levels=tuple(levels.tolist()),
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("least", "found", "by_planned", "fixed_p", "last")
        },
    )


def change_of(metric: Metric, effect: float, level: float, draw: np.random.Generator) -> Change:
    """What a treatment with that effect makes of the control's outcomes; of 0 and 1 it turns some round.

    Args:
        metric: Which.
        effect: Treatment - control; of latency of the logarithm.
        level: Mean of the control.
        draw: Random numbers.
    """
    if not metric.kind.binary:
        return lambda y: y + effect
    share = effect / (1.0 - level) if effect > 0.0 else effect / max(level, 1e-9)

    def turn(y: Floats) -> Floats:
        turned = draw.random(y.shape) < abs(share)
        return np.where(turned & ~np.isnan(y), float(share > 0.0), y)

    return turn
