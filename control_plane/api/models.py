"""Model endpoints: load, unload, aliases, what there is, what is loaded, warm-up.

Decides nothing: `models/operations.py` and the cache do.
"""

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from control_plane.api.problem import PROBLEM_JSON, problem_document
from control_plane.api.resources import Resources, request_id_of, resources_of
from control_plane.api.schemas.models import (
    AliasAnswer,
    AliasBody,
    AliasMoveAnswer,
    CachedModelEntry,
    CacheStatsAnswer,
    JobAnswer,
    LoadAccepted,
    LoadAnswer,
    LoadBody,
    MessageAnswer,
    ModelDetail,
    ModelEntry,
    ModelsAnswer,
    Problem,
    Signature,
    Tensor,
    TuningPoint,
    TuningReport,
    TypeEntry,
    TypesAnswer,
    VersionBody,
    WarmupAnswer,
    WarmupBodyOrList,
    WarmupEntry,
)
from control_plane.api.schemas.serving import TuningAnswer, serving_answer
from control_plane.ensembles.operations import check_policy_at_load
from control_plane.models.aliases import AliasMove
from control_plane.models.cache import ModelState
from control_plane.models.card import CardTensor
from control_plane.models.families import FAMILIES, family_of
from control_plane.models.jobs import JobState, JobStatus
from control_plane.models.publisher import LoadRequest
from control_plane.models.registry import ModelVersion
from control_plane.models.tuning.tuner import TuningOutcome, TuningRequest, described
from control_plane.models.warmup import WarmupResult, WarmupTarget

router = APIRouter(prefix="/models", tags=["models"])

_EVENT_STREAM = "text/event-stream"
_QUIET_BEFORE_COMMENT = 10


