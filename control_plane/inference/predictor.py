"""A prediction from the decoded request to the answer: resolve, check, keep loaded, dispatch, interpret.

Everything but HTTP. Makes no trip to Redis.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

from control_plane.errors import UnknownExperiment, UnknownVersion
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
from control_plane.inference.runner import PlanRunner
from control_plane.inference.served import ServedModel, ServedModels
from control_plane.inference.tensors import Array
from control_plane.models.cache import ModelCache
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.settings import Settings

NO_EXPERIMENT = "none"
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
        self._runner = PlanRunner(cache, clock=clock)
        self._settings = settings
        self._clock = clock
        self._failures = Failures(clock=clock)
        self._served = ServedModels(
            infer=infer,
            settings=settings,
            registered=registry.get,
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
            outputs, is_cached = await self._outputs(
                model,
                served,
                plan,
                batch_size=request.batch_size,
                deadline=self._deadline(request, received),
                priority=priority or request.priority,
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
            cached=is_cached,
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
            outputs, is_cached = await self._outputs(
                model,
                served,
                plan,
                batch_size=plan.rows,
                deadline=received + timeout_s,
                priority=request.priority,
            )
        except asyncio.CancelledError:
            self._failures.cancelled(model_type=model_type, version=version)
            raise
        except Exception as error:
            self._failures.failed(error, model_type=model_type, version=version, request_id=request_id)
            raise
        served.accounts.answered(rows=plan.rows, latency_s=self._clock() - received)
        return TensorAnswer(model=model, outputs=outputs, is_cached=is_cached)

    def refused(self, error: Exception, *, request_id: str | None) -> None:
        """Counts and logs a request that was refused before its model was known."""
        self._failures.failed(error, model_type=UNKNOWN, version=UNKNOWN, request_id=request_id)

    def queue_figures(self) -> dict[str, dict[str, dict[str, int]]]:
        """What the dispatchers hold, for /health."""
        return {"queues": self._served.figures()}

    def forget_unregistered(self) -> None:
        """Drops idle dispatchers of versions that are no longer registered, and kept outputs that have expired."""
        self._served.forget_unregistered()

    async def run_sweeper(self) -> None:
        """Forgets versions that are gone, every `_SWEEP_S` seconds, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.forget_unregistered()

    async def close(self, *, timeout_s: float) -> None:
        """Refuses new requests and waits for those in flight."""
        await self._served.close(timeout_s=timeout_s)

    async def _outputs(
        self,
        model: ModelVersion,
        served: ServedModel,
        plan: Plan,
        *,
        batch_size: int,
        deadline: float,
        priority: int,
    ) -> tuple[Mapping[str, Array], bool]:
        """The plan's outputs, and whether they come from the version's response cache: it need not be loaded then."""
        if (responses := served.responses) is None:
            run = self._runner.run
            return await run(
                model, served, plan, batch_size=batch_size, deadline=deadline, priority=priority
            ), False
        key = await responses.key_of(plan)
        if (kept := responses.get(key)) is not None:
            return kept.arrays, True
        outputs = await self._runner.run(
            model, served, plan, batch_size=batch_size, deadline=deadline, priority=priority
        )
        responses.put(key, outputs)
        return outputs, False

    def _deadline(self, request: AnyPredictRequest, received: float) -> float:
        if request.timeout_ms is None:
            return received + self._settings.api.request_timeout_s
        return received + request.timeout_ms / 1000


def _unknown_experiment(experiment_id: str) -> UnknownExperiment:
    return UnknownExperiment(
        f"There is no experiment {experiment_id!r}.",
        remedy='Leave experiment_id out, or send "none" to take part in no experiment.',
    )
