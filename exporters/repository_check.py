"""Checks published versions: card, checksums, `config.pbtxt` against the card, and that the artefact runs."""

from dataclasses import dataclass
from pathlib import Path

from exporters.card import CARD_FILE, CONFIG_FILE, Card, file_sha256, read_card
from exporters.checkpoints.identify import DEFAULT_MAX_BYTES
from exporters.config_pbtxt import BACKENDS, parse_config, stalling_warnings, tensor_differences
from exporters.errors import ExportError, InvalidModel
from exporters.publication import STAGING
from exporters.spec import ModelFormat
from exporters.torchscript_archive import screen
from exporters.trial import try_artefact


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a version's check found. `problems` empty: it can be served."""

    name: str
    card: Card | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def versions_in(path: Path) -> tuple[Path, ...]:
    """The version folders that a path means: itself, or those of a repository.

    Raises:
        InvalidModel: neither.
    """
    if (path / CARD_FILE).exists() or (path / CONFIG_FILE).exists():
        return (path,)
    if not path.is_dir():
        raise InvalidModel(
            f"{path} isn't a folder.",
            expected="a version's folder, or a model repository",
            remedy="Give e.g. model_repository/cnn_lstm_hybrid-v1.0.",
        )
    return tuple(sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name != STAGING))


def check_version(folder: Path, *, run: bool = True) -> Finding:
    """Checks one version.

    Args:
        folder: of the version, e.g. `model_repository/cnn_lstm_hybrid-v1.0`.
        run: also load the artefact and run it on a small input.
    """
    try:
        card = read_card(folder)
    except ExportError as error:
        return Finding(name=folder.name, card=None, problems=(_text(error),), warnings=())
    problems: list[str] = []
    warnings = list(card.warnings)
    if folder.name != card.triton_model:
        problems.append(f"the folder is named {folder.name}, the card says {card.triton_model}")
    problems += _check_files(folder, card)
    try:
        warnings += [warning for warning in _check_config(folder, card, problems) if warning not in warnings]
        if run and not problems:
            _run(folder, card)
    except ExportError as error:
        problems.append(_text(error))
    return Finding(name=folder.name, card=card, problems=tuple(problems), warnings=tuple(warnings))


def _check_files(folder: Path, card: Card) -> list[str]:
    problems = []
    for name in (CONFIG_FILE, card.artefact):
        checksum = card.checksums.get(name)
        try:
            actual = file_sha256(folder / name)
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
            continue
        if checksum is None:
            problems.append(f"{name} has no checksum in the card")
        elif actual != checksum:
            problems.append(
                f"{name} was changed after publication (sha256 {actual[:12]}…, not {checksum[:12]}…)"
            )
    return problems


def _check_config(folder: Path, card: Card, problems: list[str]) -> tuple[str, ...]:
    try:
        data = (folder / CONFIG_FILE).read_bytes()
    except OSError:
        return ()  # reported with the files
    config = parse_config(data, where=CONFIG_FILE)
    for field, expected in (
        ("name", card.triton_model),
        ("backend", BACKENDS[card.format]),
        ("platform", ""),
        ("max_batch_size", card.max_batch_size),
    ):
        if getattr(config, field) != expected:
            problems.append(
                f"config.pbtxt has {field} {getattr(config, field)!r}, the card says {expected!r}"
            )
    problems += [
        f"config.pbtxt: {difference}"
        for difference in tensor_differences(config, inputs=card.inputs, outputs=card.outputs)
    ]
    return stalling_warnings(config)


def _run(folder: Path, card: Card) -> None:
    artefact = folder / card.artefact
    if card.format is ModelFormat.TORCHSCRIPT:
        screen(artefact, max_bytes=DEFAULT_MAX_BYTES)
    lengths = card.verification.time_lengths[::-1]
    trial = try_artefact(
        artefact, card.format, card.inputs, max_batch_size=card.max_batch_size, lengths=lengths
    )
    if len(trial.output_shapes) != len(card.outputs):
        raise InvalidModel(
            "The artefact's outputs aren't those of the card.",
            expected=f"{len(card.outputs)} outputs",
            got=f"{len(trial.output_shapes)}",
        )
    for tensor, shape in zip(card.outputs, trial.output_shapes, strict=True):
        if len(shape) != len(tensor.shape) or any(
            size not in (-1, actual) for size, actual in zip(tensor.shape, shape, strict=True)
        ):
            raise InvalidModel(
                f"The artefact's output {tensor.name} isn't as the card says.",
                expected=f"shape {list(tensor.shape)}",
                got=f"shape {list(shape)}",
            )


def _text(error: ExportError) -> str:
    return " ".join(part for part in (error.detail, error.got and f"({error.got})") if part)
