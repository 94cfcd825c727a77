"""The body of `python -m control_plane tune`.

Works beside a running server as one more member of the deployment: it takes the same locks, says in Redis that it uses
the version, and writes the card as the workers do. It neither reconciles nor evicts: loading is the server's.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from control_plane.background import background_tasks
from control_plane.errors import ServingError
from control_plane.inference.open_inference_names import find_fresh_model
from control_plane.models.aliases import Aliases
from control_plane.models.cache import ModelCache
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.models.tuning.configurations import best_trial
from control_plane.models.tuning.measurement import Progress, ignore_progress
from control_plane.models.tuning.search import ConfigurationSearch
from control_plane.models.tuning.tuner import Infer, Tuner, TuningRequest, tuning_of
from control_plane.settings import Settings
from control_plane.store.lock import Locks
from control_plane.store.redis import open_store
from control_plane.triton.client import TritonClient, connect
from control_plane.triton.http_inference import connect_http
from control_plane.tune.deployment import Deployment, find_deployment, load_by_api, no_server
from control_plane.tune.plot import MISSING, can_plot, write_plot
from control_plane.tune.report import Report, in_words, print_report

EXIT_FAILED = 1
EXIT_OBJECTIVE_NOT_MET = 3
_INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """The command's arguments."""

    model: str
    """`type`, `type-version` or `type-alias`."""
    request: TuningRequest
    plot: Path | None
    """None: under the data directory."""
    wants_plot: bool
    as_json: bool
    search: bool
    apply: bool
    cores: int
    """That Triton may use; for a search."""
    api_url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """What the command has of a deployment."""

    deployment: Deployment
    triton: TritonClient
    registry: ModelRegistry
    cache: ModelCache
    tuner: Tuner
    search: ConfigurationSearch


def run_tune(settings: Settings, options: TuneOptions) -> int:
    """Measures and reports; returns the exit code.

    0: stored. 1: an error, told on standard error. 3: no size meets the objective, and nothing changed.
    """
    console = Console(stderr=True)
    try:
        return asyncio.run(_run(settings, options, console))
    except ServingError as error:
        console.print(
            " ".join(part for part in (error.detail, error.remedy) if part),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return EXIT_FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("Interrupted; nothing was stored.")
        return _INTERRUPTED


async def _run(settings: Settings, options: TuneOptions, console: Console) -> int:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  asyncio.run made it
    # As for Ctrl-C: temporary models are to be removed.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with _joined(find_deployment(settings, api_url=options.api_url)) as member:
        status = console.status("connecting") if console.is_terminal else nullcontext()
        with status as shown:
            report = await _tune(member, options, ignore_progress if shown is None else shown.update)
    if options.as_json:
        sys.stdout.write(json.dumps(report.document(), indent=2) + "\n")
    else:
        print_report(report, Console())
    return 0 if report.curve.chosen is not None else EXIT_OBJECTIVE_NOT_MET


@asynccontextmanager
async def _joined(deployment: Deployment) -> AsyncIterator[_Member]:
    """Joins the deployment for as long as the context lasts.

    Raises:
        TritonUnavailable: Triton doesn't answer.
        RedisUnavailable: Redis doesn't.
    """
    settings = deployment.settings
    async with AsyncExitStack() as stack:
        triton = await stack.enter_async_context(connect(str(settings.triton.grpc_url)))
        if not await triton.is_live():
            raise no_server(settings)
        infer: Infer = triton.infer
        if settings.triton.http_url is not None:
            infer = (await stack.enter_async_context(connect_http(settings.triton.http_url))).infer
        store = await stack.enter_async_context(open_store(settings.redis))
        aliases = Aliases(store)
        registry = ModelRegistry(settings.triton.model_repository, aliases)
        cache = ModelCache(
            settings=settings, store=store, triton=triton, registry=registry, locks=Locks(store)
        )
        await registry.refresh()
        await cache.link.sync()
        await stack.enter_async_context(
            background_tasks({"redis_listener": store.run_listener, "cache_flusher": cache.run_flusher})
        )
        stack.push_async_callback(cache.aclose)
        tuner = Tuner(settings=settings, store=store, infer=infer, registry=registry, cache=cache)
        search = ConfigurationSearch(
            settings=settings, triton=triton, registry=registry, cache=cache, tuner=tuner
        )
        yield _Member(
            deployment=deployment, triton=triton, registry=registry, cache=cache, tuner=tuner, search=search
        )


async def _tune(member: _Member, options: TuneOptions, on_progress: Progress) -> Report:
    model = await find_fresh_model(member.registry, options.model)
    await _ensure_loaded(member, model, on_progress)
    if options.search:
        report = await _searched(member, model, options, on_progress)
    else:
        outcome = await member.tuner.tune(model, options.request, on_progress=on_progress)
        report = Report(model=model.key, curve=outcome.curve, is_stored=outcome.tuning is not None)
    return _plotted(report, options, member.deployment.settings)


async def _searched(
    member: _Member, model: ModelVersion, options: TuneOptions, on_progress: Progress
) -> Report:
    plan = await member.search.plan(model, cores=options.cores)
    async with member.tuner.turn(on_progress):
        trials = await member.search.try_all(model, plan, options.request, on_progress=on_progress)
        present, best = trials[0], best_trial(trials)
        assert present.curve is not None  # noqa: S101  the version itself was measured, or it raised
        applied = best is not None and best is not present and options.apply
        served = best if applied and best is not None else present
        curve = served.curve or present.curve
        tuning = tuning_of(curve.chosen, options.request) if curve.chosen is not None else None
        if tuning is not None and applied:
            on_progress("applying the best configuration")
            await member.search.apply(model, served.configuration, tuning)
        elif tuning is not None:
            await member.tuner.keep(model, tuning)
    remarks = []
    if applied:
        remarks.append(f"Applied: {in_words(served.configuration)}. It served on meanwhile.")
    elif best is not None and best is not present:
        remarks.append(
            f"Better: {in_words(best.configuration)}. To have the version run so, repeat with --apply."
        )
    elif best is not None:
        remarks.append("No other configuration is better by more than 3 %.")
    return Report(
        model=model.key,
        curve=curve,
        is_stored=tuning is not None,
        trials=trials,
        best=best,
        is_applied=applied,
        remarks=remarks,
    )


async def _ensure_loaded(member: _Member, model: ModelVersion, on_progress: Progress) -> None:
    if member.cache.is_loaded(model) and await member.triton.is_model_ready(model.key):
        return
    on_progress(f"having the server load {model.key}")
    await asyncio.to_thread(load_by_api, member.deployment, model)
    await member.cache.link.sync()


def _plotted(report: Report, options: TuneOptions, settings: Settings) -> Report:
    if not options.wants_plot:
        return report
    if not can_plot():
        report.remarks.append(MISSING)
        return report
    path = options.plot or settings.embedded.data_dir / "tuning" / f"{report.model}.svg"
    try:
        write_plot(path, report.model, report.curve)
    except (OSError, ValueError) as error:
        report.remarks.append(f"The plot {path} can't be written: {error}")
        return report
    return replace(report, plot=path)
