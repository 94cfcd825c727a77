"""Asks a second version what the first has answered already: after the answer, last in line, and first to be shed.

The caller is to notice nothing: neither its errors nor its calls. So a worker has one shadow call at a time, rests
after each for several times as long as it took, and asks none while the version that answers is busy; the others are
shed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from control_plane.errors import ServingError
from control_plane.inference.disagreement import disagreement
from control_plane.inference.plans import Interpretation
from control_plane.inference.requests import AnyPredictRequest
from control_plane.inference.routing import Assignment, Router
from control_plane.inference.served import ServedModel, ServedModels
from control_plane.models.registry import ModelRegistry, ModelVersion

log = structlog.get_logger()

LOWEST_PRIORITY = 5
_TIMEOUT_S = 10.0
_REST = 4.0
"""Times as long as a call took: so that shadows run for a fifth of the time at most."""
_BUSY = 0.6
"""Share of answers that found further calls of their version in flight, from which on it is taken for busy."""
_SMOOTHING = 0.02

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
        self._task: asyncio.Task[None] | None = None
        self._rests_until = 0.0
        self._busy: dict[str, float] = {}

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
        if self._is_busy(answered) or self._task is not None or self._clock() < self._rests_until:
            self._router.shed(shadow)
            return
        self._task = asyncio.get_running_loop().create_task(self._compare(shadow, request, meaning))
        self._task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Gives up the one that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _is_busy(self, answered: ServedModel) -> bool:
        """Whether the version that answers has hardly a moment without calls; each answer is a sample of that."""
        dispatcher = answered.dispatcher
        has_more = bool(dispatcher.in_flight or dispatcher.waiting)
        model = answered.card.triton_model
        busy = self._busy.get(model, 0.0)
        busy += _SMOOTHING * (has_more - busy)
        self._busy[model] = busy
        return has_more or busy > _BUSY

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("shadow_failed", exc_info=error)

    async def _compare(self, shadow: Assignment, request: AnyPredictRequest, meaning: Interpretation) -> None:
        started = self._clock()
        try:
            model = self._registry.resolve(request.model_type, shadow.version)
            served = self._served.of(model)
            theirs = await self._ask(model, served, request, started + _TIMEOUT_S, LOWEST_PRIORITY)
        except ServingError as error:
            self._router.failed(shadow, error, covariate=request.covariate)
            return
        finally:
            self._rests_until = self._clock() + _REST * (self._clock() - started)
        self._router.compared(
            shadow,
            disagreement(meaning.predictions, theirs.predictions),
            latency_ms=round((self._clock() - started) * 1000, 3),
            covariate=request.covariate,
        )
