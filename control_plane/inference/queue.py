"""The order of waiting requests: priorities that age, lanes of what may be merged. Pure: no clock, no event loop.

The key of an entry is fixed when it is made: `enqueued + (priority - 1) * ageing_step`. Smaller goes first. So of two
entries the one with the higher priority (the smaller number) goes first, unless the other has waited longer by more
than `ageing_step` for each step of priority between them: with a step of 1 s, whatever arrives more than 4 s after an
entry of priority 5 can't pass it, whatever its priority. None starves, and no key has to be changed while waiting.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

AGEING_STEP_S = 1.0
HIGHEST_PRIORITY = 1
LOWEST_PRIORITY = 5

Payload = TypeVar("Payload")


@dataclass(eq=False, slots=True, kw_only=True)
class Entry(Generic[Payload]):
    """One waiting request. Only entries with equal `lane` share a call; `alone` shares with none.

    One that is not `displaceable` keeps its place when the queue is full. A call takes one entry of a `group` at most.
    """

    payload: Payload
    lane: Hashable
    rows: int
    priority: int
    enqueued: float
    alone: bool = False
    displaceable: bool = True
    group: Hashable | None = None


@dataclass(slots=True)
class _Lane(Generic[Payload]):
    """Entries that may share a call: in order (with dead ones until they surface), and the live ones by age."""

    ordered: list[tuple[float, int, Entry[Payload]]] = field(default_factory=list)
    live: dict[int, Entry[Payload]] = field(default_factory=dict)
    rows: int = 0

    def head(self) -> tuple[float, int, Entry[Payload]]:
        """The first live entry; the lane must hold one."""
        while self.ordered[0][1] not in self.live:
            heappop(self.ordered)
        return self.ordered[0]

    def compact(self) -> None:
        """Forgets dead entries once they are most of the heap, so that withdrawn requests don't pile up."""
        if len(self.ordered) > 64 and len(self.ordered) > 2 * len(self.live):
            self.ordered = [item for item in self.ordered if item[1] in self.live]
            heapify(self.ordered)


