"""The dispatcher's rules, in virtual time with inference in memory."""

import asyncio
import gc
import weakref

import numpy as np
import pytest

from control_plane.errors import (
    DeadlineExceeded,
    InferenceFailed,
    ModelNotReady,
    QueueFull,
    ShuttingDown,
    TritonUnavailable,
)
from tests.unit.inference.in_memory import BAD, SERVICE_S, Doubler, dispatcher, rows, submit
from tests.unit.inference.virtual_time import now, run


def test_submit_alone_gives_the_result() -> None:
    async def scenario() -> None:
        infer = Doubler()
        assert await submit(dispatcher(infer), 1.0, 2.0) == [2.0, 4.0]
        assert len(infer.calls) == 1

    run(scenario())


def test_requests_of_one_turn_share_a_call_and_get_their_own_rows() -> None:
    async def scenario() -> None:
        infer = Doubler()
        target = dispatcher(infer)
        answers = await asyncio.gather(submit(target, 1.0), submit(target, 2.0, 3.0), submit(target, 4.0))
        assert answers == [[2.0], [4.0, 6.0], [8.0]]
        assert [call.values for call in infer.calls] == [[1.0, 2.0, 3.0, 4.0]]

    run(scenario())


def test_other_lanes_are_never_merged() -> None:
    async def scenario() -> None:
        infer = Doubler()
        target = dispatcher(infer)
        await asyncio.gather(
            submit(target, 1.0, lane="a"), submit(target, 2.0, lane="b"), submit(target, 3.0, lane="a")
        )
        assert [call.values for call in infer.calls] == [[1.0, 3.0], [2.0]]

    run(scenario())


def test_call_takes_what_fits_and_fills_up_from_behind() -> None:
    async def scenario() -> None:
        infer = Doubler()
        target = dispatcher(infer, max_rows=4)
        await asyncio.gather(
            submit(target, 1.0, 1.0, 1.0), submit(target, 2.0, 2.0), submit(target, 3.0), submit(target, 4.0)
        )
        assert [call.values for call in infer.calls] == [[1.0, 1.0, 1.0, 3.0], [2.0, 2.0, 4.0]]

    run(scenario())


def test_request_larger_than_a_call_goes_alone() -> None:
    async def scenario() -> None:
        infer = Doubler()
        target = dispatcher(infer, max_rows=2)
        assert await submit(target, 1.0, 2.0, 3.0) == [2.0, 4.0, 6.0]

    run(scenario())


@pytest.mark.parametrize("calls_in_flight", [1, 2, 5])
def test_calls_in_flight_stay_within_the_bound(calls_in_flight: int) -> None:
    async def scenario() -> None:
        infer = Doubler()
        target = dispatcher(infer, max_rows=1, calls_in_flight=calls_in_flight)
        await asyncio.gather(*(submit(target, float(value)) for value in range(20)))
        assert infer.most_in_flight == calls_in_flight
        assert target.is_idle

    run(scenario())


def test_waiting_high_priority_request_is_in_the_next_call() -> None:
    async def scenario() -> None:
        infer = Doubler()
        target = dispatcher(infer, max_rows=4)
        low = [asyncio.create_task(submit(target, float(value), priority=5)) for value in range(50)]
        await asyncio.sleep(SERVICE_S / 2)
        high = asyncio.create_task(submit(target, 99.0, priority=1))
        await asyncio.gather(high, *low)
        assert infer.sent() == [0.0, 1.0, 2.0, 3.0, 99.0, *(float(value) for value in range(4, 50))]

    run(scenario())


def test_same_priority_is_served_in_order_of_arrival() -> None:
    async def scenario() -> None:
        infer = Doubler()
        target = dispatcher(infer, max_rows=3)
        await asyncio.gather(*(submit(target, float(value)) for value in range(20)))
        assert infer.sent() == [float(value) for value in range(20)]

    run(scenario())


def test_low_priority_request_is_served_under_a_flood_of_high_priority() -> None:
    async def scenario() -> None:
        infer = Doubler()
        target = dispatcher(infer, max_rows=1, max_queue_size=10_000)
        served_at: list[float] = []

        async def low() -> None:
            await submit(target, 7.0, priority=5)
            served_at.append(now())

        async def flood() -> None:
            while not served_at:
                await asyncio.sleep(SERVICE_S)  # as fast as they are served
                tasks.append(asyncio.create_task(submit(target, 1.0, priority=1)))

        tasks = [asyncio.create_task(submit(target, 0.0, priority=1)) for _ in range(3)]
        began = now()
        await asyncio.gather(low(), flood())
        await asyncio.gather(*tasks)
        assert 4.0 < served_at[0] - began < 4.0 + 6 * SERVICE_S

    run(scenario())


