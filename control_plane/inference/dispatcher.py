"""The dispatcher of one Triton model: a bounded number of calls in flight, and a bounded priority queue before them.

While all calls are in flight, requests wait; a free one takes as many rows as fit, highest priority and oldest first.
That one rule gives batching, priority, back-pressure and deadlines, and spreads the cost of a gRPC call over the
requests that share it. What may share a call, and in which order, is `queue.py`'s.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from control_plane.errors import (
    DeadlineExceeded,
    ModelNotReady,
    QueueFull,
    ShuttingDown,
    TritonUnavailable,
)
from control_plane.inference.admission import NOTHING_KNOWN, Admission, CallBudget, Flight, Forecast, too_late
from control_plane.inference.merged import merge_inputs, split_outputs
from control_plane.inference.queue import Entry, RequestQueue
from control_plane.inference.tensors import Array
from control_plane.telemetry import metrics

Tensors = Mapping[str, Array]
_PASSED_ON = (ModelNotReady, TritonUnavailable, DeadlineExceeded)


class Infer(Protocol):
    """One inference call; `control_plane.triton.client.TritonClient.infer` is one."""

    async def __call__(
        self, model: str, inputs: Tensors, outputs: Sequence[str], *, timeout_s: float
    ) -> Mapping[str, Array]:
        """Runs the call; arrays are by Triton tensor name, with a leading batch axis."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherLimits:
    """A dispatcher's bounds."""

    max_rows: int
    """Most rows of one call."""
    calls_in_flight: int
    """Most calls to Triton at once."""
    max_queue_size: int
    """Most requests waiting."""
    hold_back_s: float = 0.0
    """Longest time a request waits for others to share its call while a call is free."""
    call_timeout_s: float = 30.0
    """Longest time of one call."""


@dataclass(slots=True, eq=False)
class _Request:
    """What the queue carries: a request's tensors, and who waits for them."""

    inputs: Tensors
    outputs: Sequence[str]
    deadline: float
    answer: "asyncio.Future[Tensors]"
    forecast: Forecast = NOTHING_KNOWN
    """What was expected when it was let in."""
    expiry: asyncio.TimerHandle | None = None


_Entry = Entry[_Request]


