"""The exporters' command line. Each command parses, calls one function, and prints; nothing is decided here."""

import tempfile
import traceback
from pathlib import Path
from typing import Annotated

import typer

from exporters.command import configuration_of, run_export
from exporters.errors import ExportError, InvalidModel
from exporters.limits import DEFAULT_LIMITS, MIN_MEMORY_MB, Limits, apply_limits, translated_limits
from exporters.protocol import ExportRequest
from exporters.spec import Device, ModelFormat

app = typer.Typer(
    name="exporters",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Turns trained models into versions that Triton serves.

\b
Examples:
  python -m exporters hybrid models/model.pth --version v1.0
  python -m exporters hybrid models/model.pth --version v1.1 --format torchscript --device gpu
  python -m exporters rl_ensemble models/agents --version v1.0
  python -m exporters ready-made volatility models/volatility.onnx --version 2024.1
  python -m exporters check model_repository

Each export is verified before it is published, and published whole or not at all. Reading a checkpoint never runs
code from it. Exporting the same again changes nothing.
""",
)


@app.callback()
def _limit_commands(context: typer.Context) -> None:
    # `main` gives the limits; `run` sets its own
    if context.obj is not None and context.invoked_subcommand != "run":
        apply_limits(context.obj)


Version = Annotated[str, typer.Option(help="Version to publish, e.g. v1.0.", show_default=False)]
Repository = Annotated[Path, typer.Option(help="Model repository that Triton reads.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A value of the configuration, as JSON or a plain word; repeatable.",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="JSON file with the configuration; --set wins.")
]
FormatOption = Annotated[ModelFormat, typer.Option("--format", help="Format of the artefact.")]
DeviceOption = Annotated[
    Device, typer.Option(help="Where Triton places the model; auto: a GPU where there is one.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the version if it is published already.")
]
MaxBatch = Annotated[
    int | None, typer.Option("--max-batch-size", min=1, help="Most rows in a batch.  [default: 64]")
]
Instances = Annotated[
    int | None, typer.Option("--instances", min=1, help="Copies of the model.  [default: 1]")
]
Gpus = Annotated[
    list[int] | None, typer.Option("--gpu", help="Index of a GPU to use, with --device gpu; repeatable.")
]
Tensorrt = Annotated[
    bool,
    typer.Option("--tensorrt", help="Run ONNX through TensorRT in FP16, with --device gpu; cached engines."),
]


@app.command()
def hybrid(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint (.pth, .pt) of a CNN-LSTM hybrid.")],
    *,
    version: Version,
    model_format: FormatOption = ModelFormat.ONNX,
    device: DeviceOption = Device.AUTO,
    settings: Settings = None,
    config: ConfigFile = None,
    normalization: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with mean and scale of each channel. Without it: CHECKPOINT's name with "
            ".normalization.json, then the checkpoint's own configuration."
        ),
    ] = None,
    repository: Repository = Path("model_repository"),
    overwrite: Overwrite = False,
    max_batch_size: MaxBatch = None,
    instances: Instances = None,
    gpus: Gpus = None,
    tensorrt: Tensorrt = False,
) -> None:
    """Exports the checkpoint of a CNN-LSTM hybrid.

    \b
    Examples:
      python -m exporters hybrid models/model.pth --version v1.0
      python -m exporters hybrid models/model.pth --version v1.0 --set sequence_length=60 --set mc_dropout_samples=50
      python -m exporters hybrid models/model.pth --version v1.0-gpu --device gpu --instances 2 --tensorrt

    The checkpoint holds model_state_dict (or state_dict) and config: a dict, or a pickled configuration object.
    Windows of real input (*_windows.npz) beside it are used in the verification.
    """
    parsed = None
    if normalization is not None:
        from exporters.checkpoints.normalization import read_normalization  # noqa: PLC0415 - keeps --help fast

        values = read_normalization(normalization)
        parsed = {"mean": list(values.mean), "scale": list(values.scale)}
    run_export(
        ExportRequest(
            model_type="cnn_lstm_hybrid",
            version=version,
            file_path=str(checkpoint.absolute()),
            repository=str(repository.absolute()),
            config=configuration_of(config, settings),
            format=model_format,
            device=device,
            overwrite=overwrite,
            normalization=parsed,
            max_batch_size=max_batch_size,
            instance_count=instances,
            gpus=tuple(gpus or ()),
            tensorrt=tensorrt,
        )
    )


@app.command("rl_ensemble")
def rl_ensemble(
    agents: Annotated[
        Path, typer.Argument(help="Folder of Stable-Baselines3 zips, a zip of such zips, or one agent's zip.")
    ],
    *,
    version: Version,
    model_format: FormatOption = ModelFormat.ONNX,
    device: DeviceOption = Device.AUTO,
    settings: Settings = None,
    config: ConfigFile = None,
    repository: Repository = Path("model_repository"),
    overwrite: Overwrite = False,
    max_batch_size: MaxBatch = None,
    instances: Instances = None,
) -> None:
    """Exports Stable-Baselines3 agents as one ensemble, whose weights come with each request.

    \b
    Examples:
      python -m exporters rl_ensemble models/agents --version v1.0
      python -m exporters rl_ensemble models/agents.zip --version v1.1 --set q_temperature=0.5

    Agents are MlpPolicy ones of PPO, A2C, SAC, TD3 and DQN, as model.save() writes them. A manifest.json beside them
    names them and says how they act together; docs/exporters.md describes it. Real observations beside or among them
    (*_observations.npz) are used in the verification.
    """
    run_export(
        ExportRequest(
            model_type="rl_ensemble",
            version=version,
            file_path=str(agents.absolute()),
            repository=str(repository.absolute()),
            config=configuration_of(config, settings),
            format=model_format,
            device=device,
            overwrite=overwrite,
            max_batch_size=max_batch_size,
            instance_count=instances,
        )
    )


@app.command()
def ready_made(
    model_type: Annotated[
        str, typer.Argument(metavar="TYPE", help="Type to publish as: a known one, or a new name.")
    ],
    file: Annotated[Path, typer.Argument(help="ONNX or TorchScript file.")],
    *,
    version: Version,
    device: Annotated[
        Device | None, typer.Option(help="Where Triton places the model.  [default: auto]")
    ] = None,
    settings: Settings = None,
    config: ConfigFile = None,
    repository: Repository = Path("model_repository"),
    overwrite: Overwrite = False,
    max_batch_size: MaxBatch = None,
    instances: Instances = None,
    gpus: Gpus = None,
    tensorrt: Tensorrt = False,
) -> None:
    """Publishes an ONNX or TorchScript file as it is, once it was checked and tried.

    \b
    Examples:
      python -m exporters ready-made volatility models/volatility.onnx --version 2024.1
      python -m exporters ready-made volatility models/volatility.pt --version 2024.2 --config tensors.json

    A TorchScript file doesn't name its tensors: give them as inputs and outputs in the configuration,
    [{"name": "x", "shape": [50, -1], "datatype": "FP32"}] without the batch axis, or in a config.pbtxt beside the
    file. Such a config.pbtxt is taken over where it fits the model.
    """
    run_export(
        ExportRequest(
            model_type=model_type,
            version=version,
            file_path=str(file.absolute()),
            repository=str(repository.absolute()),
            config=configuration_of(config, settings),
            device=device,
            overwrite=overwrite,
            max_batch_size=max_batch_size,
            instance_count=instances,
            gpus=tuple(gpus or ()),
            tensorrt=tensorrt,
        )
    )


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="A version's folder, or a whole model repository.")],
    *,
    run: Annotated[bool, typer.Option("--run/--no-run", help="Also load each artefact and run it.")] = True,
) -> None:
    """Checks published versions: checksums, config.pbtxt against the model card, and that the artefact runs.

    \b
    Examples:
      python -m exporters check model_repository/cnn_lstm_hybrid-v1.0
      python -m exporters check model_repository --no-run
    """
    from exporters.repository_check import check_version, versions_in  # noqa: PLC0415 - keeps --help fast

    failed = 0
    folders = versions_in(path)
    for folder in folders:
        finding = check_version(folder, run=run)
        failed += bool(finding.problems)
        if finding.card is None or finding.problems:
            typer.echo(f"FAILED  {finding.name}")
        else:
            card = finding.card
            typer.echo(
                f"ok      {finding.name}  {card.format}, {card.size_bytes / 1e6:.1f} MB, {card.created_at}"
            )
        for problem in finding.problems:
            typer.echo(f"        problem: {problem}")
        for warning in finding.warnings:
            typer.echo(f"        warning: {warning}")
    if not folders:
        typer.echo(f"{path} holds no versions.")
    if failed:
        raise InvalidModel(
            f"{failed} of {len(folders)} versions can't be served as they are.",
            remedy="Publish them again with --overwrite, or remove their folders.",
        )


@app.command()
def run(
    memory_limit_mb: Annotated[
        int | None, typer.Option(min=MIN_MEMORY_MB, help="Limit on the process's own memory, in MB.")
    ] = None,
    cpu_limit_s: Annotated[
        int | None, typer.Option(min=1, help="Limit on processor time, in seconds.")
    ] = None,
    max_file_mb: Annotated[
        int, typer.Option(min=1, help="Limit on the size of the file to export, in MB.")
    ] = 2048,
) -> None:
    """One export for a program: a JSON request on standard input, JSON lines of events on standard output.

    \b
    Example:
      echo '{"model_type": "cnn_lstm_hybrid", "version": "v1.0", "file_path": "/models/model.pth",
             "repository": "/model_repository"}' | python -m exporters run --memory-limit-mb 4096
    """
    from exporters.process import run as run_process  # noqa: PLC0415 - keeps --help fast

    limits = Limits(memory_mb=memory_limit_mb, cpu_s=cpu_limit_s)
    raise typer.Exit(run_process(limits, max_bytes=max_file_mb << 20))


@app.command()
def publish_missing(
    checkpoints: Annotated[
        Path,
        typer.Option(help="Folder of checkpoints named TYPE-VERSION.pth, agents rl_ensemble-VERSION(.zip)."),
    ] = Path("checkpoints"),
    repository: Repository = Path("model_repository"),
) -> None:
    """Publishes each checkpoint of a folder that isn't published yet; returns at once when all are.

    A version whose checkpoint has changed since is published anew.
    """
    from exporters.committed import find_committed  # noqa: PLC0415 - keeps --help fast

    found = find_committed(checkpoints, repository)
    for entry in found:
        if entry.published:
            typer.echo(f"{entry.triton_model} is published.")
            continue
        run_export(
            ExportRequest(
                model_type=entry.model_type,
                version=entry.version,
                file_path=str(entry.path.absolute()),
                repository=str(repository.absolute()),
                overwrite=True,
            )
        )
    if not found:
        typer.echo(f"{checkpoints} holds no checkpoints named TYPE-VERSION.pth.")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and ends the process with its exit code."""
    try:
        with translated_limits(DEFAULT_LIMITS):
            app(arguments, obj=DEFAULT_LIMITS)
    except ExportError as error:
        typer.echo(f"error: {error.detail}", err=True)
        for label, text in (("expected", error.expected), ("got", error.got), ("what to do", error.remedy)):
            if text:
                typer.echo(f"  {label}: {text}", err=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:  # noqa: BLE001 - the boundary: people get a sentence, and the trace in a file
        with tempfile.NamedTemporaryFile("w", prefix="exporters-", suffix=".log", delete=False) as log:
            traceback.print_exc(file=log)
        typer.echo(
            f"error: the command failed unexpectedly ({type(error).__name__}: {str(error)[:200]})", err=True
        )
        typer.echo(f"  what to do: report it, with {log.name}", err=True)
        raise SystemExit(1) from None
