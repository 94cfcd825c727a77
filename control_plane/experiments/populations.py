"""Who asks, and what comes of it, for a certificate: logged outcomes drawn again, else a declared law. Pure, seeded.

Logged outcomes are drawn request by request with their units: a unit keeps its level and its share of the traffic, and
each simulated experiment divides the units anew. So nothing is assumed of their law; but units that weren't logged
don't come.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from control_plane.experiments.design import Metric, MetricKind
from control_plane.experiments.moments import Floats, Integers


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """The law of one metric.

    Attributes:
        level: Share of ones of a rate or of errors; the normal's mean; of latency the median in ms.
        sd: Of one request; of latency that of the logarithm. Of no meaning for rates and errors.
    """

    level: float
    sd: float = 1.0


DEFAULTS = {
    MetricKind.RATE: Declared(level=0.5),
    MetricKind.MEAN: Declared(level=0.0),
    MetricKind.ERROR: Declared(level=0.01),
    MetricKind.LATENCY: Declared(level=10.0, sd=0.3),
}
"""Of what nothing is said: means in units of their own sd, latencies lognormal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """Outcomes of the control, one row a request.

    Attributes:
        values: By metric, float64 [rows], NaN where it wasn't observed; latency in ms.
        units: Whose request it was, int64 [rows]; None: each is a unit of its own.
    """

    values: Mapping[str, Floats]
    units: Integers | None = None

    @property
    def rows(self) -> int:
        """How many requests."""
        return max((len(column) for column in self.values.values()), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """How outcomes arise. What was logged takes the place of what is declared, metric by metric.

    Attributes:
        declared: By metric; `DEFAULTS` of its kind for those that aren't in it.
        units: How many there are, all as busy; None: each request is one. With `logged` its units count.
        unit_effect: Sd of a unit's own level in a declared law, in that of one request; of a rate, in the rate (above a
            half, in what it lacks to 1). Below 1.
        logged: What was logged.
    """

    declared: Mapping[str, Declared] = field(default_factory=dict)
    units: int | None = None
    unit_effect: float = 0.5
    logged: Logged | None = None

    @property
    def known_units(self) -> int | None:
        """How many units there can be; None: each request is one."""
        if self.logged is not None and self.logged.rows:
            return None if self.logged.units is None else len(np.unique(self.logged.units))
        return self.units

    def resampled(self, metrics: Sequence[Metric]) -> tuple[str, ...]:
        """Names of the metrics that were logged."""
        logged = self.logged.values if self.logged is not None else {}
        return tuple(
            metric.name
            for metric in metrics
            if not np.isnan(logged.get(metric.name, np.array([np.nan]))).all()
        )


class Drawn:
    """A law's units and requests in some experiments, as `simulation.simulate` takes them.

    Args:
        law: How outcomes arise.
        metrics: Which.
        experiments: How many, side by side.
        draw: Random numbers.
    """

    def __init__(
        self, law: Law, metrics: Sequence[Metric], *, experiments: int, draw: np.random.Generator
    ) -> None:
        self._draw = draw
        self.experiments = experiments
        resampled = law.resampled(metrics)
        self._columns: dict[str, Floats] = {}
        self._starts: Integers | None = None
        self.units = law.units or 1
        if law.logged is not None and law.logged.rows:
            self._take(law.logged, [metric for metric in metrics if metric.name in resampled])
        self._declared = {
            metric.name: (metric.kind, law.declared.get(metric.name, DEFAULTS[metric.kind]))
            for metric in metrics
            if metric.name not in resampled
        }
        alone = law.known_units is None
        self._effect = 0.0 if alone else law.unit_effect
        self._rows = np.arange(experiments)[:, np.newaxis]
        self._own = {name: self._levels(kind, one) for name, (kind, one) in self._declared.items()}

    def arrive(self, requests: int) -> Integers:
        """Whose requests come next; int64 [experiments, requests]."""
        shape = (self.experiments, requests)
        if self._starts is None:
            return self._draw.integers(0, self.units, shape)
        found: Integers = self._unit_of[self._draw.integers(0, len(self._unit_of), shape)]
        return found

    def answer(self, unit: Integers) -> Mapping[str, Floats]:
        """Their outcomes, latency as a logarithm; float64 [experiments, requests]."""
        outcomes: dict[str, Floats] = {}
        if self._starts is not None and self._columns:
            first = self._starts[unit]
            row = first + (self._draw.random(unit.shape) * (self._starts[unit + 1] - first)).astype(np.int64)
            outcomes.update({name: column[row] for name, column in self._columns.items()})
        for name, (kind, one) in self._declared.items():
            own = self._own[name]
            if kind.binary:
                rate = one.level if own is None else own[self._rows, unit]
                outcomes[name] = (self._draw.random(unit.shape) < rate).astype(np.float64)
            else:
                noise = self._draw.standard_normal(unit.shape)
                level = np.log(one.level) if kind is MetricKind.LATENCY else one.level
                outcomes[name] = level + one.sd * (noise if own is None else noise + own[self._rows, unit])
        return outcomes

    def _take(self, logged: Logged, metrics: Sequence[Metric]) -> None:
        """Sorts rows by unit, so that a unit's are next to each other."""
        units = np.arange(logged.rows) if logged.units is None else logged.units
        _, numbers = np.unique(units, return_inverse=True)
        order = np.argsort(numbers, kind="stable")
        self._unit_of: Integers = numbers[order].astype(np.int64)
        self.units = int(numbers.max()) + 1
        self._starts = np.searchsorted(self._unit_of, np.arange(self.units + 1)).astype(np.int64)
        for metric in metrics:
            values = logged.values[metric.name][order]
            self._columns[metric.name] = np.log(values) if metric.kind is MetricKind.LATENCY else values

    def _levels(self, kind: MetricKind, one: Declared) -> Floats | None:
        """Units' own levels, float64 [experiments, units]: rates from a Beta law with as much in common."""
        if not self._effect:
            return None
        shape = (self.experiments, self.units)
        if not kind.binary:
            return self._effect * self._draw.standard_normal(shape)
        if not 0.0 < one.level < 1.0:
            return np.full(shape, one.level)
        spread = self._effect * min(one.level, 1.0 - one.level)
        scale = one.level * (1.0 - one.level) / spread**2 - 1.0
        return self._draw.beta(one.level * scale, (1.0 - one.level) * scale, shape)
