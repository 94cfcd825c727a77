"""The commands themselves. Imports the rest where a command needs it: `serve` needs none of it."""

import json
from collections.abc import Callable
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from control_plane.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from control_plane.experiments_cli.server import ExperimentsServer

EXIT_FAILED = 1
_EXIT_CONFIG = 78
app = typer.Typer(
    help="Compare versions on real requests (docs/experiments.md).",
    no_args_is_help=True,
    add_completion=False,
)

Api = Annotated[
    str | None,
    typer.Option(
        "--api", "--url", help="The REST API; default the server that runs here, else what the settings say."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file; default config/model_serving.yaml where it exists."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Id = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Its id.")]


class Kind(StrEnum):
    """Kinds of metrics."""

    LATENCY = "latency"
    ERROR = "error"
    RATE = "rate"
    MEAN = "mean"


@app.command("list")
def list_experiments(api: Api = None, config: Config = None, *, as_json: Json = False) -> None:
    """All experiments, oldest first."""

    def act(server: "ExperimentsServer") -> None:
        document = server.list()
        if as_json:
            _print_json(document)
            return
        from rich.console import Console  # noqa: PLC0415

        from control_plane.experiments_cli.show import print_list  # noqa: PLC0415

        print_list(document, Console())

    _ask(api, config, act)


@app.command()
def show(experiment: Id, api: Api = None, config: Config = None, *, as_json: Json = False) -> None:
    """What an experiment shows: verdict, figures, and how its intervals narrowed. Look as often as you like."""

    def act(server: "ExperimentsServer") -> None:
        results, timeline = server.results(experiment), server.timeline(experiment)
        if as_json:
            _print_json({**results, "timeline": timeline["points"]})
            return
        from rich.console import Console  # noqa: PLC0415

        from control_plane.experiments_cli.show import print_results  # noqa: PLC0415

        print_results(results, timeline, Console())

    _ask(api, config, act)


