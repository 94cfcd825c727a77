"""An experiment as it is now: its definition, and what became of it since. Pure: reads what Redis keeps.

The state's fields are text, changed by moves: `status`, `epoch`, `shares:<epoch>`, `step`, `step_began_s`, `reason`,
 `ended_at`, `rolled_back`, `promoted`, `mismatched`, `information:<variant>|<metric>`, `certificate`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from control_plane.experiments.active import Running
from control_plane.experiments.counters import KEYED, UNITS
from control_plane.experiments.definition import Definition, Status
from control_plane.experiments.moments import BUCKETS, MOMENTS
from control_plane.experiments.results import Observations
from control_plane.experiments.sketch import Sketch
from control_plane.store.experiments import StoredCounts, StoredExperiment

_INFORMATION = "information:"
_SHARES = "shares:"
_definitions = msgspec.json.Decoder(Definition)
_shares = msgspec.json.Decoder(tuple[float, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A definition and its state. Times are wall time in seconds; `shares` has those of each epoch."""

    definition: Definition
    status: Status
    revision: int
    epoch: int
    shares: tuple[tuple[float, ...], ...]
    step: int
    step_began_s: float
    reason: str | None
    ended_at: float | None
    rolled_back: bool
    promoted: bool
    mismatched: bool
    planned_information: Mapping[tuple[str, str], float]
    certificate: Mapping[str, Any] | None

    @property
    def ends_at(self) -> float | None:
        """When its time is over. A canary that was rolled back or promoted keeps its shares until it is stopped: else
        `latest` might name the version again that did harm.
        """
        return None if self.rolled_back or self.promoted else self.definition.ends_at

    @property
    def running(self) -> Running:
        """As the router needs it."""
        return Running(
            definition=self.definition,
            epoch=self.epoch,
            shares=self.shares[self.epoch],
            ends_at=self.ends_at,
        )


def first_state(definition: Definition) -> dict[str, str]:
    """The fields of a new experiment."""
    return {
        "status": Status.ACTIVE.value,
        "epoch": "0",
        f"{_SHARES}0": shares_text(definition.initial_shares),
        "step": "0",
        "step_began_s": repr(definition.created_at),
    }


def shares_text(shares: tuple[float, ...]) -> str:
    """The shares of an epoch, as the state keeps them."""
    return msgspec.json.encode(shares).decode()


def next_epoch(experiment: Experiment, shares: tuple[float, ...]) -> dict[str, str]:
    """The changes that begin a new share epoch."""
    epoch = experiment.epoch + 1
    return {"epoch": str(epoch), f"{_SHARES}{epoch}": shares_text(shares)}


def information_fields(known: Mapping[tuple[str, str], float]) -> dict[str, str]:
    """The planned information, as the state keeps it."""
    return {f"{_INFORMATION}{variant}|{metric}": repr(value) for (variant, metric), value in known.items()}


def experiment_of(stored: StoredExperiment) -> Experiment:
    """Reads what Redis keeps."""
    state = stored.state
    epoch = int(state.get("epoch", 0))
    definition = _definitions.decode(stored.definition)
    information = {}
    for name, value in state.items():
        if name.startswith(_INFORMATION):
            variant, _, metric = name.removeprefix(_INFORMATION).partition("|")
            information[variant, metric] = float(value)
    ended_at, certificate = state.get("ended_at"), state.get("certificate")
    return Experiment(
        definition=definition,
        status=Status(state.get("status", Status.ACTIVE.value)),
        revision=int(state.get("revision", 0)),
        epoch=epoch,
        shares=tuple(_shares.decode(state[f"{_SHARES}{number}"]) for number in range(epoch + 1)),
        step=int(state.get("step", 0)),
        step_began_s=float(state.get("step_began_s", definition.created_at)),
        reason=state.get("reason"),
        ended_at=None if ended_at is None else float(ended_at),
        rolled_back=state.get("rolled_back") == "1",
        promoted=state.get("promoted") == "1",
        mismatched=state.get("mismatched") == "1",
        planned_information=information,
        certificate=None if certificate is None else msgspec.json.decode(certificate),
    )


def observations_of(experiment: Experiment, stored: StoredCounts, *, ended: bool) -> Observations:
    """What was counted, as the statistics take it."""
    definition = experiment.definition
    epochs, variants = experiment.epoch + 1, len(definition.variants)
    moments = {
        metric.name: np.zeros((epochs, variants, BUCKETS, len(MOMENTS))) for metric in definition.metrics
    }
    for name, numbers in stored.moments.items():
        epoch, variant, metric, bucket = name.split("|")
        if metric in moments and int(epoch) < epochs:
            moments[metric][int(epoch), int(variant), int(bucket)] = numbers
    sketches = [[Sketch() for _ in range(variants)] for _ in range(epochs)]
    for name, count in stored.sketches.items():
        epoch, variant, index = name.split("|")
        if int(epoch) < epochs:
            sketches[int(epoch)][int(variant)].counts[int(index)] = count
    units = counted(stored, UNITS, epochs=epochs, variants=variants)
    return Observations(
        moments=moments,
        sketches=sketches,
        first_assignments=units,
        # A unit that returns in a later epoch is counted in both: the most of any epoch is sure.
        units=tuple(units.max(axis=0).tolist()),
        shares=np.array(experiment.shares),
        planned_information=experiment.planned_information,
        mismatched=experiment.mismatched,
        ended=ended,
    )


def counted(
    stored: StoredCounts, what: str, *, epochs: int, variants: int
) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """One kind of count, int64 [epochs, variants]."""
    found = np.zeros((epochs, variants), dtype=np.int64)
    for name, count in stored.counts.items():
        epoch, _, rest = name.partition("|")
        variant, _, kind = rest.partition("|")
        if kind == what and int(epoch) < epochs:
            found[int(epoch), int(variant)] = count
    return found


def are_units_requests(stored: StoredCounts) -> bool:
    """Whether nobody sent a routing key."""
    return not any(name.endswith(f"|{KEYED}") for name in stored.counts)
