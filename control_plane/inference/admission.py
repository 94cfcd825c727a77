"""When a request that comes now would be done: from the queue, the calls in flight and what calls took lately. Pure."""

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from control_plane.errors import Overloaded
from control_plane.inference.queue import RequestQueue
from control_plane.inference.service_times import ServiceTimes

WITHOUT_DEGRADING = "Try again after Retry-After, or raise timeout_ms."
"""The remedy where something cheaper was asked for and there was nothing."""
_LEAST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Flight:
    """A call in flight: its rows, and when it began."""

    rows: int
    started: float


class Forecast(NamedTuple):
    """What was expected of a request when it came, in seconds, without the margin; zeros where nothing was known."""

    wait_s: float
    """Until Triton begins its call."""
    call_s: float
    """Its call, with what waited to share it."""


NOTHING_KNOWN = Forecast(0.0, 0.0)


class CallBudget(NamedTuple):
    """How large a call that is sent now may become."""

    now: float
    busy_s: float
    """Until Triton begins it."""
    times: ServiceTimes
    margin: float
    least_rows: int
    most_rows: int

    def rows_until(self, deadline: float) -> int:
        """Most rows of a call that is done by a deadline; 0 for none."""
        if not self.times.is_known:
            return self.most_rows
        rows = self.times.rows_within((deadline - self.now) / self.margin - self.busy_s)
        return int(min(max(self.least_rows, rows), self.most_rows))

    def finish_s(self, rows: int) -> float:
        """Seconds to its end, with the margin."""
        return (self.busy_s + self.times.call_s(rows)) * self.margin


class Admission:
    """Predicts for one dispatcher.

    Args:
        max_rows: Most rows of a call.
    """

    def __init__(self, *, max_rows: int) -> None:
        self._max_rows = max_rows
        self._times = ServiceTimes()
        self._answered = float("-inf")

    def forecast(
        self,
        queue: RequestQueue[Any],
        calls: Collection[Flight],
        *,
        rows: int,
        lane: Hashable,
        priority: int,
        now: float,
    ) -> Forecast:
        """What to expect of a request of so many rows that comes now."""
        times = self._times
        if not times.is_known:
            return NOTHING_KNOWN
        busy_s = self.busy_s(calls, now)
        if not queue:
            return Forecast(busy_s, times.call_s(min(rows, self._max_rows)))
        ahead = queue.calls_ahead(lane, priority, max_rows=self._max_rows)
        shared = queue.rows_beside(lane, rows, max_rows=self._max_rows)
        return Forecast(busy_s + ahead * times.call_s(self._max_rows), times.call_s(shared))

    def finish_s(self, forecast: Forecast, *, further_calls: int = 0, further_rows: int = 0) -> float:
        """Seconds to its answer, with the margin; the rest of the same request follows in calls of its own."""
        further_s = further_calls * self._times.call_s(further_rows / further_calls) if further_calls else 0.0
        return (forecast.wait_s + forecast.call_s + further_s) * self._times.margin

    def busy_s(self, calls: Collection[Flight], now: float) -> float:
        """How long Triton is still at work on the calls in flight, in seconds; the oldest comes first."""
        if not calls:
            return 0.0
        work_s = 0.0
        for call in calls:
            work_s += self._times.call_s(call.rows)
        began = max(next(iter(calls)).started, self._answered)
        return max(0.0, work_s - (now - began))

    def budget(self, calls: Collection[Flight], now: float) -> CallBudget:
        """For the rows of a call that is sent now.

        What joins a call makes all its requests wait for it. While no call is in flight, one row can always go: what it
        takes corrects wrong predictions.
        """
        return CallBudget(
            now=now,
            busy_s=self.busy_s(calls, now),
            times=self._times,
            margin=self._times.margin,
            least_rows=0 if calls else 1,
            most_rows=self._max_rows,
        )

    def learn(
        self, requests: Iterable[tuple[Forecast, float]], *, rows: int, sent: float, lag_s: float, now: float
    ) -> None:
        """A call was answered.

        Args:
            requests: What was expected of each of its requests, and when it came.
            rows: The call's rows.
            sent: When it was sent.
            lag_s: How long the event loop took from its turn to that, and about what it takes to notice the answer. A
                busy worker isn't a slow model: a refusal would save it nothing, as the request is decoded already.
            now: The time of its answer.
        """
        times = self._times
        # Who joined later is in the real call, and not in the forecast: as that is bounded by the deadlines, it's no
        # error of the forecast.
        call_s = times.call_s(rows)
        expected_s = actual_s = 0.0
        for forecast, came in requests:
            if forecast.call_s > 0:
                expected_s += forecast.wait_s + call_s
                actual_s += _without(lag_s, now - came - lag_s)
        times.observe_call(rows, _without(lag_s, now - max(sent, self._answered)))
        self._answered = now
        times.observe_finish(expected_s=expected_s, actual_s=actual_s)


def _without(lag_s: float, time_s: float) -> float:
    """A time without the event loop's part of it, which is estimated, so at least a fifth is left."""
    return max(_LEAST_SHARE * time_s, time_s - lag_s)


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
