"""Runs a plan on its version: keeps the version loaded while it runs, and sends a large plan in slices."""

import asyncio
import time
from collections.abc import Callable, Mapping

import numpy as np

from control_plane.errors import DeadlineExceeded, ModelNotReady
from control_plane.inference.plans import Plan
from control_plane.inference.served import ServedModel
from control_plane.inference.tensors import Array
from control_plane.models.cache import ModelCache
from control_plane.models.registry import ModelVersion

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0


class PlanRunner:
    """Runs plans.

    Args:
        cache: Which versions are loaded.
        clock: Monotonic time in seconds.
    """

    def __init__(self, cache: ModelCache, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._clock = clock

    async def run(
        self,
        model: ModelVersion,
        served: ServedModel,
        plan: Plan,
        *,
        batch_size: int,
        deadline: float,
        priority: int,
    ) -> Mapping[str, Array]:
        """Runs the plan; loads the version where it isn't loaded, again where Triton has lost it.

        Args:
            model: The version.
            served: Its kind and dispatcher.
            plan: What to send.
            batch_size: Most rows of one call.
            deadline: By the clock.
            priority: 1 (highest) to 5.

        Returns:
            Arrays by Triton tensor name, with the plan's rows.

        Raises:
            As `Dispatcher.submit` and `ModelCache.ensure_loaded`.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            if not self._cache.try_use(model):
                await self._cache.ensure_loaded(model, deadline=deadline)
                if not self._cache.try_use(model):
                    pause_s = await self._pause(pause_s, deadline)
                    continue
            try:
                return await self._dispatch(served, plan, batch_size, deadline, priority)
            except ModelNotReady:
                self._cache.report_lost(model)
                if self._clock() + pause_s >= deadline:
                    raise
            finally:
                self._cache.done(model)
            pause_s = await self._pause(pause_s, deadline)

    async def _pause(self, pause_s: float, deadline: float) -> float:
        """Lets go for a moment, and gives the next pause."""
        if self._clock() + pause_s >= deadline:
            raise DeadlineExceeded(
                "The model could not be kept loaded until the request's deadline.",
                remedy="Raise timeout_ms or model_cache.max_models: other versions displace this one.",
            )
        await asyncio.sleep(pause_s)
        return min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _dispatch(
        self, served: ServedModel, plan: Plan, batch_size: int, deadline: float, priority: int
    ) -> Mapping[str, Array]:
        dispatcher = served.dispatcher
        most = min(batch_size, dispatcher.limits.max_rows)
        if plan.rows <= most:
            return await dispatcher.submit(
                plan.inputs, plan.outputs, lane=plan.lane, deadline=deadline, priority=priority
            )
        return await self._dispatch_slices(served, plan, most, deadline, priority)

    @staticmethod
    async def _dispatch_slices(
        served: ServedModel, plan: Plan, most: int, deadline: float, priority: int
    ) -> Mapping[str, Array]:
        """Sends a large request in slices of `most` rows, only as many at once as there are calls, so that it leaves
        the others their turn. Once its first slice is let in, the queue's bound doesn't hold for the rest.
        """
        starts = range(0, plan.rows, most)
        parts: list[Mapping[str, Array]] = [{}] * len(starts)
        positions = iter(range(len(starts)))
        group = object()
        let_in = asyncio.Event()

        async def send_in_turn(number: int) -> None:
            if number > 0:
                await let_in.wait()
            for position in positions:
                rows = slice(starts[position], starts[position] + most)
                parts[position] = await served.dispatcher.submit(
                    {name: array[rows] for name, array in plan.inputs.items()},
                    plan.outputs,
                    lane=plan.lane,
                    deadline=deadline,
                    priority=priority,
                    group=group,
                    is_admitted=position > 0,
                    further_calls=len(starts) - 1,
                    further_rows=plan.rows - most,
                    on_admitted=let_in.set,
                )

        senders = [
            asyncio.create_task(send_in_turn(number))
            for number in range(min(len(starts), served.dispatcher.limits.calls_in_flight))
        ]
        try:
            await asyncio.gather(*senders)
        finally:
            for sender in senders:
                sender.cancel()
            await asyncio.gather(*senders, return_exceptions=True)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
