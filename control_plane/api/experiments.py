"""Experiments: create, list, results, report, stop, promote. Decides nothing: `experiments/operations.py` does."""

import asyncio
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse

from control_plane.api.models import problems
from control_plane.api.resources import resources_of
from control_plane.api.schemas.experiments import (
    ExperimentAnswer,
    ExperimentBody,
    ExperimentEntry,
    ExperimentsAnswer,
    ModelConfig,
    ResultsAnswer,
    TimelineAnswer,
    TimelineEntry,
    VariantAnswer,
)
from control_plane.experiments.counters import SHED
from control_plane.experiments.operations import Looked
from control_plane.experiments.report.page import render
from control_plane.experiments.state import Experiment, counted

router = APIRouter(prefix="/experiments", tags=["experiments"])

_MISSING = HTTPStatus.NOT_FOUND
_CONFLICT = HTTPStatus.CONFLICT
_INVALID = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
_DOWN = HTTPStatus.SERVICE_UNAVAILABLE
_REPORT_HEADERS = {
    # The page needs no script and no other file: then nothing that slipped into it could do harm.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


@router.post(
    "/create",
    status_code=HTTPStatus.CREATED,
    response_model=ExperimentAnswer,
    responses=problems(*_INVALID, _CONFLICT, _DOWN),
)
async def create(request: Request, body: ExperimentBody) -> ExperimentAnswer:
    """Begins an experiment: from now on requests for `latest` of its model type take part."""
    experiment = await resources_of(request).experiments.create(body.proposal())
    return _answer(experiment, "is running")


@router.get("", response_model=ExperimentsAnswer, responses=problems(_DOWN))
async def list_experiments(request: Request) -> ExperimentsAnswer:
    """All experiments, oldest first."""
    found = await resources_of(request).experiments.overview()
    entries = {
        experiment.definition.experiment_id: ExperimentEntry(
            experiment_id=experiment.definition.experiment_id,
            status=experiment.status.value,
            mode=experiment.definition.mode.value,
            model_type=experiment.definition.model_type,
            start_time=_time(experiment.definition.created_at),
            end_time=_end(experiment),
            variants=[variant.name for variant in experiment.definition.variants],
            shares=_shares(experiment),
            total_requests=requests,
        )
        for experiment, requests in found
    }
    return ExperimentsAnswer(experiments=entries, total_experiments=len(entries), timestamp=_now())


@router.get("/{experiment_id}/results", response_model=ResultsAnswer, responses=problems(_MISSING, _DOWN))
async def results(request: Request, experiment_id: str) -> ResultsAnswer:
    """Figures of each variant, and what they say of the differences; valid however often one looks."""
    return _results(await resources_of(request).experiments.look(experiment_id))


@router.get("/{experiment_id}/timeline", response_model=TimelineAnswer, responses=problems(_MISSING, _DOWN))
async def timeline(request: Request, experiment_id: str) -> TimelineAnswer:
    """The always-valid intervals over time, for plots."""
    points = await resources_of(request).experiments.timeline(experiment_id)
    return TimelineAnswer(
        experiment_id=experiment_id,
        points=[
            TimelineEntry(
                time=_time(point.time_s),
                requests=point.requests,
                comparisons=[dict(one) for one in point.comparisons],
            )
            for point in points
        ],
    )


@router.get("/{experiment_id}/report", response_class=HTMLResponse, responses=problems(_MISSING, _DOWN))
async def report(request: Request, experiment_id: str) -> HTMLResponse:
    """The results as one HTML page: verdict, figures, plots. Needs no script and no other host, so it can be kept."""
    experiments = resources_of(request).experiments
    looked = await experiments.look(experiment_id)
    points = await experiments.timeline(experiment_id)
    page = await asyncio.to_thread(render, looked, points, now_s=time.time())
    return HTMLResponse(page, headers=_REPORT_HEADERS)


@router.post(
    "/{experiment_id}/promote",
    response_model=ExperimentAnswer,
    responses=problems(_MISSING, _CONFLICT, _DOWN),
)
async def promote(request: Request, experiment_id: str) -> ExperimentAnswer:
    """Gives a canary's treatment all requests, until the experiment is stopped."""
    return _answer(await resources_of(request).experiments.promote(experiment_id), "is promoted")


@router.delete(
    "/{experiment_id}", response_model=ExperimentAnswer, responses=problems(_MISSING, _CONFLICT, _DOWN)
)
async def stop(request: Request, experiment_id: str) -> ExperimentAnswer:
    """Stops an experiment; its results stay readable. One that has ended stays as it is."""
    experiment = await resources_of(request).experiments.stop(experiment_id)
    return _answer(experiment, f"is {experiment.status.value}")


def _answer(experiment: Experiment, done: str) -> ExperimentAnswer:
    definition = experiment.definition
    return ExperimentAnswer(
        message=f"Experiment {definition.experiment_id} {done}.",
        experiment_id=definition.experiment_id,
        status=experiment.status.value,
        mode=definition.mode.value,
        variants=[variant.name for variant in definition.variants],
        shares=_shares(experiment),
        duration_hours=definition.duration_hours,
        start_time=_time(definition.created_at),
        end_time=_end(experiment),
        reason=experiment.reason,
        timestamp=_now(),
    )


def _results(looked: Looked) -> ResultsAnswer:
    experiment, found = looked.experiment, looked.results
    definition = experiment.definition
    shares = _shares(experiment)
    shed = counted(looked.counts, SHED, epochs=experiment.epoch + 1, variants=len(definition.variants)).sum(
        axis=0
    )
    significance: dict[str, Any] = msgspec.to_builtins(
        {
            "control": definition.variants[definition.control].name,
            "alpha": definition.alpha,
            "metrics": definition.metrics,
            "verdict": found.verdict,
            "verdicts": dict(found.verdicts),
            "sentences": found.sentences,
            "comparisons": found.comparisons,
            "corrected_for": found.corrected_for,
            "ratio_checks": found.ratio_checks,
            "mismatched": found.mismatched,
            "guardrails": found.guardrails,
        }
    )
    return ResultsAnswer(
        experiment_id=definition.experiment_id,
        status=experiment.status.value,
        mode=definition.mode.value,
        start_time=_time(definition.created_at),
        end_time=_end(experiment),
        total_requests=sum(one.requests for one in found.variants),
        reason=experiment.reason,
        variants={
            one.name: VariantAnswer(
                requests=one.requests,
                units=one.units,
                errors=one.errors,
                shed=int(shed[place]),
                error_rate=one.error_rate,
                avg_latency_ms=one.avg_latency_ms,
                p50_latency_ms=one.p50_latency_ms,
                p95_latency_ms=one.p95_latency_ms,
                p99_latency_ms=one.p99_latency_ms,
                share=shares[one.name],
                metrics={metric.metric: msgspec.to_builtins(metric) for metric in one.metrics},
                configuration=ModelConfig(model_type=definition.model_type, version=variant.version),
            )
            for place, (one, variant) in enumerate(zip(found.variants, definition.variants, strict=True))
        },
        significance=significance,
        certificate=None if experiment.certificate is None else dict(experiment.certificate),
        timestamp=_now(),
    )


def _shares(experiment: Experiment) -> dict[str, float]:
    names = [variant.name for variant in experiment.definition.variants]
    return dict(zip(names, experiment.shares[experiment.epoch], strict=True))


def _end(experiment: Experiment) -> datetime | None:
    ends_at = experiment.ended_at if experiment.ended_at is not None else experiment.ends_at
    return None if ends_at is None else _time(ends_at)


def _time(wall_s: float) -> datetime:
    return datetime.fromtimestamp(wall_s, UTC)


def _now() -> datetime:
    return datetime.now(UTC)
