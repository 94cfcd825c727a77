"""What one worker counted and Redis doesn't have yet: added to in memory for each request, sent in batches.

A batch keeps its number until Redis has confirmed it, so that it is added once however often it is sent. While it is on
its way, and while Redis is away, new counts gather in the next one: sums, whose size depends on the experiments, not on
the requests. Pure but for its own memory.
"""

import hashlib
import math
from dataclasses import dataclass, field

from control_plane.experiments.definition import Definition
from control_plane.experiments.design import MetricKind
from control_plane.experiments.moments import MOMENTS, bucket_of
from control_plane.experiments.sketch import index_of
from control_plane.inference.routing import Assignment
from control_plane.store.experiments import CountBatch

REQUESTS, ERRORS, UNITS, KEYED, SHED = "requests", "errors", "units", "keyed", "shed"
MOST_UNITS = 50_000
"""Units of one experiment that a worker remembers between two batches; more are counted as requests only."""
_LEAST_MS = 1e-3
_HASH_LENGTH = 12


def observation(y: float, x: float | None) -> list[float]:
    """The moments of one observation, in the order of `MOMENTS`."""
    return [1.0, y, y * y, 0.0, 0.0] if x is None else [1.0, y, y * y, 1.0, x]


@dataclass(slots=True)
class _Gathered:
    counts: dict[str, int] = field(default_factory=dict)
    moments: dict[str, list[float]] = field(default_factory=dict)
    sketches: dict[str, int] = field(default_factory=dict)
    units: dict[str, set[str]] = field(default_factory=dict)
    events: int = 0

    def count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def observe(self, name: str, added: list[float]) -> None:
        sums = self.moments.get(name)
        if sums is None:
            self.moments[name] = added
        else:
            for place, number in enumerate(added):
                sums[place] += number

    def batch(self) -> CountBatch:
        return CountBatch(
            counts=self.counts,
            moments=self.moments,
            sketches=self.sketches,
            units={name: sorted(hashes) for name, hashes in self.units.items()},
        )


class Counters:
    """The counts of one worker, by experiment."""

    def __init__(self) -> None:
        self._gathered: dict[str, _Gathered] = {}
        self._sent: dict[str, tuple[int, CountBatch]] = {}
        self._number = 0

    @property
    def events(self) -> int:
        """How many aren't on their way yet."""
        return sum(gathered.events for gathered in self._gathered.values())

    def answered(
        self, definition: Definition, assignment: Assignment, *, latency_ms: float, covariate: float | None
    ) -> None:
        """Counts an answer."""
        gathered, place, bucket = self._begin(definition, assignment)
        latency_ms = max(latency_ms, _LEAST_MS)
        sketch = f"{place}|{index_of(latency_ms)}"
        gathered.sketches[sketch] = gathered.sketches.get(sketch, 0) + 1
        for metric in definition.metrics:
            if metric.kind is MetricKind.LATENCY:
                gathered.observe(
                    f"{place}|{metric.name}|{bucket}", observation(math.log(latency_ms), covariate)
                )
            elif metric.kind is MetricKind.ERROR:
                gathered.observe(f"{place}|{metric.name}|{bucket}", observation(0.0, covariate))

    def failed(self, definition: Definition, assignment: Assignment, *, covariate: float | None) -> None:
        """Counts a failure of the server's."""
        gathered, place, bucket = self._begin(definition, assignment)
        gathered.count(f"{place}|{ERRORS}")
        for metric in definition.metrics:
            if metric.kind is MetricKind.ERROR:
                gathered.observe(f"{place}|{metric.name}|{bucket}", observation(1.0, covariate))

    def observed(
        self, experiment_id: str, *, epoch: int, variant: int, bucket: int, metric: str, value: float
    ) -> None:
        """Counts an observation that isn't a request's own: a shadow's disagreement. What overflows is none."""
        if not math.isfinite(value * value):
            return
        gathered = self._gathered.setdefault(experiment_id, _Gathered())
        gathered.observe(f"{epoch}|{variant}|{metric}|{bucket}", observation(value, None))

    def counted(self, experiment_id: str, *, epoch: int, variant: int, name: str) -> None:
        """Counts something else by name, e.g. a shadow call that was shed."""
        self._gathered.setdefault(experiment_id, _Gathered()).count(f"{epoch}|{variant}|{name}")

    def take(self, experiment_id: str) -> tuple[int, CountBatch] | None:
        """The batch to send: the one that isn't confirmed yet, else what has gathered; None: nothing."""
        if (sent := self._sent.get(experiment_id)) is not None:
            return sent
        gathered = self._gathered.pop(experiment_id, None)
        if gathered is None:
            return None
        self._number += 1
        self._sent[experiment_id] = (self._number, gathered.batch())
        return self._sent[experiment_id]

    def confirm(self, experiment_id: str) -> None:
        """Redis has the batch."""
        self._sent.pop(experiment_id, None)

    def pending(self) -> list[str]:
        """The experiments that have something to send."""
        return list(dict.fromkeys((*self._sent, *self._gathered)))

    def _begin(self, definition: Definition, assignment: Assignment) -> tuple[_Gathered, str, int]:
        gathered = self._gathered.get(definition.experiment_id)
        if gathered is None:
            gathered = self._gathered[definition.experiment_id] = _Gathered()
        place = f"{assignment.epoch}|{assignment.variant}"
        gathered.events += 1
        gathered.count(f"{place}|{REQUESTS}")
        if not assignment.is_keyed:
            gathered.count(f"{place}|{UNITS}")
        else:
            gathered.count(f"{place}|{KEYED}")
            units = gathered.units.setdefault(f"{place}|{UNITS}", set())
            # Over all variants: a bound for each would shift the ratio of those that are counted.
            if sum(map(len, gathered.units.values())) < MOST_UNITS:
                units.add(unit_hash(definition.experiment_id, assignment.epoch, assignment.unit))
        return gathered, place, bucket_of(definition.experiment_id, assignment.unit)


def unit_hash(experiment_id: str, epoch: int, unit: str) -> str:
    """What stands for a unit where units are counted: a share epoch counts its own."""
    text = f"{experiment_id}:{epoch}:{unit}".encode()
    return hashlib.blake2b(text, digest_size=_HASH_LENGTH // 2 + 2).hexdigest()


assert len(MOMENTS) == len(observation(0.0, None))  # noqa: S101  the two say the same
