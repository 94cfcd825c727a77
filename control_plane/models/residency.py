"""Which version leaves, and how Triton and Redis are brought together again. Pure: values in, values out.

`choose_victim` is the model of what `reserve.lua` does atomically; a test holds the two together.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum

from control_plane.store.residency import SlotState, Snapshot

READY = "READY"
IN_TRANSIT = frozenset({"LOADING", "UNLOADING"})


class Mend(StrEnum):
    """What to do about a difference between Triton's index and Redis."""

    ADOPT = "adopt"
    """Triton has it, Redis doesn't: give it a slot."""
    RELOAD = "reload"
    """It was loaded, and Triton lost it: load it again."""
    SETTLE = "settle"
    """An operation died half-way and Triton has the model: the slot becomes ready."""
    FREE = "free"
    """An operation died half-way, or the files are gone, and Triton doesn't have the model: the slot is freed."""
    UNLOAD = "unload"
    """Triton has it and may not keep it: unregistered, or over capacity."""
    RETIRE = "retire"
    """It has a slot, but there are more than allowed, or its files are gone: unload it unless it is in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One thing to mend."""

    mend: Mend
    model: str


def choose_victim(snapshot: Snapshot) -> str | None:
    """The least recently used model that is ready, not in use and not pinned; ties go by name."""
    candidates = [
        (used, model)
        for model, used in snapshot.last_used.items()
        if model in snapshot.slots
        and snapshot.slots[model].state is SlotState.READY
        and model not in snapshot.leased
        and model not in snapshot.pinned
    ]
    return min(candidates)[1] if candidates else None


def idle_models(snapshot: Snapshot, *, idle_since: float) -> list[str]:
    """Ready models whose last use was before `idle_since` (wall seconds), not in use and not pinned."""
    return [
        model
        for model, slot in snapshot.slots.items()
        if slot.state is SlotState.READY
        and snapshot.last_used.get(model, 0.0) <= idle_since
        and model not in snapshot.leased
        and model not in snapshot.pinned
    ]


def plan_mending(
    index: Mapping[str, str],
    snapshot: Snapshot,
    *,
    registered: AbstractSet[str],
    remembered: Mapping[str, float],
    max_models: int,
) -> list[Action]:
    """Compares Triton with Redis.

    Args:
        index: Triton's repository index, model to state.
        snapshot: The slots in Redis.
        registered: Triton names of the versions in the model repository.
        remembered: What this worker believed loaded, with last use, where Redis has lost its memory; else empty.
        max_models: Most slots.

    Returns:
        The actions, most recently used first within a kind, and never more slots than `max_models` after them
        (apart from what is in use).
    """

    def recency(model: str) -> tuple[float, str]:
        return (max(snapshot.last_used.get(model, 0.0), remembered.get(model, 0.0)), model)

    actions: list[Action] = []
    kept: list[str] = []
    for model in sorted(snapshot.slots, key=recency, reverse=True):
        slot = snapshot.slots[model]
        state = index.get(model, "")
        if state in IN_TRANSIT or slot.held:
            kept.append(model)
        elif slot.state is not SlotState.READY:
            if state == READY:
                kept.append(model)
                actions.append(Action(mend=Mend.SETTLE, model=model))
            else:
                actions.append(Action(mend=Mend.FREE, model=model))
        elif model not in registered:
            actions.append(Action(mend=Mend.RETIRE if state == READY else Mend.FREE, model=model))
        else:
            kept.append(model)
            if state != READY:
                actions.append(Action(mend=Mend.RELOAD, model=model))
    room = max_models - len(kept)
    if room < 0:
        spare = [
            model
            for model in reversed(kept)
            if snapshot.slots[model].state is SlotState.READY
            and model not in snapshot.leased
            and model not in snapshot.pinned
        ][:-room]
        actions = [action for action in actions if action.model not in spare]
        actions += [
            Action(mend=Mend.RETIRE if index.get(model) == READY else Mend.FREE, model=model)
            for model in spare
        ]
        room = 0
    strangers = {model for model, state in index.items() if state == READY} | set(remembered)
    for model in sorted(strangers - set(snapshot.slots), key=recency, reverse=True):
        state = index.get(model, "")
        if state in IN_TRANSIT:
            continue
        if model in registered and room > 0:
            room -= 1
            actions.append(Action(mend=Mend.ADOPT if state == READY else Mend.RELOAD, model=model))
        elif state == READY:
            actions.append(Action(mend=Mend.UNLOAD, model=model))
    return actions