def problems(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """The error answers of an endpoint, for the OpenAPI document."""
    return {
        int(status): {
            "description": status.phrase,
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


_MISSING = HTTPStatus.NOT_FOUND
_CONFLICT = HTTPStatus.CONFLICT
_DOWN = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
_INVALID = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)


@router.post(
    "/load",
    response_model=LoadAnswer,
    responses={
        202: {"model": LoadAccepted, "description": "With `wait: false`: GET /models/jobs/{job_id} follows it"},
        **problems(
            *_INVALID, HTTPStatus.FORBIDDEN, _MISSING, _CONFLICT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.INTERNAL_SERVER_ERROR, *_DOWN,
        ),
    },
)  # fmt: skip
async def load_model(request: Request, body: LoadBody) -> Response:
    """Exports a checkpoint, publishes it as a version and loads it; without `file_path`, loads a registered version.

    The same version with the same content again changes nothing; with other content it is a 409 unless `overwrite`.
    """
    operations = resources_of(request).operations
    check_policy_at_load(body.config)
    wanted = LoadRequest(**body.model_dump(exclude={"wait"}))
    if not body.wait:
        job_id = operations.start_load(wanted)
        job = await operations.job(job_id)
        accepted = LoadAccepted(
            message=f"Loading {job.model_type} {job.version}.",
            job_id=job_id,
            model_type=job.model_type,
            version=job.version,
            timestamp=_now(),
        )
        return JSONResponse(
            accepted.model_dump(mode="json"),
            status_code=HTTPStatus.ACCEPTED,
            headers={"Location": f"{request.url.path.removesuffix('/load')}/jobs/{job_id}"},
        )
    outcome = await operations.load(wanted)
    answer = LoadAnswer(
        message=f"{outcome.model_type} {outcome.version} is loaded.", timestamp=_now(), **asdict(outcome)
    )
    return JSONResponse(answer.model_dump(mode="json"))


@router.post(
    "/unload", response_model=MessageAnswer, responses=problems(*_INVALID, _MISSING, _CONFLICT, *_DOWN)
)
async def unload_model(request: Request, body: VersionBody) -> MessageAnswer:
    """Unloads a version once its requests in flight are done. It stays registered: a prediction loads it again."""
    model = await resources_of(request).operations.unload(body.model_type, body.version)
    return _message(model, "is unloaded")


@router.get("", response_model=ModelsAnswer)
async def list_models(request: Request) -> ModelsAnswer:
    """All registered versions, newest first within a type, with state and use."""
    resources = resources_of(request)
    await resources.registry.refresh()
    registry = resources.registry
    models = [model for name in registry.model_types() for model in registry.versions(name)]
    states = await resources.cache.states([model.key for model in models])
    entries = [ModelEntry(**_entry(resources, model, states[model.key])) for model in models]
    return ModelsAnswer(models=entries, total_models=len(entries), timestamp=_now())


@router.get("/types", response_model=TypesAnswer)
async def list_types(request: Request) -> TypesAnswer:
    """The model types, with the configuration that a load of each takes."""
    registry = resources_of(request).registry
    await registry.refresh()
    names = [*FAMILIES, *(name for name in registry.model_types() if name not in FAMILIES)]
    types = {
        name: TypeEntry(
            **asdict(family_of(name)), versions=[model.version for model in registry.versions(name)]
        )
        for name in names
    }
    return TypesAnswer(model_types=types, timestamp=_now())


@router.get(
    "/cache/stats", response_model=CacheStatsAnswer, responses=problems(HTTPStatus.SERVICE_UNAVAILABLE)
)
async def cache_stats(request: Request) -> CacheStatsAnswer:
    """What is loaded, and the cache's counters, over all workers."""
    stats = await resources_of(request).cache.stats()
    return CacheStatsAnswer(
        total_models=len(stats.models),
        max_capacity=stats.max_capacity,
        total_usage=stats.total_usage,
        models=[
            CachedModelEntry(
                **asdict(model) | {"loaded_at": _time(model.loaded_at), "last_used": _time(model.last_used)}
            )
            for model in stats.models
        ],
        hits=stats.hits,
        misses=stats.misses,
        evictions=stats.evictions,
        expirations=stats.expirations,
        hit_rate=stats.hit_rate,
    )


@router.post("/warmup", response_model=WarmupAnswer, responses=problems(*_INVALID))
async def warm_up(request: Request, body: WarmupBodyOrList) -> WarmupAnswer:
    """Loads versions ahead and runs one inference of zeros on each; with `tune`, measures them too."""
    results = await resources_of(request).operations.warmup.warm_up(
        [WarmupTarget(model_type=target.model_type, version=target.version) for target in body.models],
        tuning=TuningRequest(objective_p95_ms=body.p95_ms, seconds=body.seconds) if body.tune else None,
    )
    entries = [_warmup_entry(request, result) for result in results]
    good = sum(entry.status in ("warmed", "already_cached") for entry in entries)
    return WarmupAnswer(message=f"{good} of {len(entries)} are loaded.", results=entries, timestamp=_now())


@router.get(
    "/jobs/{job_id}",
    response_model=JobAnswer,
    responses={
        200: {
            "description": "The job; with `Accept: text/event-stream` its states as events until it ends",
            "content": {_EVENT_STREAM: {"schema": {"type": "string"}}},
        },
        **problems(_MISSING, HTTPStatus.SERVICE_UNAVAILABLE),
    },
)
async def job(request: Request, job_id: str) -> Response:
    """A load job: stage, progress, error, result."""
    operations = resources_of(request).operations
    state = await operations.job(job_id)
    if _EVENT_STREAM in request.headers.get("accept", ""):
        return StreamingResponse(
            _events(request, job_id), media_type=_EVENT_STREAM, headers={"Cache-Control": "no-store"}
        )
    return JSONResponse(_job(state).model_dump(mode="json"))


@router.get("/{model_type}/{version}", response_model=ModelDetail, responses=problems(_MISSING))
async def get_model(request: Request, model_type: str, version: str) -> ModelDetail:
    """One version: model card, signature, state, use. `version` may be `latest` or an alias."""
    resources = resources_of(request)
    model = await resources.registry.resolve_fresh(model_type, version)
    states = await resources.cache.states([model.key])
    card = model.card
    return ModelDetail(
        **_entry(resources, model, states[model.key]),
        signature=Signature(
            inputs=[_tensor(tensor) for tensor in card.inputs],
            outputs=[_tensor(tensor) for tensor in card.outputs],
            max_batch_size=card.max_batch_size,
        ),
        serving=serving_answer(card.serving),
        card=msgspec.to_builtins(card),
        timestamp=_now(),
    )


@router.delete(
    "/{model_type}/{version}", response_model=MessageAnswer, responses=problems(_MISSING, _CONFLICT, *_DOWN)
)
async def delete_model(request: Request, model_type: str, version: str) -> MessageAnswer:
    """Unloads a version and removes its files. 409 while an alias, another version or an active experiment needs it."""
    model = await resources_of(request).operations.delete(model_type, version)
    return _message(model, "is deleted")


@router.put(
    "/{model_type}/aliases/{alias}",
    response_model=AliasAnswer,
    responses=problems(*_INVALID, _MISSING, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def put_alias(request: Request, model_type: str, alias: str, body: AliasBody) -> AliasAnswer:
    """Points an alias to a version, at once and for all workers. Pointing it back is the rollback."""
    operations = resources_of(request).operations
    model, former = await operations.move_alias(model_type, alias, body.version)
    return await _alias(request, model_type, alias, model.version, former)


@router.delete(
    "/{model_type}/aliases/{alias}",
    response_model=AliasAnswer,
    responses=problems(_MISSING, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def delete_alias(request: Request, model_type: str, alias: str) -> AliasAnswer:
    """Removes an alias; its history is kept."""
    former = await resources_of(request).operations.remove_alias(model_type, alias)
    return await _alias(request, model_type, alias, None, former)


async def _alias(
    request: Request, model_type: str, alias: str, version: str | None, former: str | None
) -> AliasAnswer:
    history = await resources_of(request).operations.aliases.history(model_type, alias)
    names = f"now names {version}" if version else "is removed"
    return AliasAnswer(
        message=f"{model_type}/{alias} {names}.",
        model_type=model_type,
        alias=alias,
        version=version,
        previous=former,
        history=[_move(move) for move in history],
        timestamp=_now(),
    )


async def _events(request: Request, job_id: str) -> AsyncIterator[str]:
    quiet = 0
    async for state in resources_of(request).operations.jobs.follow(job_id):
        if state is None:
            quiet += 1
            if quiet >= _QUIET_BEFORE_COMMENT:
                quiet = 0
                yield ": keep-alive\n\n"
            continue
        name = "stage" if state.status is JobStatus.RUNNING else state.status.value
        yield f"event: {name}\ndata: {_job(state).model_dump_json()}\n\n"


def _job(state: JobState) -> JobAnswer:
    error = msgspec.to_builtins(state.error) if state.error is not None else None
    fields = msgspec.structs.asdict(state)
    return JobAnswer(
        **fields
        | {
            "status": state.status.value,
            "error": error,
            "created_at": _time(state.created_at),
            "updated_at": _time(state.updated_at),
        }
    )


def _entry(resources: Resources, model: ModelVersion, state: ModelState) -> dict[str, Any]:
    return {
        "model_type": model.model_type,
        "version": model.version,
        "triton_model": model.key,
        "latest": resources.registry.resolve(model.model_type) is model,
        "aliases": list(resources.operations.aliases.naming(model.model_type, model.version)),
        "format": model.card.format,
        "created_at": _time(model.registered_at),
        "size_bytes": model.card.size_bytes,
        "state": state.state,
        "usage_count": state.usage_count,
        "loaded_at": _time(state.loaded_at) if state.loaded_at is not None else None,
        "last_used": _time(state.last_used) if state.last_used is not None else None,
    }


def _tensor(tensor: CardTensor) -> Tensor:
    return Tensor(
        name=tensor.name, triton_name=tensor.triton_name, datatype=tensor.datatype, shape=list(tensor.shape)
    )


def _move(move: AliasMove) -> AliasMoveAnswer:
    return AliasMoveAnswer(time=_time(move.time), from_version=move.from_version, to_version=move.to_version)


def _warmup_entry(request: Request, result: WarmupResult) -> WarmupEntry:
    error = None
    if result.error is not None:
        document = problem_document(
            result.error, request_id=request_id_of(request), instance=request.url.path
        )
        error = Problem.model_validate(document)
    return WarmupEntry(
        model_type=result.model_type,
        version=result.version,
        status=result.status.value,
        load_time_ms=result.load_time_ms,
        inference_time_ms=result.inference_time_ms,
        error=error,
        tuning=_tuning_report(result.tuning) if result.tuning is not None else None,
    )


def _tuning_report(outcome: TuningOutcome) -> TuningReport:
    return TuningReport(
        chosen=TuningAnswer.model_validate(msgspec.to_builtins(outcome.tuning)) if outcome.tuning else None,
        points=[TuningPoint(**described(point)) for point in outcome.curve.points],
    )


def _message(model: ModelVersion, done: str) -> MessageAnswer:
    return MessageAnswer(
        message=f"{model.model_type} {model.version} {done}.",
        model_type=model.model_type,
        version=model.version,
        timestamp=_now(),
    )


def _time(wall_s: float) -> datetime:
    return datetime.fromtimestamp(wall_s, UTC)


def _now() -> datetime:
    return datetime.now(UTC)
