"""The queue against a list that is sorted for each question."""

from typing import Any

import hypothesis.strategies as st
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from control_plane.inference.queue import AGEING_STEP_S, Entry, RequestQueue

PRIORITIES = st.integers(1, 5)


def entry(
    name: Any, *, lane: str = "a", rows: int = 1, priority: int = 3, at: float = 0.0, **flags: Any
) -> Any:
    return Entry(payload=name, lane=lane, rows=rows, priority=priority, enqueued=at, **flags)


class QueueMachine(RuleBasedStateMachine):
    """Any sequence of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: RequestQueue[int] = RequestQueue()
        self.waiting: list[Entry[int]] = []  # in the order of `put`
        self.gone: list[Entry[int]] = []
        self.now = 0.0
        self.names = 0

    def in_order(self, entries: list[Entry[int]]) -> list[Entry[int]]:
        return sorted(entries, key=self.queue.key_of)  # stable: equal keys in the order of `put`

    @rule(
        lane=st.sampled_from("abc"),
        rows=st.integers(1, 6),
        priority=PRIORITIES,
        passed=st.sampled_from([0.0, 0.25, 1.0]),
        alone=st.booleans(),
        displaceable=st.booleans(),
    )
    def put(
        self, lane: str, rows: int, priority: int, passed: float, alone: bool, displaceable: bool
    ) -> None:
        self.now += passed
        self.names += 1
        new = entry(
            self.names,
            lane=lane,
            rows=rows,
            priority=priority,
            at=self.now,
            alone=alone,
            displaceable=displaceable,
        )
        self.queue.put(new)
        self.waiting.append(new)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.waiting))
        assert self.queue.remove(gone)
        self.waiting.remove(gone)
        self.gone.append(gone)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def remove_again(self, data: st.DataObject) -> None:
        assert not self.queue.remove(data.draw(st.sampled_from(self.gone)))

    @rule(max_rows=st.integers(1, 8))
    def take(self, max_rows: int) -> None:
        taken = self.queue.take(max_rows, now=self.now)
        if not self.waiting:
            assert taken == []
            return
        first = self.in_order(self.waiting)[0]
        sharing = (
            [first]
            if first.alone
            else [one for one in self.in_order(self.waiting) if one.lane == first.lane and not one.alone]
        )
        expected, room = [], max_rows
        for one in sharing:
            if not expected or one.rows <= room:
                expected.append(one)
                room -= one.rows
        assert taken == expected
        self.waiting = [one for one in self.waiting if one not in taken]
        self.gone += taken

    @rule(priority=PRIORITIES)
    def displace(self, priority: int) -> None:
        new = entry(-1, priority=priority, at=self.now)
        below = [one for one in self.waiting if one.displaceable and one.priority > priority]
        lowest = max((one.priority for one in below), default=0)
        newest = next((one for one in reversed(below) if one.priority == lowest), None)
        gives_way = newest is not None and self.queue.key_of(new) < self.queue.key_of(newest)
        assert self.queue.displaced_by(new) == (newest if gives_way else None)

    @invariant()
    def holds_what_waits(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert {one.payload for one in self.queue} == {one.payload for one in self.waiting}


TestQueue = QueueMachine.TestCase


@given(
    st.lists(st.tuples(PRIORITIES, st.floats(0, 10)), min_size=1, max_size=30),
    PRIORITIES,
    st.floats(0, 10),
)
def test_queue_lets_nobody_pass_who_came_later_than_the_ageing_allows(
    others: list[tuple[int, float]], priority: int, at: float
) -> None:
    queue: RequestQueue[str] = RequestQueue()
    mine = entry("mine", priority=priority, at=at)
    queue.put(mine)
    for other_priority, other_at in others:
        queue.put(entry("other", priority=other_priority, at=other_at))
    before = []
    while (taken := queue.take(1, now=20.0)) and taken[0] is not mine:
        before.append(taken[0])
    for other in before:
        assert other.enqueued <= mine.enqueued + (mine.priority - other.priority) * AGEING_STEP_S


def test_queue_holds_back_until_full_or_old() -> None:
    queue: RequestQueue[str] = RequestQueue()
    queue.put(entry("one", at=10.0))
    assert queue.ready_at(2, hold_back_s=0.5) == 10.5
    assert queue.take(2, now=10.4, hold_back_s=0.5) == []
    queue.put(entry("two", at=10.4, priority=1))
    assert [one.payload for one in queue.take(2, now=10.4, hold_back_s=0.5)] == ["two", "one"]
    assert queue.ready_at(2, hold_back_s=0.5) is None
    queue.put(entry("three", at=11.0))
    assert [one.payload for one in queue.take(2, now=11.5, hold_back_s=0.5)] == ["three"]


def test_queue_lane_held_back_does_not_hold_others() -> None:
    queue: RequestQueue[str] = RequestQueue()
    queue.put(entry("young", lane="a", priority=1, at=10.0))
    queue.put(entry("full", lane="b", rows=2, priority=5, at=10.0))
    assert [one.payload for one in queue.take(2, now=10.0, hold_back_s=0.5)] == ["full"]


def test_queue_gives_a_call_one_entry_of_a_group() -> None:
    queue: RequestQueue[str] = RequestQueue()
    for name, group in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("c", None), ("d", None)):
        queue.put(entry(name, group=group))
    assert [one.payload for one in queue.take(8, now=0.0)] == ["a1", "b1", "c", "d"]
    assert [one.payload for one in queue.take(8, now=0.0)] == ["a2"]


def test_queue_limits_a_call_by_its_first_entry_unless_that_is_late_anyhow() -> None:
    for most, taken in ((64, "abcd"), (3, "abc"), (1, "a"), (0, "abcd")):
        queue: RequestQueue[str] = RequestQueue()
        for name in "abcd":
            queue.put(entry(name))
        asked: list[str] = []

        def rows_until(first: str, most: int = most, asked: list[str] = asked) -> int:
            asked.append(first)
            return most

        assert "".join(one.payload for one in queue.take(64, now=0.0, rows_until=rows_until)) == taken
        assert asked == ["a"]


def test_queue_forgets_withdrawn_entries() -> None:
    queue: RequestQueue[int] = RequestQueue()
    queue.put(entry(-1))
    for name in range(10_000):
        one = entry(name, at=float(name))
        queue.put(one)
        queue.remove(one)
    lane = queue._lanes["a"]
    assert len(lane.ordered) < 200
