"""A prediction from the decoded request to the answer: resolve, check, keep loaded, dispatch, interpret.

Everything but HTTP. Makes no trip to Redis.
"""

import asyncio
import time
from collections.abc import Callable

from control_plane.errors import UnknownVersion
from control_plane.inference.accounts import UNKNOWN, Failures
from control_plane.inference.answers import PredictAnswer, timestamp_now
from control_plane.inference.decisions import DecisionSink, NoDecisions, UniformWeights, WeightsSource
from control_plane.inference.degrade import DEGRADE, OVERLOAD, Ask, Ladder, Outputs
from control_plane.inference.dispatcher import Infer
from control_plane.inference.identifiers import uuid7
from control_plane.inference.open_inference import InferRequest
from control_plane.inference.open_inference_answers import TensorAnswer
from control_plane.inference.open_inference_names import find_fresh_model, type_of
from control_plane.inference.open_inference_tensors import plan_tensors
from control_plane.inference.plans import Interpretation, Plan
from control_plane.inference.requests import AnyPredictRequest
from control_plane.inference.routing import Assignment, NoExperiments, Router
from control_plane.inference.runner import PlanRunner
from control_plane.inference.served import ServedModel, ServedModels
from control_plane.inference.shadow import Shadows
from control_plane.models.cache import ModelCache
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.models.versions import LATEST
from control_plane.settings import Settings

_SWEEP_S = 30.0


