"""When a request that comes now would be done: from the queue, the calls in flight and what calls took lately. Pure."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from control_plane.errors import Overloaded
from control_plane.inference.queue import RequestQueue
from control_plane.inference.service_times import ServiceTimes


@dataclass(frozen=True, slots=True)
class Flight:
    """A call in flight: its rows, and when it began."""

    rows: int
    started: float


class Admission:
    """Predicts for one dispatcher.

    Args:
        max_rows: Most rows of a call.
    """

    def __init__(self, *, max_rows: int) -> None:
        self._max_rows = max_rows
        self._times = ServiceTimes()
        self._answered = float("-inf")

    @property
    def margin(self) -> float:
        """What a prediction is multiplied by before it is believed; see `ServiceTimes.margin`."""
        return self._times.margin

    def predict(
        self,
        queue: RequestQueue[Any],
        calls: Collection[Flight],
        *,
        rows: int,
        lane: Hashable,
        priority: int,
        now: float,
    ) -> float:
        """Seconds from now to the answer of a request of so many rows; 0 while nothing is known."""
        times = self._times
        if not times.is_known:
            return 0.0
        if not queue:
            return self.busy_s(calls, now) + times.call_s(min(rows, self._max_rows))
        ahead = queue.calls_ahead(lane, priority, max_rows=self._max_rows)
        shared = queue.rows_beside(lane, rows, max_rows=self._max_rows)
        return self.busy_s(calls, now) + ahead * times.call_s(self._max_rows) + times.call_s(shared)

    def busy_s(self, calls: Collection[Flight], now: float) -> float:
        """How long Triton is still at work on the calls in flight, in seconds."""
        if not calls:
            return 0.0
        times = self._times
        began = max(min(call.started for call in calls), self._answered)
        return max(0.0, sum(times.call_s(call.rows) for call in calls) - (now - began))

    def rows_until(self, deadline: float, calls: Collection[Flight], now: float) -> int:
        """Most rows of a call that is sent now and done by the deadline of its first request; 0 for none.

        What joins a call makes all its requests wait for it. While no call is in flight, one row can always go: what it
        takes corrects wrong predictions.
        """
        if not self._times.is_known:
            return self._max_rows
        left_s = (deadline - now) / self._times.margin - self.busy_s(calls, now)
        least = 0 if calls else 1
        return int(min(max(least, self._times.rows_within(left_s)), self._max_rows))

    def with_further(self, predicted_s: float, further_rows: int) -> float:
        """The prediction for a request whose further parts follow this one."""
        if not further_rows or not predicted_s:
            return predicted_s
        return predicted_s + further_rows / self._max_rows * self._times.call_s(self._max_rows)

    def learn(
        self, requests: Sequence[tuple[float, float]], *, rows: int, started: float, now: float
    ) -> None:
        """A call was answered.

        Args:
            requests: What was predicted for each of its requests, in seconds, and when it came.
            rows: The call's rows.
            started: When it began.
            now: The time of its answer.
        """
        self._times.observe_call(rows, now - max(started, self._answered))
        self._answered = now
        for predicted_s, came in requests:
            self._times.observe_request(predicted_s=predicted_s, actual_s=now - came)


def too_late(model: str, *, expected_s: float, left_s: float) -> Overloaded:
    """The refusal of a request whose answer is expected in `expected_s` seconds, of which it has `left_s`."""
    error = Overloaded(
        f"{model} has more waiting than it can answer before this request's deadline.",
        expected=f"an answer within {left_s * 1e3:.0f} ms",
        got=f"about {expected_s * 1e3:.0f} ms, by what calls took lately",
        remedy="Try again after Retry-After, raise timeout_ms, or send on_overload: degrade.",
    )
    error.retry_after_s = expected_s - left_s
    return error