class Dispatcher:
    """Sends the requests of one Triton model.

    Args:
        model: Triton's model name.
        infer: Makes one call.
        limits: See there.
        clock: Monotonic time in seconds; deadlines are by it.
    """

    def __init__(
        self,
        *,
        model: str,
        infer: Infer,
        limits: DispatcherLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.limits = limits
        self._infer = infer
        self._clock = clock
        self._queue: RequestQueue[_Request] = RequestQueue()
        self._admission = Admission(max_rows=limits.max_rows)
        self._calls: dict[asyncio.Task[None], Flight] = {}
        self._wake: asyncio.Handle | None = None
        self._hold: asyncio.TimerHandle | None = None
        self._drained: asyncio.Event | None = None
        self._queue_depth = metrics.DISPATCHER_QUEUE_DEPTH.labels(model)
        self._calls_in_flight = metrics.DISPATCHER_CALLS_IN_FLIGHT.labels(model)
        self._wait_s = metrics.DISPATCHER_WAIT.labels(model)
        self._merged_rows = metrics.DISPATCHER_MERGED_ROWS.labels(model)
        self._call_s = metrics.TRITON_CALL.labels(model)
        self._expired = metrics.DISPATCHER_DROPPED.labels(model, "expired")
        self._cancelled = metrics.DISPATCHER_DROPPED.labels(model, "cancelled")
        self._refused = metrics.DISPATCHER_DROPPED.labels(model, "queue_full")
        self._overloaded = metrics.DISPATCHER_DROPPED.labels(model, "overloaded")

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Calls in flight."""
        return len(self._calls)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is in flight."""
        return not self._queue and not self._calls

    async def submit(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        *,
        lane: Hashable,
        deadline: float,
        priority: int = 3,
        group: Hashable | None = None,
        is_admitted: bool = False,
        further_calls: int = 0,
        further_rows: int = 0,
        on_admitted: Callable[[], None] | None = None,
    ) -> Tensors:
        """Runs a request, alone or in one call with others of its lane.

        Cancelling the caller drops the request, and never touches those that share its call.

        Args:
            inputs: Arrays by Triton tensor name, with a leading batch axis, checked against the model's shapes.
            outputs: Triton names of the wanted outputs.
            lane: Requests with equal lanes may share a call: they agree in outputs and in all but the batch axis.
            deadline: By the clock; the request isn't sent after it, and fails at it.
            priority: 1 (highest) to 5.
            group: At most one request of a group is in a call: the slices of a large one.
            is_admitted: A further part of a request that was let in already: neither the bounds nor `close` refuse it.
            further_calls: Further parts that follow this one, and share its deadline.
            further_rows: The rows of all of them.
            on_admitted: Called once it is let in.

        Returns:
            Read-only views by Triton tensor name, of this request's rows.

        Raises:
            QueueFull: too many wait.
            Overloaded: what waits takes longer than until the deadline.
            DeadlineExceeded: the deadline passed.
            ShuttingDown: `close` was called.
            ServingError: what the call raised.
        """
        now = self._clock()
        self._check_admission(now, deadline, is_admitted=is_admitted)
        rows = len(next(iter(inputs.values())))
        forecast = self._admission.forecast(
            self._queue, self._calls.values(), rows=rows, lane=lane, priority=priority, now=now
        )
        if not is_admitted:
            expected_s = self._admission.finish_s(
                forecast, further_calls=further_calls, further_rows=further_rows
            )
            self._check_finish(expected_s, now, deadline)
        request = _Request(inputs, outputs, deadline, asyncio.get_running_loop().create_future(), forecast)
        entry = Entry(
            payload=request,
            lane=lane,
            rows=rows,
            priority=priority,
            enqueued=now,
            displaceable=not is_admitted,
            group=group,
        )
        self._enqueue(entry, now)
        if on_admitted is not None:
            on_admitted()
        try:
            return await entry.payload.answer
        except asyncio.CancelledError:
            if self._queue.remove(entry):
                self._cancelled.inc()
                self._check_drained()
            raise
        finally:
            if entry.payload.expiry is not None:
                entry.payload.expiry.cancel()

    async def close(self, *, timeout_s: float = 30.0) -> None:
        """Refuses new requests and waits for those that it has; past the timeout these fail with ShuttingDown."""
        self._drained = asyncio.Event()
        self._send()
        try:
            async with asyncio.timeout(timeout_s):
                await self._drained.wait()
        except TimeoutError:
            for entry in list(self._queue):
                self._queue.remove(entry)
                _fail(entry, ShuttingDown("The server stopped before this request was sent."))
            calls = list(self._calls)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    def _check_admission(self, now: float, deadline: float, *, is_admitted: bool) -> None:
        if self._drained is not None and not is_admitted:
            raise ShuttingDown("The server is stopping.", remedy="Try another replica, or again shortly.")
        if deadline <= now:
            self._expired.inc()
            raise _expiry_error()

    def _check_finish(self, expected_s: float, now: float, deadline: float) -> None:
        """Raises Overloaded for what would come too late. Who finds nothing under way is let in whatever is predicted:
        its time is what corrects wrong predictions.
        """
        if now + expected_s <= deadline or self.is_idle:
            return
        self._overloaded.inc()
        raise too_late(self.model, expected_s=expected_s, left_s=deadline - now)

    def _enqueue(self, entry: _Entry, now: float) -> None:
        if len(self._queue) >= self.limits.max_queue_size and entry.displaceable:
            self._make_room(entry)
        loop = asyncio.get_running_loop()
        entry.payload.expiry = loop.call_later(entry.payload.deadline - now, self._expire, entry)
        self._queue.put(entry)
        self._wake_soon(loop)

    def _make_room(self, entry: _Entry) -> None:
        """Refuses whom the full queue has no room for: one that waits with a lower priority, else the new request.

        Raises:
            QueueFull: it is the new one.
        """
        self._refused.inc()
        refusal = QueueFull(
            f"{self.model} has {len(self._queue)} requests waiting.",
            expected=f"at most {self.limits.max_queue_size} waiting",
            got="one more",
            remedy="Try again after Retry-After, or send several rows in one request.",
        )
        displaced = self._queue.displaced_by(entry)
        if displaced is None:
            raise refusal
        self._queue.remove(displaced)
        _fail(displaced, refusal)

    def _wake_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not at once: what else this turn of the event loop brings can share the call.
        if len(self._calls) < self.limits.calls_in_flight and self._wake is None:
            self._wake = loop.call_soon(self._send)
            self._end_hold()

    def _end_hold(self) -> None:
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None

    def _expire(self, entry: _Entry) -> None:
        if self._queue.remove(entry):
            self._expired.inc()
        _fail(entry, _expiry_error())
        self._check_drained()

    def _send(self) -> None:
        """Starts as many calls as are free and have something to carry."""
        self._wake = None
        self._end_hold()
        hold_back_s = self.limits.hold_back_s if self._drained is None else 0.0
        now = self._clock()
        while self._queue and len(self._calls) < self.limits.calls_in_flight:
            budget = self._admission.budget(self._calls.values(), now)
            entries = self._queue.take(
                self.limits.max_rows,
                now=now,
                hold_back_s=hold_back_s,
                rows_until=partial(_rows_until, budget),
            )
            if not entries:
                ready_at = self._queue.ready_at(self.limits.max_rows, hold_back_s=hold_back_s)
                if ready_at is not None:
                    self._hold = asyncio.get_running_loop().call_later(max(0.0, ready_at - now), self._send)
                break
            if not (live := self._drop_dead(entries, budget)):
                continue
            for entry in live:
                self._wait_s.observe(now - entry.enqueued)
            call = asyncio.get_running_loop().create_task(self._call(live, now))
            self._calls[call] = Flight(sum(entry.rows for entry in live), now)
            call.add_done_callback(self._finish)
        self._queue_depth.set(len(self._queue))
        self._calls_in_flight.set(len(self._calls))
        self._check_drained()

    def _drop_dead(self, entries: list[_Entry], budget: CallBudget) -> list[_Entry]:
        """Drops who has gone (its future is done), who expired, and a first that can't be done in time any more."""
        live: list[_Entry] = []
        for entry in entries:
            deadline = entry.payload.deadline
            if entry.payload.answer.done():
                self._cancelled.inc()
            elif deadline <= budget.now:
                self._expired.inc()
                _fail(entry, _expiry_error())
            elif not live and not budget.rows_until(deadline):
                self._overloaded.inc()
                _fail(
                    entry,
                    too_late(
                        self.model, expected_s=budget.finish_s(entry.rows), left_s=deadline - budget.now
                    ),
                )
            else:
                live.append(entry)
        return live

    def _finish(self, call: asyncio.Task[None]) -> None:
        self._calls.pop(call, None)
        self._send()

    async def _call(self, entries: list[_Entry], started: float) -> None:
        """Makes one call and hands out its result. Never raises: what goes wrong is its requests' answer."""
        sent = self._clock()
        try:
            outputs = await self._infer(
                self.model,
                merge_inputs([entry.payload.inputs for entry in entries]),
                entries[0].payload.outputs,
                # Not the deadlines': Triton computes what it was sent, and the call's place isn't free until it did.
                timeout_s=self.limits.call_timeout_s,
            )
            for entry, own in zip(
                entries, split_outputs(outputs, [entry.rows for entry in entries]), strict=True
            ):
                if not entry.payload.answer.done():
                    entry.payload.answer.set_result(own)
            self._admission.learn(
                [(entry.payload.forecast, entry.enqueued) for entry in entries],
                rows=sum(entry.rows for entry in entries),
                sent=sent,
                lag_s=sent - started,
                now=self._clock(),
            )
        except asyncio.CancelledError:
            for entry in entries:
                _fail(entry, ShuttingDown("The server stopped while this request was computed."))
            raise
        except _PASSED_ON as error:
            for entry in entries:
                _fail(entry, error)
        except Exception as error:  # noqa: BLE001  it becomes the answer of those who wait, who handle it
            self._retry_apart(entries, error)
        finally:
            # Before those who wake up now send more.
            self._calls.pop(asyncio.current_task(), None)  # type: ignore[arg-type]  # it runs in a task
            self._call_s.observe(self._clock() - started)
            self._merged_rows.observe(sum(entry.rows for entry in entries))

    def _retry_apart(self, entries: list[_Entry], error: Exception) -> None:
        """Sends the members of a failed call once more, each alone, so that one bad one doesn't spoil the others."""
        if len(entries) == 1:
            _fail(entries[0], error)
            return
        for entry in entries:
            if not entry.payload.answer.done():
                entry.alone, entry.displaceable = True, False
                self._queue.put(entry)

    def _check_drained(self) -> None:
        if self._drained is not None and self.is_idle:
            self._drained.set()


def _rows_until(budget: CallBudget, request: _Request) -> int:
    return budget.rows_until(request.deadline)


def _expiry_error() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The request's deadline passed before its answer was ready.",
        remedy="Raise timeout_ms, or try again when the server is less busy.",
    )


def _fail(entry: _Entry, error: Exception) -> None:
    if not entry.payload.answer.done():
        entry.payload.answer.set_exception(error)
