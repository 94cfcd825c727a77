"""A worker's beliefs: what is counted, what is told, and what a snapshot changes."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from control_plane.models.beliefs import Beliefs
from control_plane.store.residency import FlushBatch, Slot, SlotState, Snapshot


def snapshot(generation: int, epoch: str = "e", **slots: SlotState) -> Snapshot:
    return Snapshot(
        generation=generation,
        epoch=epoch,
        slots={
            f"{name}-v1": Slot(state=state, fence=generation, lock="", held=False)
            for name, state in slots.items()
        },
        last_used={},
        pinned=frozenset(),
        leased=frozenset(),
    )


def beliefs(**slots: SlotState) -> Beliefs:
    made = Beliefs(enable_metrics=False)
    made.apply(snapshot(1, **slots))
    return made


def test_use_of_an_unknown_or_unready_model_is_refused_and_not_counted() -> None:
    known = beliefs(a=SlotState.LOADING)
    assert not known.try_use("a-v1")
    assert not known.try_use("b-v1")
    assert not known.dirty
    assert known.take_batch() == FlushBatch()


def test_use_that_waited_counts_as_miss_not_as_hit() -> None:
    known = beliefs(a=SlotState.READY)
    known.miss("a")
    known.owe("a-v1")
    for _ in range(3):
        assert known.try_use("a-v1")
        known.done("a-v1")
    batch = known.take_batch()
    assert batch.stats == {"misses": 1, "hits": 2}
    assert batch.uses == (("a-v1", 3),)


def test_batch_is_the_same_until_it_is_confirmed() -> None:
    known = beliefs(a=SlotState.READY)
    known.try_use("a-v1")
    first = known.take_batch()
    number = known.batch
    known.try_use("a-v1")
    again = known.take_batch()
    assert (again.uses, again.stats, known.batch) == (first.uses, first.stats, number)
    known.confirm(again, counted=True)
    assert known.take_batch().uses == (("a-v1", 1),)
    assert known.batch == number + 1


def test_lost_memory_of_redis_is_told_everything_again() -> None:
    known = beliefs(a=SlotState.READY)
    for _ in range(5):
        known.try_use("a-v1")
        known.done("a-v1")
    known.confirm(known.take_batch(), counted=True)
    known.count_told("evictions")
    assert known.take_batch().stats == {}
    known.forget_confirmed()
    batch = known.take_batch()
    assert batch.uses == (("a-v1", 5),)
    assert batch.stats == {"hits": 5, "evictions": 1}
    assert [model for model, _ in batch.touched] == ["a-v1"]


def test_model_that_triton_lost_stays_lost_until_a_later_load() -> None:
    known = beliefs(a=SlotState.READY)
    known.lose("a-v1")
    known.apply(snapshot(1, a=SlotState.READY))
    assert not known.try_use("a-v1")
    known.apply(snapshot(2, a=SlotState.READY))
    assert known.try_use("a-v1")


def test_older_snapshot_is_passed_over() -> None:
    known = beliefs()
    known.apply(snapshot(5, a=SlotState.READY))
    known.apply(snapshot(4))
    assert known.is_ready("a-v1")
    known.apply(snapshot(1, epoch="new"))
    assert not known.is_ready("a-v1")


def test_unload_is_acknowledged_once_the_last_use_has_ended() -> None:
    known = beliefs(a=SlotState.READY)
    assert known.try_use("a-v1")
    known.apply(snapshot(2, a=SlotState.UNLOADING))
    assert not known.try_use("a-v1")
    assert known.take_batch().drained == ()
    known.done("a-v1")
    assert known.urgent
    batch = known.take_batch()
    assert batch.drained == (("a-v1", "2"),)
    known.confirm(batch, counted=True)
    assert known.take_batch().drained == ()
    known.apply(snapshot(3, a=SlotState.READY))
    known.apply(snapshot(4, a=SlotState.UNLOADING))
    assert known.take_batch().drained == (("a-v1", "4"),)


def test_lease_is_renewed_while_in_use_and_released_after() -> None:
    known = beliefs(a=SlotState.READY)
    known.try_use("a-v1")
    batch = known.take_batch()
    assert (batch.leased, batch.released) == (("a-v1",), ())
    known.confirm(batch, counted=True)
    known.done("a-v1")
    batch = known.take_batch()
    assert (batch.leased, batch.released) == ((), ("a-v1",))
    known.confirm(batch, counted=True)
    assert known.take_batch().released == ()


_steps = st.lists(
    st.sampled_from(["use", "miss", "flush", "flush_lost", "flush_unanswered", "forget", "unload", "load"]),
    max_size=60,
)


@given(_steps)
def test_counts_arrive_exactly_once_whatever_happens_to_the_batches(steps: list[str]) -> None:
    known = beliefs(a=SlotState.READY)
    redis: Counter[str] = Counter()
    applied = 0
    made: Counter[str] = Counter()
    generation = 1

    def arrive(batch: FlushBatch) -> None:
        nonlocal applied
        if known.batch > applied:
            applied = known.batch
            redis.update(batch.stats)
            redis.update(dict(batch.uses))

    for step in [*steps, "flush", "flush"]:
        if step == "use":
            if known.try_use("a-v1"):
                known.done("a-v1")
                made["a-v1"] += 1
        elif step == "miss":
            known.miss("a")
            known.owe("a-v1")
            made["misses"] += 1
        elif step == "flush":
            batch = known.take_batch()
            arrive(batch)
            known.confirm(batch, counted=True)
        elif step == "flush_lost":
            known.take_batch()
        elif step == "flush_unanswered":
            arrive(known.take_batch())
        elif step == "forget":
            redis.clear()
            applied = 0
            known.forget_confirmed()
        else:
            generation += 1
            known.apply(snapshot(generation, **({"a": SlotState.READY} if step == "load" else {})))
    assert redis["a-v1"] == made["a-v1"]
    assert redis["misses"] == made["misses"]
    assert redis["hits"] + redis["misses"] >= redis["a-v1"]