class Predictor:
    """The data plane of one worker.

    Args:
        registry: Which versions exist.
        cache: Which are loaded.
        infer: Makes one call to Triton, e.g. `TritonClient.infer`.
        settings: Limits, timeouts and the dispatchers' bounds.
        weights: Which weights of an ensemble are in force.
        decisions: Takes note of an ensemble's decisions.
        router: Says which version answers where experiments run.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        *,
        registry: ModelRegistry,
        cache: ModelCache,
        infer: Infer,
        settings: Settings,
        weights: WeightsSource | None = None,
        decisions: DecisionSink | None = None,
        router: Router | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._weights = weights or UniformWeights()
        self._decisions = decisions or NoDecisions()
        self._router = router or NoExperiments()
        self._registry = registry
        self._runner = PlanRunner(cache, clock=clock)
        self._settings = settings
        self._clock = clock
        self._failures = Failures(clock=clock)
        self._served = ServedModels(
            infer=infer,
            settings=settings,
            registered=registry.get,
            weights=self._weights,
            clock=clock,
        )
        self._shadows = Shadows(
            registry=registry, served=self._served, router=self._router, ask=self._ask, clock=clock
        )
        self._ladder = Ladder(registry=registry, cache=cache, served=self._served)

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
        assignment: Assignment | None = None
        try:
            assignment = self._router.assign(
                model_type=request.model_type,
                version=request.model_version,
                experiment_id=request.experiment_id,
                routing_key=request.routing_key,
                request_id=request_id,
                now_s=time.time(),
            )
            wanted = request.model_version if assignment is None else assignment.version
            try:
                model = await self._registry.resolve_fresh(request.model_type, wanted)
            except UnknownVersion:
                model_type = request.model_type
                raise
            model_type, version = model.model_type, model.version
            outputs = await self._answer(
                model,
                plan_for=lambda _, served: served.kind.plan(request, max_rows=self._settings.limits.max_rows),
                batch_size=request.batch_size,
                deadline=self._deadline(request, received),
                priority=priority or request.priority,
                on_overload=request.on_overload,
            )
            model, served, plan = outputs.ask.model, outputs.ask.served, outputs.ask.plan
            meaning = served.kind.interpret(request, plan, outputs.tensors)
        except asyncio.CancelledError as gone:
            self._failures.cancelled(model_type=model_type, version=version)
            if assignment is not None:
                self._router.failed(assignment, gone, covariate=request.covariate)
            raise
        except Exception as error:
            self._failures.failed(error, model_type=model_type, version=version, request_id=request_id)
            if assignment is not None:
                self._router.failed(assignment, error, covariate=request.covariate)
            raise
        warnings = outputs.warnings + plan.warnings + meaning.warnings
        if meaning.decision is not None:
            warnings += self._decisions.note(request_id, model.card, meaning.decision)
        latency_s = self._clock() - received
        served.accounts.answered(rows=plan.rows, latency_s=latency_s)
        processing_time_ms = round(latency_s * 1000, 3)
        if assignment is not None:
            self._router.answered(
                assignment,
                request_id=request_id,
                latency_ms=processing_time_ms,
                covariate=request.covariate,
            )
            self._shadows.after(assignment, request, served, meaning)
        return PredictAnswer(
            request_id=request_id,
            model_type=model_type,
            model_version=model.version,
            predictions=meaning.predictions,
            uncertainty=meaning.uncertainty,
            confidence_scores=meaning.confidence_scores,
            processing_time_ms=processing_time_ms,
            timestamp=timestamp_now(),
            ab_test_group=None if assignment is None else assignment.group,
            cached=outputs.is_cached,
            degraded=outputs.degraded,
            warnings=warnings,
        )

    async def infer(self, request: InferRequest, *, received: float, request_id: str) -> TensorAnswer:
        """Answers one request of raw tensors: like `predict`, with no meaning added.

        Raises:
            As `predict`.
        """
        model_type = version = UNKNOWN
        assignment: Assignment | None = None
        try:
            is_open = self._registry.get(request.name) is None and "-" not in request.name
            assignment = self._router.assign(
                model_type=type_of(request.name),
                version=(request.version or LATEST) if is_open else request.name,
                experiment_id=request.experiment_id,
                routing_key=request.routing_key,
                request_id=request_id,
                now_s=time.time(),
            )
            name = request.name if assignment is None else type_of(request.name)
            wanted = request.version if assignment is None else assignment.version
            try:
                model = await find_fresh_model(self._registry, name, wanted)
            except UnknownVersion:
                model_type = type_of(request.name)
                raise
            model_type, version = model.model_type, model.version
            timeout_s = (
                self._settings.api.request_timeout_s if request.timeout_s is None else request.timeout_s
            )
            outputs = await self._answer(
                model,
                plan_for=lambda other, _: plan_tensors(
                    request, other.card, weights=self._weights, max_rows=self._settings.limits.max_rows
                ),
                batch_size=self._settings.limits.max_rows,
                deadline=received + timeout_s,
                priority=request.priority,
                on_overload=request.on_overload,
            )
        except asyncio.CancelledError as gone:
            self._failures.cancelled(model_type=model_type, version=version)
            if assignment is not None:
                self._router.failed(assignment, gone, covariate=request.covariate)
            raise
        except Exception as error:
            self._failures.failed(error, model_type=model_type, version=version, request_id=request_id)
            if assignment is not None:
                self._router.failed(assignment, error, covariate=request.covariate)
            raise
        latency_s = self._clock() - received
        outputs.ask.served.accounts.answered(rows=outputs.ask.plan.rows, latency_s=latency_s)
        if assignment is not None:
            self._router.answered(
                assignment,
                request_id=request_id,
                latency_ms=round(latency_s * 1000, 3),
                covariate=request.covariate,
            )
        return TensorAnswer(
            model=outputs.ask.model,
            outputs=outputs.tensors,
            is_cached=outputs.is_cached,
            degraded=outputs.degraded,
            warnings=outputs.warnings + outputs.ask.plan.warnings,
            ab_test_group=None if assignment is None else assignment.group,
        )

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
        await self._shadows.close()
        await self._served.close(timeout_s=timeout_s)

    async def _ask(
        self,
        model: ModelVersion,
        served: ServedModel,
        request: AnyPredictRequest,
        deadline: float,
        priority: int,
    ) -> Interpretation:
        """A version's answer to a request, with nothing standing in for it, and counted nowhere."""
        plan = served.kind.plan(request, max_rows=self._settings.limits.max_rows)
        tensors = await self._runner.run(
            model, served, plan, batch_size=request.batch_size, deadline=deadline, priority=priority
        )
        return served.kind.interpret(request, plan, tensors)

    async def _answer(
        self,
        model: ModelVersion,
        *,
        plan_for: Callable[[ModelVersion, ServedModel], Plan],
        batch_size: int,
        deadline: float,
        priority: int,
        on_overload: str | None,
    ) -> Outputs:
        """The version's outputs, or under overload, where that is wanted, what stands in for them."""

        async def run(ask: Ask) -> Outputs:
            return await self._outputs(ask, batch_size=batch_size, deadline=deadline, priority=priority)

        served = self._served.of(model)
        ask = Ask(model=model, served=served, plan=plan_for(model, served))
        try:
            return await run(ask)
        except OVERLOAD as refusal:
            if (on_overload or model.card.serving.on_overload) != DEGRADE:
                raise
            return await self._ladder.step_down(refusal, ask, plan_for=plan_for, run=run)

    async def _outputs(self, ask: Ask, *, batch_size: int, deadline: float, priority: int) -> Outputs:
        """The plan's outputs; from the version's response cache it need not be loaded."""
        responses = ask.served.responses
        key = None if responses is None else await responses.key_of(ask.plan)
        if responses is not None and key is not None and (kept := responses.get(key)) is not None:
            return Outputs(ask=ask, tensors=kept.arrays, is_cached=True)
        tensors = await self._runner.run(
            ask.model, ask.served, ask.plan, batch_size=batch_size, deadline=deadline, priority=priority
        )
        if responses is not None and key is not None:
            responses.put(key, tensors)
        return Outputs(ask=ask, tensors=tensors)

    def _deadline(self, request: AnyPredictRequest, received: float) -> float:
        if request.timeout_ms is None:
            return received + self._settings.api.request_timeout_s
        return received + request.timeout_ms / 1000