class RequestQueue(Generic[Payload]):
    """Waiting requests. All operations are O(log n) but for `take`, which also looks at each lane's head."""

    def __init__(self, *, ageing_step_s: float = AGEING_STEP_S) -> None:
        self._ageing_step_s = ageing_step_s
        self._lanes: dict[Hashable, _Lane[Payload]] = {}
        self._places: dict[int, tuple[int, Hashable]] = {}
        self._displaceable: tuple[dict[int, Entry[Payload]], ...] = tuple(
            {} for _ in range(LOWEST_PRIORITY + 1)
        )
        self._rows = [0] * (LOWEST_PRIORITY + 1)
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Entry[Payload]]:
        """The waiting entries, in no order."""
        return (entry for lane in self._lanes.values() for entry in lane.live.values())

    def key_of(self, entry: Entry[Payload]) -> float:
        """The entry's place in the order, in seconds; smaller goes first, and among equal ones the first put."""
        return entry.enqueued + (entry.priority - HIGHEST_PRIORITY) * self._ageing_step_s

    def put(self, entry: Entry[Payload]) -> None:
        """Adds an entry that is not waiting already."""
        self._sequence += 1
        name: Hashable = entry.lane if not entry.alone else (_Lane, self._sequence)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane()
        heappush(lane.ordered, (self.key_of(entry), self._sequence, entry))
        lane.live[self._sequence] = entry
        lane.rows += entry.rows
        self._rows[entry.priority] += entry.rows
        self._places[id(entry)] = (self._sequence, name)
        if entry.displaceable:
            self._displaceable[entry.priority][self._sequence] = entry

    def remove(self, entry: Entry[Payload]) -> bool:
        """Takes an entry out; whether it was waiting."""
        place = self._places.pop(id(entry), None)
        if place is None:
            return False
        sequence, name = place
        self._displaceable[entry.priority].pop(sequence, None)
        lane = self._lanes[name]
        del lane.live[sequence]
        lane.rows -= entry.rows
        self._rows[entry.priority] -= entry.rows
        if lane.live:
            lane.compact()
        else:
            del self._lanes[name]
        return True

    def displaced_by(self, entry: Entry[Payload]) -> Entry[Payload] | None:
        """Who gives way to a new entry in a full queue: the newest of the lowest priority below it, unless that one has
        waited so long that it goes before the new entry. None when the new one has to be refused.
        """
        for priority in range(LOWEST_PRIORITY, entry.priority, -1):
            if candidates := self._displaceable[priority]:
                newest = candidates[next(reversed(candidates))]
                return newest if self.key_of(entry) < self.key_of(newest) else None
        return None

    def calls_ahead(self, lane: Hashable, priority: int, *, max_rows: int) -> int:
        """About how many calls go before the one that a new entry would share: those of its own priority and higher, as
        if each lane held the same mix; how old the lower ones have become isn't looked at.
        """
        total = sum(self._rows)
        if total == 0:
            return 0
        before = sum(self._rows[: priority + 1])
        if len(self._lanes) == 1 and lane in self._lanes:
            return before // max_rows
        share = before / total
        ahead = 0
        for name, waiting in self._lanes.items():
            rows = waiting.rows * share
            ahead += int(rows // max_rows if name == lane else -(-rows // max_rows))
        return ahead

    def rows_beside(self, lane: Hashable, rows: int, *, max_rows: int) -> int:
        """Rows of the call that a new entry of so many rows would share, if it were the last of its lane."""
        waiting = self._lanes.get(lane)
        return min(max_rows, rows + (waiting.rows % max_rows if waiting else 0))

    def take(
        self,
        max_rows: int,
        *,
        now: float,
        hold_back_s: float = 0.0,
        rows_until: Callable[[Payload], int] | None = None,
    ) -> list[Entry[Payload]]:
        """Takes the entries of the next call: the first in order, and of its lane what else fits, in order.

        An entry larger than the room left is passed over for smaller ones behind it: it would not have gone with this
        call anyhow. The first entry goes even when it alone exceeds `max_rows`.

        Args:
            max_rows: The most rows of a call.
            now: The time, by the clock of `Entry.enqueued`.
            hold_back_s: Lanes that don't fill a call wait until their oldest entry is so old.
            rows_until: The most rows of a call that is in time for this first entry. One that would be late even alone
                is no reason to send the others in smaller calls: they would wait for more of them.

        Returns:
            Entries of one lane in order; empty when nothing waits or all lanes are held back.
        """
        name = self._next_lane(max_rows, now, hold_back_s)
        if name is None:
            return []
        lane = self._lanes[name]
        if rows_until is not None:
            first = lane.head()[2]
            if (most := rows_until(first.payload)) >= first.rows:
                max_rows = min(max_rows, most)
        taken: list[Entry[Payload]] = []
        passed_over: list[tuple[float, int, Entry[Payload]]] = []
        groups: set[Hashable] = set()
        rows = 0
        while lane.ordered and len(passed_over) < 16 and (rows < max_rows or not taken):
            item = heappop(lane.ordered)
            _, sequence, entry = item
            if sequence not in lane.live:
                continue
            if taken and (rows + entry.rows > max_rows or entry.group in groups):
                passed_over.append(item)
                continue
            if entry.group is not None:
                groups.add(entry.group)
            taken.append(entry)
            rows += entry.rows
            self._rows[entry.priority] -= entry.rows
            del lane.live[sequence]
            del self._places[id(entry)]
            self._displaceable[entry.priority].pop(sequence, None)
        for item in passed_over:
            heappush(lane.ordered, item)
        lane.rows -= rows
        if not lane.live:
            del self._lanes[name]
        return taken

    def ready_at(self, max_rows: int, *, hold_back_s: float) -> float | None:
        """When the first lane stops being held back; -inf for now, None when nothing waits."""
        return min(
            (self._ready_at(lane, max_rows, hold_back_s) for lane in self._lanes.values()), default=None
        )

    def _next_lane(self, max_rows: int, now: float, hold_back_s: float) -> Hashable | None:
        best: tuple[float, int] | None = None
        chosen: Hashable | None = None
        for name, lane in self._lanes.items():
            if hold_back_s and self._ready_at(lane, max_rows, hold_back_s) > now:
                continue
            key, sequence, _ = lane.head()
            if best is None or (key, sequence) < best:
                best, chosen = (key, sequence), name
        return chosen

    @staticmethod
    def _ready_at(lane: _Lane[Payload], max_rows: int, hold_back_s: float) -> float:
        oldest = next(iter(lane.live.values()))
        if lane.rows >= max_rows or oldest.alone:
            return float("-inf")
        return oldest.enqueued + hold_back_s
