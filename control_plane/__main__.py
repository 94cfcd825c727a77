"""The command line: `python -m control_plane`, also installed as `control_plane`."""

import asyncio
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import structlog
import typer

from control_plane import __version__
from control_plane.embedded.errors import EmbeddedError
from control_plane.embedded.redis import RedisOptions
from control_plane.embedded.supervisor import (
    EXIT_CONFIG,
    FD_PLACEHOLDER,
    EmbeddedOptions,
    Endpoints,
    WorkerOptions,
    supervise,
)
from control_plane.embedded.triton import TritonOptions
from control_plane.experiments_cli.command import app as experiments
from control_plane.settings import Settings, SettingsError, load_settings
from control_plane.telemetry.logs import configure_logs

log = structlog.get_logger()
app = typer.Typer(
    help="Serves trading models: NVIDIA Triton computes, this control plane makes it a product.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(experiments, name="experiments")

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file; default config/model_serving.yaml where it exists."),
]


@app.command()
def serve(
    config: ConfigFile = None,
    *,
    embedded: Annotated[
        bool | None,
        typer.Option(
            "--embedded/--no-embedded",
            help="Start a Triton and a Redis here. Default: whichever of the two has no address in the settings.",
        ),
    ] = None,
) -> None:
    """Serve the REST API, with an embedded Triton and Redis unless their addresses are set.

    API_PORT, REDIS_HOST, TRITON_GRPC_URL, … and every key of the file as MODEL_SERVING__<SECTION>__<KEY>;
    docs/configuration.md lists them.
    """
    settings = _settings(config)
    configure_logs(
        debug=settings.api.debug, log_format="console" if sys.stderr.isatty() else settings.log_format
    )
    options = _embedded_options(settings, config, embedded=embedded)
    if options.redis is None and options.triton is None and settings.api.workers == 1:
        from control_plane.worker import run_worker  # noqa: PLC0415  brings the whole application: only when needed

        run_worker(settings, socket_fd=None)
        return
    try:
        code = asyncio.run(supervise(options))
    except EmbeddedError as error:
        typer.echo(f"The start failed: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    raise typer.Exit(code)


@app.command(hidden=True)
def worker(*, fd: Annotated[int, typer.Option()], config: ConfigFile = None) -> None:
    """Serve on an inherited socket; `serve` starts this."""
    settings = _settings(config)
    configure_logs(debug=settings.api.debug, log_format=settings.log_format)
    from control_plane.worker import run_worker  # noqa: PLC0415  the supervisor itself needs none of it

    run_worker(settings, socket_fd=fd)


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help="A type (its newest version), type-version, or type-alias.")],
    config: ConfigFile = None,
    *,
    p95_ms: Annotated[
        float, typer.Option(min=0.001, help="Longest P95 of a request, in milliseconds.")
    ] = 50.0,
    seconds: Annotated[
        float, typer.Option(min=1, max=3600, help="Time to measure, for each configuration.")
    ] = 20.0,
    plot: Annotated[
        Path | None, typer.Option(help="Where to write the curve; default <data_dir>/tuning/<model>.svg.")
    ] = None,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Write no picture.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    search: Annotated[
        bool, typer.Option("--search", help="Try other instance counts and threads, too.")
    ] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="With --search: give the version the best configuration.")
    ] = False,
    cores: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Cores that Triton may use; default those here.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="The REST API, where it isn't found by itself.")] = None,
) -> None:
    """Measure a model's calls on the running server, and keep the best size for the dispatcher (docs/tuning.md).

    Exit codes: 0 stored, 1 failed, 3 no size meets the objective and nothing changed.
    """
    if apply and not search:
        raise typer.BadParameter("--apply needs --search.")
    from control_plane.tune.plot import ending_fault  # noqa: PLC0415  `serve` needs none of it

    if plot is not None and not no_plot and (fault := ending_fault(plot)) is not None:
        raise typer.BadParameter(fault, param_hint="--plot")
    settings = _settings(config)
    configure_logs(debug=settings.api.debug, log_format="console", is_quiet=True)
    from control_plane.models.tuning.configurations import available_cores  # noqa: PLC0415
    from control_plane.models.tuning.tuner import TuningRequest  # noqa: PLC0415
    from control_plane.tune.command import TuneOptions, run_tune  # noqa: PLC0415

    options = TuneOptions(
        model=model,
        request=TuningRequest(objective_p95_ms=p95_ms, seconds=seconds),
        plot=plot,
        wants_plot=not no_plot,
        as_json=as_json,
        search=search,
        apply=apply,
        cores=cores or available_cores(),
        api_url=url,
    )
    raise typer.Exit(run_tune(settings, options))


@app.command()
def version() -> None:
    """Print the release."""
    typer.echo(__version__)


def _settings(config: Path | None) -> Settings:
    try:
        return load_settings(config_file=config)
    except SettingsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_CONFIG) from None


def _embedded_options(settings: Settings, config: Path | None, *, embedded: bool | None) -> EmbeddedOptions:
    has_redis = settings.redis.url is not None or settings.redis.host is not None
    embed_redis = not has_redis if embedded is None else embedded
    embed_triton = settings.triton.grpc_url is None if embedded is None else embedded
    metrics_dir = settings.embedded.data_dir.absolute() / "metrics"

    def environment(endpoints: Endpoints) -> Mapping[str, str]:
        # Counts of an earlier start would be added to this one's.
        shutil.rmtree(metrics_dir, ignore_errors=True)
        metrics_dir.mkdir(parents=True)
        found = {"PROMETHEUS_MULTIPROC_DIR": str(metrics_dir)}
        if endpoints.redis_url is not None:
            found |= {"REDIS_URL": endpoints.redis_url, "REDIS_HOST": "", "MODEL_SERVING__REDIS__HOST": ""}
        if endpoints.triton_grpc_url is not None:
            found["TRITON_GRPC_URL"] = endpoints.triton_grpc_url
        if endpoints.triton_http_url is not None:
            found["TRITON_HTTP_URL"] = endpoints.triton_http_url
        return found

    triton = TritonOptions(
        model_repository=settings.triton.model_repository,
        http_port=settings.triton.http_port,
        grpc_port=settings.triton.grpc_port,
        metrics_port=settings.triton.metrics_port,
    )
    command = [sys.executable, "-m", "control_plane", "worker", "--fd", FD_PLACEHOLDER]
    return EmbeddedOptions(
        data_dir=settings.embedded.data_dir,
        redis=RedisOptions() if embed_redis else None,
        triton=triton if embed_triton else None,
        workers=WorkerOptions(
            command=tuple(command + (["--config", str(config)] if config is not None else [])),
            count=settings.api.workers,
            host=settings.api.host,
            port=settings.api.port,
            environment=environment,
            ready_path="/api/v1/health/live",
            drain_timeout_s=settings.api.shutdown_timeout_s + 5,
        ),
        on_ready=_announce,
    )


async def _announce(endpoints: Endpoints) -> None:
    host = (
        f"[{endpoints.api_host}]" if endpoints.api_host and ":" in endpoints.api_host else endpoints.api_host
    )
    url = f"http://{host}:{endpoints.api_port}"
    lines = [f"Serving at {url} — API documentation at {url}/docs"]
    if endpoints.triton_grpc_url is not None:
        lines.append(
            f"Triton: gRPC {endpoints.triton_grpc_url}, HTTP {endpoints.triton_http_url}, "
            f"metrics {endpoints.triton_metrics_url}"
        )
    if endpoints.redis_url is not None:
        lines.append(f"Redis: {endpoints.redis_url}")
    typer.echo("\n".join(lines))


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
