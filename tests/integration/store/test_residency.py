"""The Lua scripts on a real Redis, held to the pure model of what they decide."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.embedded.redis import RedisServer
from control_plane.models.residency import choose_victim
from control_plane.settings import RedisSettings
from control_plane.store.redis import RedisStore, open_store
from control_plane.store.residency import (
    ClaimOutcome,
    FlushBatch,
    ReserveOutcome,
    ResidencyStore,
    SlotState,
    UnloadMode,
    UnloadOutcome,
)


@pytest.fixture
async def store(redis_server: RedisServer, redis_key_prefix: str) -> AsyncIterator[RedisStore]:
    """A store under this test's prefix."""
    redis = RedisSettings(host="127.0.0.1", port=redis_server.port, key_prefix=redis_key_prefix)
    async with open_store(redis) as opened:
        yield opened


@pytest.fixture
async def residency(store: RedisStore) -> ResidencyStore:
    """Slots with the epoch `e`."""
    made = ResidencyStore(store)
    await made.begin_epoch("e")
    return made


async def fill(residency: ResidencyStore, model: str, used: float, *, fence: int = 1) -> None:
    """Gives a model a ready slot."""
    outcome = await residency.claim(model, fence, SlotState.READY, most=100, used=used, loaded_at=used)
    assert outcome is ClaimOutcome.CLAIMED


_MODELS = [f"m-{number}" for number in range(6)]
_cases = st.tuples(
    st.dictionaries(
        st.sampled_from(_MODELS), st.tuples(st.sampled_from(SlotState), st.integers(0, 4)), min_size=1
    ),
    st.sets(st.sampled_from(_MODELS)),
    st.sets(st.sampled_from(_MODELS)),
)


@settings(max_examples=60)
@given(_cases)
def test_victim_of_the_script_is_the_model_victim(redis_server: RedisServer, case: tuple) -> None:  # type: ignore[type-arg]
    slots, pinned, leased = case

    async def both() -> None:
        redis = RedisSettings(
            host="127.0.0.1", port=redis_server.port, key_prefix=f"victim-{uuid.uuid4().hex[:12]}"
        )
        async with open_store(redis) as store:
            residency = ResidencyStore(store)
            await residency.begin_epoch("e")
            for model, (state, used) in slots.items():
                await residency.claim(model, 1, state, most=100, used=float(used), loaded_at=0.0)
            for model in pinned:
                await residency.set_pin(model, "owner", on=True)
            await residency.flush(
                "w", 1, FlushBatch(leased=tuple(leased)), epoch="e", alive_s=3.0, lease_s=5.0
            )
            expected = choose_victim(await residency.snapshot())
            outcome, victim = await residency.reserve("wanted-1", 9, most=len(slots), epoch="e")
            if expected is None:
                assert outcome is ReserveOutcome.FULL
            else:
                assert (outcome, victim) == (ReserveOutcome.EVICT, expected)
                # The same question again has the same answer: nothing happens twice.
                assert await residency.reserve("wanted-1", 9, most=len(slots), epoch="e") == (outcome, victim)

    asyncio.run(both())


async def test_reserve_takes_a_free_slot_and_then_a_victims(residency: ResidencyStore) -> None:
    assert await residency.reserve("a-1", 1, most=1, epoch="e") == (ReserveOutcome.RESERVED, "")
    assert await residency.reserve("b-1", 2, most=1, epoch="e") == (ReserveOutcome.FULL, "")
    assert await residency.mark_ready("a-1", 1, used=1.0, loaded_at=1.0, worker="w", lease_s=0)
    assert await residency.reserve("b-1", 2, most=1, epoch="e") == (ReserveOutcome.EVICT, "a-1")
    assert await residency.end_unload("a-1", 2, counter="evictions", successor="b-1")
    assert await residency.end_unload("a-1", 2, counter="evictions", successor="b-1")
    snapshot = await residency.snapshot()
    assert {model: slot.state for model, slot in snapshot.slots.items()} == {"b-1": SlotState.LOADING}
    assert (await residency.totals()).evictions == 1