def test_full_queue_refuses_and_says_when_to_try_again() -> None:
    async def scenario() -> None:
        target = dispatcher(Doubler(), max_rows=1, max_queue_size=3)
        results = await asyncio.gather(
            *(submit(target, float(value)) for value in range(10)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, QueueFull)]
        assert len(refused) == 7
        assert refused[0].retry_after_s
        assert all(isinstance(result, QueueFull | list) for result in results)

    run(scenario())


def test_full_queue_of_low_priority_gives_way_to_a_high_one() -> None:
    async def scenario() -> None:
        infer = Doubler()
        target = dispatcher(infer, max_rows=1, max_queue_size=3)
        first = asyncio.create_task(submit(target, 0.0))
        await asyncio.sleep(0.01)
        low = [asyncio.create_task(submit(target, float(value), priority=5)) for value in (1, 2, 3)]
        await asyncio.sleep(0.01)
        high = asyncio.create_task(submit(target, 9.0, priority=1))
        results = await asyncio.gather(first, high, *low, return_exceptions=True)
        assert results[:4] == [[0.0], [18.0], [2.0], [4.0]]
        assert isinstance(results[4], QueueFull)
        assert infer.calls[1].values == [9.0]

    run(scenario())


def test_full_queue_keeps_a_low_one_that_waited_longer_than_its_priority_costs() -> None:
    async def scenario() -> None:
        target = dispatcher(Doubler(service_s=lambda _: 10.0), max_rows=1, max_queue_size=1)
        first = asyncio.create_task(submit(target, 0.0))
        await asyncio.sleep(0.01)
        low = asyncio.create_task(submit(target, 1.0, priority=5))
        await asyncio.sleep(4.5)
        with pytest.raises(QueueFull):
            await submit(target, 9.0, priority=1)
        assert await asyncio.gather(first, low) == [[0.0], [2.0]]

    run(scenario())


def test_expired_request_fails_at_its_deadline_and_is_never_sent() -> None:
    async def scenario() -> None:
        infer = Doubler(service_s=lambda _: 5.0)
        target = dispatcher(infer, max_rows=1)
        first = asyncio.create_task(submit(target, 1.0))
        await asyncio.sleep(0.01)
        began = now()
        with pytest.raises(DeadlineExceeded):
            await submit(target, 2.0, deadline=began + 1.0)
        assert now() - began == pytest.approx(1.0)
        await first
        assert infer.sent() == [1.0]
        with pytest.raises(DeadlineExceeded):
            await submit(target, 3.0, deadline=now())
        assert infer.sent() == [1.0]

    run(scenario())


def test_deadline_in_flight_fails_one_member_and_not_the_others() -> None:
    async def scenario() -> None:
        infer = Doubler(service_s=lambda _: 5.0)
        target = dispatcher(infer)
        began = now()
        results = await asyncio.gather(
            submit(target, 1.0, deadline=began + 1.0),
            submit(target, 2.0, deadline=began + 9.0),
            return_exceptions=True,
        )
        assert isinstance(results[0], DeadlineExceeded)
        assert results[1] == [4.0]
        # Triton computes it to the end whoever still waits: until then the call's place is taken.
        assert infer.calls[0].timeout_s == pytest.approx(30.0)

    run(scenario())


@pytest.mark.parametrize("leaves_at", [0.0, 0.005, SERVICE_S / 2], ids=["at once", "queued", "in flight"])
def test_cancelled_caller_leaves_the_others_their_answers(leaves_at: float) -> None:
    async def scenario() -> None:
        infer = Doubler()
        target = dispatcher(infer)
        busy = asyncio.create_task(submit(target, 0.0)) if leaves_at == 0.005 else None
        await asyncio.sleep(0.001)
        callers = [asyncio.create_task(submit(target, value)) for value in (1.0, 2.0, 3.0)]
        await asyncio.sleep(leaves_at)
        callers[1].cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert results[0] == [2.0]
        assert isinstance(results[1], asyncio.CancelledError)
        assert results[2] == [6.0]
        assert (2.0 in infer.sent()) == (leaves_at == SERVICE_S / 2)
        if busy is not None:
            await busy
        assert target.is_idle

    run(scenario())


