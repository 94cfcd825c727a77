"""Builds the application: the resources in its lifespan, the routers on top."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI

from control_plane import __version__
from control_plane.api import (
    docs,
    ensembles,
    experiments,
    feedback,
    health,
    metrics,
    models,
    predict,
    serving,
    v2,
    version,
)
from control_plane.api.body_limit import BodyLimit
from control_plane.api.direct import DirectRoutes, ServingApp
from control_plane.api.draining import Draining
from control_plane.api.intake import Intake
from control_plane.api.middleware import RequestEnvelope
from control_plane.api.problem import install_handlers
from control_plane.api.resources import Resources
from control_plane.background import background_tasks
from control_plane.ensembles.feedback import RewardDesk
from control_plane.ensembles.operations import EnsembleOperations
from control_plane.ensembles.recorder import DecisionRecorder
from control_plane.ensembles.weights import LearnedWeights
from control_plane.errors import RedisUnavailable
from control_plane.experiments.active import ActiveExperiments
from control_plane.experiments.certifying import Certifier
from control_plane.experiments.counters import Counters
from control_plane.experiments.operations import ExperimentOperations
from control_plane.experiments.outcomes import OutcomeDesk
from control_plane.experiments.service import ExperimentService
from control_plane.feedback.desk import FeedbackDesk
from control_plane.inference.dispatcher import Infer
from control_plane.inference.predictor import Predictor
from control_plane.models.aliases import Aliases
from control_plane.models.cache import ModelCache
from control_plane.models.fallbacks import FallbackKeeper
from control_plane.models.operations import ModelOperations
from control_plane.models.reconciler import Reconciler
from control_plane.models.registry import ModelRegistry
from control_plane.settings import Settings
from control_plane.store.ensembles import EnsembleStore
from control_plane.store.experiments import ExperimentStore
from control_plane.store.lock import Locks
from control_plane.store.redis import open_store
from control_plane.triton.client import connect
from control_plane.triton.http_inference import connect_http

API_PREFIX = "/api/v1"
_DESCRIPTION = """\
Forecasts with their uncertainty, and trading actions, from models that NVIDIA Triton runs.

