"""Which committed checkpoints aren't published yet: for a first start that needs no training and no waiting.

Looks at names, cards and checksums only; imports neither torch nor the pipeline.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from exporters.card import file_sha256, read_card
from exporters.errors import ExportError, InvalidConfig
from exporters.protocol import MODEL_TYPE_PATTERN, VERSION_PATTERN

SUFFIXES = frozenset({".pth", ".pt", ".onnx"})
_AGENTS = "rl_ensemble"
_NAME = re.compile(rf"(?P<model_type>{MODEL_TYPE_PATTERN})-(?P<version>{VERSION_PATTERN})")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedCheckpoint:
    """A file named `<type>-<version>.<suffix>`, or agents in `rl_ensemble-<version>.zip` or a folder of that name.

    `published`: from just this content.
    """

    path: Path
    model_type: str
    version: str
    published: bool

    @property
    def triton_model(self) -> str:
        """The version's name in the repository."""
        return f"{self.model_type}-{self.version}"


def find_committed(checkpoints: Path, repository: Path) -> tuple[CommittedCheckpoint, ...]:
    """Finds the committed checkpoints and whether each is published.

    Args:
        checkpoints: folder of `<type>-<version>.pth` (or `.pt`, `.onnx`) files, and of agents.
        repository: the model repository.

    Raises:
        InvalidConfig: `checkpoints` isn't a folder.
    """
    if not checkpoints.is_dir():
        raise InvalidConfig(
            f"{checkpoints} isn't a folder.",
            expected="a folder of checkpoints",
            remedy="Correct --checkpoints.",
        )
    found = []
    for path in sorted(checkpoints.iterdir()):
        name = path.name if path.is_dir() else path.stem
        match = _NAME.fullmatch(name)
        if match is not None and _is_checkpoint(path, match["model_type"]):
            found.append(
                CommittedCheckpoint(
                    path=path,
                    model_type=match["model_type"],
                    version=match["version"],
                    published=_is_published(path, repository / name),
                )
            )
    return tuple(found)


def _is_checkpoint(path: Path, model_type: str) -> bool:
    if path.is_dir():
        return model_type == _AGENTS
    return path.is_file() and (path.suffix in SUFFIXES or (path.suffix == ".zip" and model_type == _AGENTS))


def _is_published(path: Path, folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        card = read_card(folder)
        return card.source.sha256 == _sha256(path) and all(
            (folder / name).is_file() for name in card.checksums
        )
    except (ExportError, OSError):
        return False


def _sha256(path: Path) -> str:
    if not path.is_dir():
        return file_sha256(path)
    from exporters.rl.manifest import source_sha256  # noqa: PLC0415 - imports numpy

    return source_sha256(path)