def test_failing_member_is_retried_apart_and_spoils_nobody() -> None:
    async def scenario() -> None:
        infer = Doubler()
        target = dispatcher(infer)
        results = await asyncio.gather(
            submit(target, 1.0), submit(target, BAD), submit(target, 3.0), return_exceptions=True
        )
        assert results[0] == [2.0]
        assert isinstance(results[1], InferenceFailed)
        assert results[2] == [6.0]
        assert [call.values for call in infer.calls] == [[1.0, BAD, 3.0], [1.0], [BAD], [3.0]]

    run(scenario())


def test_retried_member_goes_before_what_came_later() -> None:
    async def scenario() -> None:
        infer = Doubler()
        target = dispatcher(infer, max_rows=2)
        first = [asyncio.create_task(submit(target, value)) for value in (1.0, BAD)]
        await asyncio.sleep(SERVICE_S / 2)
        later = asyncio.create_task(submit(target, 5.0))
        await asyncio.gather(*first, later, return_exceptions=True)
        assert infer.sent() == [1.0, BAD, 1.0, BAD, 5.0]

    run(scenario())


@pytest.mark.parametrize("error", [ModelNotReady("x"), TritonUnavailable("x"), DeadlineExceeded("x")])
def test_passing_errors_go_to_all_members_without_a_retry(error: Exception) -> None:
    async def scenario() -> None:
        infer = Doubler(error=lambda _: error)
        target = dispatcher(infer)
        results = await asyncio.gather(submit(target, 1.0), submit(target, 2.0), return_exceptions=True)
        assert results == [error, error]
        assert len(infer.calls) == 1

    run(scenario())


def test_output_without_a_row_for_each_fails_instead_of_mixing_rows_up() -> None:
    async def scenario() -> None:
        async def infer(
            model: str, inputs: object, outputs: object, *, timeout_s: float
        ) -> dict[str, object]:
            return {"y": np.zeros((1, 1), dtype=np.float32)}

        results = await asyncio.gather(
            submit(target := dispatcher(infer), 1.0, 2.0), submit(target, 3.0), return_exceptions=True
        )
        assert isinstance(results[0], InferenceFailed)
        assert results[1] == [0.0]  # alone, its one row is its own

    run(scenario())


def test_hold_back_waits_for_company_but_not_longer() -> None:
    async def scenario() -> None:
        infer = Doubler()
        target = dispatcher(infer, hold_back_s=0.05, max_rows=3)
        began = now()
        await asyncio.gather(submit(target, 1.0), _later(0.03, submit(target, 2.0)))
        assert infer.calls[0].values == [1.0, 2.0]
        assert infer.calls[0].began - began == pytest.approx(0.05)
        began = now()
        await asyncio.gather(*(submit(target, value) for value in (1.0, 2.0, 3.0)))
        assert infer.calls[1].began == pytest.approx(began)  # a full call doesn't wait

    run(scenario())


def test_close_refuses_the_new_and_finishes_what_it_has() -> None:
    async def scenario() -> None:
        infer = Doubler()
        target = dispatcher(infer, max_rows=1, hold_back_s=0.5)
        accepted = [asyncio.create_task(submit(target, float(value))) for value in range(5)]
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(target.close())
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await submit(target, 9.0)
        assert await asyncio.gather(*accepted) == [[2.0 * value] for value in range(5)]
        await closing
        assert target.is_idle

    run(scenario())


def test_close_fails_what_outlasts_its_timeout() -> None:
    async def scenario() -> None:
        target = dispatcher(Doubler(service_s=lambda _: 1000.0), max_rows=1)
        accepted = [asyncio.create_task(submit(target, 1.0)) for _ in range(2)]
        await asyncio.sleep(0.01)
        await target.close(timeout_s=3.0)
        results = await asyncio.gather(*accepted, return_exceptions=True)
        assert [type(result) for result in results] == [ShuttingDown, ShuttingDown]

    run(scenario())


def test_dispatcher_keeps_nothing_of_a_request_once_it_is_answered() -> None:
    async def scenario() -> None:
        target = dispatcher(Doubler())
        arrays = [rows(float(value)) for value in range(20)]
        traces = [weakref.ref(array["x"]) for array in arrays]
        tasks = [
            asyncio.create_task(target.submit(array, ("y",), lane="a", deadline=now() + 600))
            for array in arrays
        ]
        await asyncio.sleep(0.01)
        for task in tasks[5:15]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(1)
        del arrays, tasks, task
        gc.collect()
        assert [trace() for trace in traces] == [None] * 20

    run(scenario())


async def _later(pause_s: float, work: object) -> object:
    await asyncio.sleep(pause_s)
    return await work  # type: ignore[misc]