Errors are `application/problem+json` (RFC 9457). Every answer carries `X-Request-ID`.
"""


def create_app(settings: Settings, *, draining: Draining | None = None) -> FastAPI:
    """The application for one worker. Nothing is opened until its lifespan begins."""
    draining = draining or Draining()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with open_resources(settings, draining) as resources:
            yield {"resources": resources}

    app = ServingApp(
        title="Model serving",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    install_handlers(app)
    app.router.routes.extend([*predict.routes(API_PREFIX), *v2.routes()])
    for router in (
        models.router,
        serving.router,
        ensembles.router,
        experiments.router,
        feedback.router,
        health.router,
        metrics.router,
    ):
        app.include_router(router, prefix=API_PREFIX)
    app.include_router(metrics.root_router)
    app.include_router(version.router)
    docs.mount_docs(app)
    _describe(app)
    max_bytes = settings.limits.max_body_bytes
    app.add_middleware(BodyLimit, max_bytes=max_bytes)
    app.add_middleware(RequestEnvelope, draining=draining)
    direct = predict.handlers(API_PREFIX)
    app.add_direct(
        frozenset(direct),
        RequestEnvelope(BodyLimit(DirectRoutes(direct), max_bytes=max_bytes), draining=draining),
    )
    return app


@asynccontextmanager
async def open_resources(settings: Settings, draining: Draining) -> AsyncIterator[Resources]:
    """Opens everything in the order of dependency, and closes it in reverse."""
    async with AsyncExitStack() as stack:
        triton = await stack.enter_async_context(connect(_triton_url(settings)))
        infer: Infer = triton.infer
        if settings.triton.http_url is not None:
            infer = (await stack.enter_async_context(connect_http(settings.triton.http_url))).infer
        redis = await stack.enter_async_context(open_store(settings.redis))
        aliases = Aliases(redis)
        registry = ModelRegistry(settings.triton.model_repository, aliases)
        cache = ModelCache(
            settings=settings, store=redis, triton=triton, registry=registry, locks=Locks(redis)
        )
        operations = ModelOperations(
            settings=settings,
            store=redis,
            triton=triton,
            registry=registry,
            aliases=aliases,
            cache=cache,
            infer=infer,
        )
        store = EnsembleStore(
            redis, retention_s=settings.feedback.retention_s, log_size=settings.ensembles.log_size
        )
        weights = LearnedWeights(store, registry, settings.ensembles)
        recorder = DecisionRecorder(store, settings.feedback)
        experiment_store = ExperimentStore(redis, retention_s=settings.feedback.retention_s)
        active = ActiveExperiments(Counters())
        experiment_service = ExperimentService(
            store=experiment_store,
            active=active,
            cache=cache,
            registry=registry,
            settings=settings.experiments,
        )
        ensemble_operations = EnsembleOperations(store=store, registry=registry)
        certifier = Certifier(
            experiment_store,
            rewards=ensemble_operations.logged_rewards,
            seconds=settings.experiments.certificate_s,
        )
        predictor = Predictor(
            registry=registry,
            cache=cache,
            infer=infer,
            settings=settings,
            weights=weights,
            decisions=recorder,
            router=active,
        )
        reconciler = Reconciler(
            settings=settings, triton=triton, registry=registry, aliases=aliases, cache=cache
        )
        fallbacks = FallbackKeeper(settings=settings, registry=registry, cache=cache)
        await registry.refresh()
        with suppress(RedisUnavailable):
            await weights.refresh()
            await experiment_service.refresh()
        await stack.enter_async_context(
            background_tasks(
                {
                    "redis_listener": redis.run_listener,
                    "cache_flusher": cache.run_flusher,
                    "reconciler": reconciler.run,
                    "model_operations": operations.run,
                    "fallbacks": fallbacks.run,
                    "dispatcher_sweeper": predictor.run_sweeper,
                    "ensemble_weights": weights.run,
                    "decision_recorder": recorder.run,
                    "experiments": experiment_service.run_refresh,
                    "experiment_counts": experiment_service.run_flush,
                    "experiment_lifecycle": experiment_service.run_lifecycle,
                }
            )
        )
        # In reverse: predictions end first, then loads, and the flusher writes what they counted.
        stack.push_async_callback(cache.aclose)
        stack.push_async_callback(recorder.aclose)
        stack.push_async_callback(experiment_service.aclose)
        stack.push_async_callback(certifier.aclose)
        stack.push_async_callback(operations.aclose)
        stack.push_async_callback(predictor.close, timeout_s=settings.api.shutdown_timeout_s)
        yield Resources(
            settings=settings,
            triton=triton,
            redis=redis,
            registry=registry,
            cache=cache,
            operations=operations,
            predictor=predictor,
            feedback=FeedbackDesk(
                store=store,
                recorder=recorder,
                rewards=RewardDesk(store=store, registry=registry, weights=weights),
                outcomes=OutcomeDesk(experiment_store, active, experiment_service),
                settings=settings.feedback,
            ),
            ensembles=ensemble_operations,
            experiments=ExperimentOperations(
                store=experiment_store,
                service=experiment_service,
                registry=registry,
                certifier=certifier,
            ),
            draining=draining,
            intake=Intake(max_waiting=settings.batch_processing.max_queue_size),
        )


def _triton_url(settings: Settings) -> str:
    return settings.triton.grpc_url or f"127.0.0.1:{settings.triton.grpc_port}"


def _describe(app: FastAPI) -> None:
    """Adds the routes of the hot path, which FastAPI doesn't know, to the OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            predict.describe(document, API_PREFIX)
            v2.describe(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
