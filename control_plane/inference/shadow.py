"""Asks a second version what the first has answered already: after the answer, last in line, and first to be shed.

The caller notices nothing: neither its errors nor, where there is load, its calls.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from control_plane.errors import ServingError
from control_plane.inference.disagreement import disagreement
from control_plane.inference.plans import Interpretation
from control_plane.inference.requests import AnyPredictRequest
from control_plane.inference.routing import Assignment, Router
from control_plane.inference.served import ServedModel, ServedModels
from control_plane.models.registry import ModelRegistry, ModelVersion

LOWEST_PRIORITY = 5
_MOST_AT_ONCE = 16
_TIMEOUT_S = 10.0

Ask = Callable[[ModelVersion, ServedModel, AnyPredictRequest, float, int], Awaitable[Interpretation]]


class Shadows:
    """The shadow calls of one worker.

    Args:
        registry: Which versions exist.
        served: Their dispatchers, which say whether there is load.
        router: Counts what came of it.
        ask: Predicts with a version: model, served, request, deadline, priority.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        *,
        registry: ModelRegistry,
        served: ServedModels,
        router: Router,
        ask: Ask,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._served = served
        self._router = router
        self._ask = ask
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    def after(
        self,
        assignment: Assignment,
        request: AnyPredictRequest,
        answered: ServedModel,
        meaning: Interpretation,
    ) -> None:
        """Asks the shadow of an answered request, unless the request's own version has no time to spare."""
        shadow = self._router.shadow_of(assignment)
        if shadow is None:
            return
        if len(self._tasks) >= _MOST_AT_ONCE or answered.dispatcher.waiting:
            self._router.shed(shadow)
            return
        task = asyncio.get_running_loop().create_task(self._compare(shadow, request, meaning))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Gives up those that are under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _compare(self, shadow: Assignment, request: AnyPredictRequest, meaning: Interpretation) -> None:
        started = self._clock()
        try:
            model = self._registry.resolve(request.model_type, shadow.version)
            served = self._served.of(model)
            if served.dispatcher.waiting:
                self._router.shed(shadow)
                return
            theirs = await self._ask(model, served, request, started + _TIMEOUT_S, LOWEST_PRIORITY)
        except ServingError as error:
            self._router.failed(shadow, error, covariate=request.covariate)
            return
        self._router.compared(
            shadow,
            disagreement(meaning.predictions, theirs.predictions),
            latency_ms=round((self._clock() - started) * 1000, 3),
            covariate=request.covariate,
        )