async def test_later_operation_fences_off_an_earlier_one(residency: ResidencyStore) -> None:
    await residency.reserve("a-1", 1, most=1, epoch="e")
    await residency.reserve("a-1", 2, most=1, epoch="e")
    assert not await residency.mark_ready("a-1", 1, used=1.0, loaded_at=1.0, worker="w", lease_s=0)
    assert not await residency.free("a-1", 1)
    assert await residency.mark_ready("a-1", 2, used=1.0, loaded_at=1.0, worker="w", lease_s=0)


async def test_reserve_in_an_unknown_epoch_is_stale(store: RedisStore) -> None:
    residency = ResidencyStore(store)
    assert await residency.reserve("a-1", 1, most=1, epoch="") == (ReserveOutcome.STALE, "")
    assert await residency.begin_epoch("one") == "one"
    assert await residency.begin_epoch("two") == "one"
    assert await residency.reserve("a-1", 1, most=1, epoch="two") == (ReserveOutcome.STALE, "")


async def test_unload_spares_what_is_pinned_leased_or_used_since(residency: ResidencyStore) -> None:
    await fill(residency, "a-1", 10.0)
    assert await residency.begin_unload("b-1", 2, UnloadMode.EXPLICIT) is UnloadOutcome.GONE
    assert await residency.begin_unload("a-1", 2, UnloadMode.IDLE, idle_since=5.0) is UnloadOutcome.USED
    await residency.set_pin("a-1", "x", on=True)
    assert await residency.begin_unload("a-1", 2, UnloadMode.EXPLICIT) is UnloadOutcome.PINNED
    assert await residency.pinned("a-1")
    await residency.set_pin("a-1", "x", on=False)
    await residency.flush("w", 1, FlushBatch(leased=("a-1",)), epoch="e", alive_s=3.0, lease_s=5.0)
    assert await residency.begin_unload("a-1", 2, UnloadMode.IDLE, idle_since=50.0) is UnloadOutcome.LEASED
    assert await residency.begin_unload("a-1", 2, UnloadMode.EXPLICIT) is UnloadOutcome.UNLOADING
    assert await residency.abort_unload("a-1", 2)
    await residency.flush("w", 2, FlushBatch(released=("a-1",)), epoch="e", alive_s=3.0, lease_s=5.0)
    assert await residency.begin_unload("a-1", 3, UnloadMode.IDLE, idle_since=50.0) is UnloadOutcome.UNLOADING


async def test_batch_is_counted_once_and_only_in_its_epoch(residency: ResidencyStore) -> None:
    await fill(residency, "a-1", 1.0)
    batch = FlushBatch(touched=(("a-1", "7.25"),), uses=(("a-1", 3),), stats={"hits": 2, "misses": 1})
    for epoch, number in (("other", 1), ("e", 1), ("e", 1), ("e", 1)):
        await residency.flush("w", number, batch, epoch=epoch, alive_s=3.0, lease_s=5.0)
    totals = await residency.totals()
    assert (totals.hits, totals.misses, totals.usage) == (2, 1, {"a-1": 3})
    assert (await residency.snapshot()).last_used == {"a-1": 7.25}
    await residency.flush("w", 2, batch, epoch="e", alive_s=3.0, lease_s=5.0)
    assert (await residency.totals()).hits == 4


async def test_drain_waits_for_every_living_worker(residency: ResidencyStore) -> None:
    await fill(residency, "a-1", 1.0)
    await residency.begin_unload("a-1", 2, UnloadMode.EXPLICIT)
    for worker in ("one", "two"):
        await residency.flush(worker, 1, FlushBatch(), epoch="e", alive_s=3.0, lease_s=5.0)
    assert await residency.undrained("a-1", 2) == 2
    await residency.flush("one", 2, FlushBatch(drained=(("a-1", "2"),)), epoch="e", alive_s=3.0, lease_s=5.0)
    assert await residency.undrained("a-1", 2) == 1
    await residency.flush("two", 2, FlushBatch(), epoch="e", alive_s=0.0, lease_s=5.0)
    assert await residency.undrained("a-1", 2) == 0


async def test_claim_respects_capacity_for_new_slots_only(residency: ResidencyStore) -> None:
    await fill(residency, "a-1", 1.0)
    assert (
        await residency.claim("b-1", 2, SlotState.READY, most=1, used=1.0, loaded_at=1.0) is ClaimOutcome.FULL
    )
    assert (
        await residency.claim("a-1", 2, SlotState.READY, most=1, used=1.0, loaded_at=1.0)
        is ClaimOutcome.CLAIMED
    )
