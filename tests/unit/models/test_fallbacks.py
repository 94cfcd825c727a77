"""Which fallbacks are kept, and how often a load that fails is tried."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from control_plane.models.card import ServingOptions
from control_plane.models.fallbacks import FallbackKeeper, wanted_fallbacks
from control_plane.models.registry import ModelRegistry
from control_plane.settings import Settings
from control_plane.store.residency import Slot, SlotState, Snapshot
from tests.unit.inference.cards import card
from tests.unit.inference.data_plane import register
from tests.unit.models.test_serving import registry_of


def versions(**fallbacks: str | None) -> list[Any]:
    return [card("m", name, serving=ServingOptions(fallback=to)) for name, to in fallbacks.items()]


def snapshot(pinned: frozenset[str] = frozenset(), **states: SlotState) -> Snapshot:
    return Snapshot(
        generation=1,
        epoch="e",
        slots={
            f"m-{name}": Slot(state=state, fence=1, lock="", held=False) for name, state in states.items()
        },
        last_used={},
        pinned=pinned,
        leased=frozenset(),
    )


READY, LOADING, UNLOADING = SlotState.READY, SlotState.LOADING, SlotState.UNLOADING


async def test_fallbacks_of_what_is_loaded_are_wanted(tmp_path: Path) -> None:
    registry = await registry_of(tmp_path, *versions(a=None, b="a", c="b", d="a"))
    wanted = wanted_fallbacks(snapshot(a=READY, b=READY, c=LOADING, d=UNLOADING), registry)
    assert wanted.owners == {"m-a": {"fallback-of:m-b"}, "m-b": {"fallback-of:m-c"}}
    assert wanted.unusable == {}
    assert wanted_fallbacks(snapshot(b=READY, d=READY), registry).owners == {
        "m-a": {"fallback-of:m-b", "fallback-of:m-d"}
    }
    assert wanted_fallbacks(snapshot(), registry).owners == {}


@pytest.mark.parametrize(
    ("fallbacks", "reason"),
    [
        ({"a": "a"}, "leads back: a → a"),
        ({"a": "b", "b": "a"}, "leads back: a → b → a"),
        ({"a": "b", "b": "c", "c": "a"}, "leads back: a → b → c → a"),
        ({"a": "gone"}, "gone isn't registered"),
    ],
)
async def test_cards_that_were_written_wrong_keep_nothing(
    tmp_path: Path, fallbacks: Mapping[str, str], reason: str
) -> None:
    registry = await registry_of(tmp_path, *versions(**fallbacks))
    wanted = wanted_fallbacks(snapshot(**dict.fromkeys(fallbacks, READY)), registry)
    assert wanted.owners == {}
    assert reason in wanted.unusable["m-a"]


@dataclass
class Slots:
    """The cache's part that the keeper uses, in memory. Loads are begun, and fail."""

    seen: Snapshot
    owners: dict[str, set[str]] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)

    @property
    def residency(self) -> "Slots":
        return self

    async def snapshot(self) -> Snapshot:
        return self.seen

    async def pin_owners(self, key: str) -> frozenset[str]:
        return frozenset(self.owners.get(key, ()))

    async def pin(self, key: str, owner: str) -> None:
        self.owners.setdefault(key, set()).add(owner)

    async def unpin(self, key: str, owner: str) -> None:
        self.owners[key].discard(owner)

    def start_load(self, key: str) -> None:
        self.begun.append(key)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def keeper_of(slots: Slots, registry: ModelRegistry, clock: Clock, **cache: Any) -> FallbackKeeper:
    settings = Settings.model_validate({"model_cache": cache})
    return FallbackKeeper(settings=settings, registry=registry, cache=slots, clock=clock)  # type: ignore[arg-type]


async def test_pins_come_and_go_and_those_of_others_stay(tmp_path: Path) -> None:
    registry = await registry_of(tmp_path, *versions(a=None, b="a"))
    slots = Slots(snapshot(a=READY, b=READY), owners={"m-a": {"experiment:x"}})
    keeper = keeper_of(slots, registry, Clock())
    await keeper.look()
    assert slots.owners == {"m-a": {"experiment:x", "fallback-of:m-b"}}
    assert slots.begun == []
    slots.seen = snapshot(frozenset({"m-a"}), a=READY)
    await keeper.look()
    assert slots.owners == {"m-a": {"experiment:x"}}


async def test_load_that_fails_is_tried_less_and_less_until_the_version_changes(tmp_path: Path) -> None:
    registry = await registry_of(tmp_path, *versions(a=None, b="a"))
    slots, clock = Slots(snapshot(b=READY)), Clock()
    keeper = keeper_of(slots, registry, clock)

    async def tries(seconds: int) -> int:
        before = len(slots.begun)
        for _ in range(seconds):
            await keeper.look()
            clock.now += 1
        return len(slots.begun) - before

    assert await tries(60) == 4
    assert await tries(3600) in range(12, 18)
    register(tmp_path, card("m", "a", content_digest="01"))
    await registry.refresh()
    assert await tries(1) == 1
    slots.seen = snapshot(a=READY, b=READY)
    assert await tries(10) == 0
    slots.seen = snapshot(b=READY)
    assert await tries(1) == 1


async def test_cache_of_one_loads_no_fallback(tmp_path: Path) -> None:
    registry = await registry_of(tmp_path, *versions(a=None, b="a"))
    slots = Slots(snapshot(b=READY))
    await keeper_of(slots, registry, Clock(), max_models=1).look()
    assert slots.begun == []
