"""A prediction from the decoded request to the answer: resolve, check, keep loaded, dispatch, interpret.

Everything but HTTP. Makes no trip to Redis.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

import numpy as np

from control_plane.errors import DeadlineExceeded, ModelNotReady, UnknownExperiment, UnknownVersion
from control_plane.inference.accounts import UNKNOWN, Failures
from control_plane.inference.answers import PredictAnswer, timestamp_now
from control_plane.inference.dispatcher import Infer
from control_plane.inference.identifiers import uuid7
from control_plane.inference.open_inference import InferRequest
from control_plane.inference.open_inference_answers import TensorAnswer
from control_plane.inference.open_inference_names import find_fresh_model, type_of
from control_plane.inference.open_inference_tensors import plan_tensors
from control_plane.inference.plans import Plan
from control_plane.inference.requests import AnyPredictRequest
from control_plane.inference.served import ServedModel, ServedModels
from control_plane.inference.tensors import Array
from control_plane.models.cache import ModelCache
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.settings import Settings

NO_EXPERIMENT = "none"
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0
_SWEEP_S = 30.0


class Predictor:
    """The data plane of one worker.

    Args:
        registry: Which versions exist.
        cache: Which are loaded.
        infer: Makes one call to Triton, e.g. `TritonClient.infer`.
        settings: Limits, timeouts and the dispatchers' bounds.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        *,
        registry: ModelRegistry,
        cache: ModelCache,
        infer: Infer,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._settings = settings
        self._clock = clock
        self._failures = Failures(clock=clock)
        self._served = ServedModels(
            infer=infer,
            settings=settings,
            is_registered=lambda key: registry.get(key) is not None,
            clock=clock,
        )

    async def predict(
        self,
        request: AnyPredictRequest,
        *,
        received: float,
        request_id: str | None = None,
        priority: int | None = None,
    ) -> PredictAnswer:
        """Answers one request.

        Args:
            request: The decoded request.
            received: When it was received, by the clock.
            request_id: Its id where it names none itself; a new UUIDv7 when None.
            priority: Instead of the request's own.

        Raises:
            UnknownModel, UnknownVersion, UnknownExperiment, InvalidInput: it asks for what isn't there, or wrongly.
            QueueFull, CacheFull, ModelNotReady, TritonUnavailable, ShuttingDown: not now.
            DeadlineExceeded: not in time.
            InferenceFailed: Triton failed on it.
        """
        request_id = request.request_id or request_id or uuid7()
        model_type = version = UNKNOWN
        try:
            if request.experiment_id is not None and request.experiment_id != NO_EXPERIMENT:
                raise _unknown_experiment(request.experiment_id)
            try:
                model = await self._registry.resolve_fresh(request.model_type, request.model_version)
            except UnknownVersion:
                model_type = request.model_type
                raise
            model_type, version = model.model_type, model.version
            served = self._served.of(model)
            plan = served.kind.plan(request, max_rows=self._settings.limits.max_rows)
            outputs = await self._run(
                model,
                served,
                plan,
                request.batch_size,
                self._deadline(request, received),
                priority or request.priority,
            )
            meaning = served.kind.interpret(request, outputs)
        except asyncio.CancelledError:
            self._failures.cancelled(model_type=model_type, version=version)
            raise
        except Exception as error:
            self._failures.failed(error, model_type=model_type, version=version, request_id=request_id)
            raise
        latency_s = self._clock() - received
        served.accounts.answered(rows=plan.rows, latency_s=latency_s)
        return PredictAnswer(
            request_id=request_id,
            model_type=model_type,
            model_version=version,
            predictions=meaning.predictions,
            uncertainty=meaning.uncertainty,
            confidence_scores=meaning.confidence_scores,
            processing_time_ms=round(latency_s * 1000, 3),
            timestamp=timestamp_now(),
            ab_test_group=None,
            warnings=plan.warnings + meaning.warnings,
        )

    async def infer(self, request: InferRequest, *, received: float, request_id: str) -> TensorAnswer:
        """Answers one request of raw tensors: like `predict`, with no meaning added.

        Raises:
            As `predict`.
        """
        model_type = version = UNKNOWN
        try:
            if request.experiment_id is not None and request.experiment_id != NO_EXPERIMENT:
                raise _unknown_experiment(request.experiment_id)
            try:
                model = await find_fresh_model(self._registry, request.name, request.version)
            except UnknownVersion:
                model_type = type_of(request.name)
                raise
            model_type, version = model.model_type, model.version
            served = self._served.of(model)
            plan = plan_tensors(request, model.card, max_rows=self._settings.limits.max_rows)
            timeout_s = (
                self._settings.api.request_timeout_s if request.timeout_s is None else request.timeout_s
            )
            outputs = await self._run(model, served, plan, plan.rows, received + timeout_s, request.priority)
        except asyncio.CancelledError:
            self._failures.cancelled(model_type=model_type, version=version)
            raise
        except Exception as error:
            self._failures.failed(error, model_type=model_type, version=version, request_id=request_id)
            raise
        served.accounts.answered(rows=plan.rows, latency_s=self._clock() - received)
        return TensorAnswer(model=model, outputs=outputs)

    def refused(self, error: Exception, *, request_id: str | None) -> None:
        """Counts and logs a request that was refused before its model was known."""
        self._failures.failed(error, model_type=UNKNOWN, version=UNKNOWN, request_id=request_id)

    def queue_figures(self) -> dict[str, dict[str, dict[str, int]]]:
        """What the dispatchers hold, for /health."""
        return {"queues": self._served.figures()}

    def forget_unregistered(self) -> None:
        """Drops idle dispatchers of versions that are no longer registered."""
        self._served.forget_unregistered()

    async def run_sweeper(self) -> None:
        """Forgets versions that are gone, every `_SWEEP_S` seconds, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.forget_unregistered()

    async def close(self, *, timeout_s: float) -> None:
        """Refuses new requests and waits for those in flight."""
        await self._served.close(timeout_s=timeout_s)

    def _deadline(self, request: AnyPredictRequest, received: float) -> float:
        if request.timeout_ms is None:
            return received + self._settings.api.request_timeout_s
        return received + request.timeout_ms / 1000

    async def _run(
        self,
        model: ModelVersion,
        served: ServedModel,
        plan: Plan,
        batch_size: int,
        deadline: float,
        priority: int,
    ) -> Mapping[str, Array]:
        """Runs the plan on a loaded version; loads it where it isn't, again where Triton has lost it."""
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

        async def send_in_turn() -> None:
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
                )

        senders = [
            asyncio.create_task(send_in_turn())
            for _ in range(min(len(starts), served.dispatcher.limits.calls_in_flight))
        ]
        try:
            await asyncio.gather(*senders)
        finally:
            for sender in senders:
                sender.cancel()
            await asyncio.gather(*senders, return_exceptions=True)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _unknown_experiment(experiment_id: str) -> UnknownExperiment:
    return UnknownExperiment(
        f"There is no experiment {experiment_id!r}.",
        remedy='Leave experiment_id out, or send "none" to take part in no experiment.',
    )