@app.command()
def create(
    file: Annotated[
        Path | None,
        typer.Argument(help="JSON as POST /api/v1/experiments/create takes it; `-`: standard input."),
    ] = None,
    api: Api = None,
    config: Config = None,
    *,
    experiment_id: Annotated[str | None, typer.Option("--id", help="Its id, never used before.")] = None,
    model_type: Annotated[str | None, typer.Option("--type", help="Model type of all variants.")] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="name=version, once for each; `control` is the control.")
    ] = None,
    share: Annotated[list[str] | None, typer.Option(help="name=share, once for each; default equal.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="name:mean|rate:up|down, from feedback.")] = None,
    guardrail: Annotated[
        list[str] | None, typer.Option(help="metric:max_ratio:1.2 or metric:max_difference:0.01.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="ab, shadow, canary or bandit.")] = None,
    hours: Annotated[float | None, typer.Option(help="How long it lasts; default 24.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Chance of a wrong verdict; default 0.05.")] = None,
    planned_requests: Annotated[
        int | None, typer.Option(help="When intervals are narrowest; see `plan`; default 10,000.")
    ] = None,
    auto_promote: Annotated[
        bool | None,
        typer.Option("--auto-promote/--no-auto-promote", help="Of a canary, after its last step."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Begin an experiment, from a JSON file, from options, or from both: options go before the file."""
    from control_plane.experiments_cli import proposal  # noqa: PLC0415

    options = proposal.ProposalOptions(
        experiment_id=experiment_id,
        model_type=model_type,
        variants=variant or (),
        shares=share or (),
        metrics=metric or (),
        guardrails=guardrail or (),
        fields=(
            ("mode", mode),
            ("duration_hours", hours),
            ("alpha", alpha),
            ("planned_requests", planned_requests),
            ("auto_promote", auto_promote),
        ),
    )
    try:
        body = proposal.body_of({} if file is None else proposal.read_document(file), options)
    except proposal.ProposalError as error:
        raise typer.BadParameter(str(error)) from None
    _ask(api, config, lambda server: _tell(server.create(body), as_json=as_json))


@app.command()
def stop(experiment: Id, api: Api = None, config: Config = None, *, as_json: Json = False) -> None:
    """Stop an experiment; its results stay readable."""
    _ask(api, config, lambda server: _tell(server.stop(experiment), as_json=as_json))


@app.command()
def report(
    experiment: Id,
    api: Api = None,
    config: Config = None,
    *,
    out: Annotated[Path | None, typer.Option(help="Where to write it; default <experiment>.html.")] = None,
    as_json: Json = False,
) -> None:
    """Write an experiment's report: one HTML file with plots that needs nothing else."""

    def act(server: "ExperimentsServer") -> None:
        page = server.report(experiment)
        path = out or Path(f"{experiment}.html")
        try:
            path.write_bytes(page)
        except OSError as error:
            _fail(f"{path} can't be written: {error}")
        if as_json:
            _print_json({"experiment_id": experiment, "file": str(path), "size_bytes": len(page)})
        else:
            typer.echo(f"Report: {path}")

    _ask(api, config, act)


@app.command()
def plan(
    kind: Annotated[Kind, typer.Option(help="What is compared.")],
    effect: Annotated[
        float,
        typer.Option(help="To be found: of a latency relative (0.1: 10 % longer), else the difference."),
    ],
    *,
    base: Annotated[float | None, typer.Option(help="The control's rate, for rate and error.")] = None,
    sd: Annotated[
        float | None,
        typer.Option(help="Standard deviation of a request; of a latency that of its logarithm."),
    ] = None,
    per_hour: Annotated[float | None, typer.Option(help="Requests an hour, of all variants.")] = None,
    share: Annotated[
        list[float] | None, typer.Option(help="Once for each variant, the control first; default 0.5 0.5.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Chance of a wrong verdict.")] = 0.05,
    power: Annotated[float, typer.Option(help="Chance to find the effect.")] = 0.8,
    per_unit: Annotated[float, typer.Option(help="Requests of a unit (a routing key), on average.")] = 1.0,
    correlation: Annotated[float, typer.Option(help="Between requests of a unit, 0 to 1.")] = 0.0,
    certify: Annotated[
        float, typer.Option(help="Simulate the planned experiment, too, for so many seconds.", min=0, max=600)
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Compute how many requests it takes, and how long, to find an effect. Needs no server."""
    from rich.console import Console  # noqa: PLC0415

    from control_plane.experiments_cli import plan as planning  # noqa: PLC0415

    options = planning.PlanOptions(
        kind=kind.value,
        effect=effect,
        base=base,
        sd=sd,
        shares=tuple(share or (0.5, 0.5)),
        alpha=alpha,
        power=power,
        requests_per_hour=per_hour,
        requests_per_unit=per_unit,
        correlation=correlation,
    )
    try:
        found = planning.computed(options)
        certificate = planning.certified(options, found, seconds=certify) if certify else None
    except ValueError as error:
        raise typer.BadParameter(f"{error}.") from None
    if as_json:
        _print_json(planning.document_of(options, found, certificate))
    else:
        planning.print_plan(options, found, Console())
        if certificate is not None:
            planning.print_certificate(certificate, Console())


def _ask(api: str | None, config: Path | None, act: Callable[["ExperimentsServer"], None]) -> None:
    """Finds the server and asks it; what goes wrong is told on standard error, with exit code 1."""
    if find_spec("httpx") is None:
        _fail("This needs httpx: pip install 'model-serving[client]'")
    from control_plane.client.errors import ClientError  # noqa: PLC0415
    from control_plane.experiments_cli.server import ExperimentsServer, in_words  # noqa: PLC0415

    url = api or _found(config)
    try:
        with ExperimentsServer(url) as server:
            act(server)
    except ClientError as error:
        _fail(in_words(error, url))


def _found(config: Path | None) -> str:
    from control_plane.tune.deployment import find_api  # noqa: PLC0415

    try:
        return find_api(load_settings(config_file=config))
    except SettingsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(_EXIT_CONFIG) from None


def _tell(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        _print_json(document)
    else:
        typer.echo(document["message"])


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2))


def _fail(text: str) -> NoReturn:
    typer.echo(text, err=True)
    raise typer.Exit(EXIT_FAILED)
