"""From an exported artefact to a published version: the card, `config.pbtxt`, checksums, and what is already there.

Both routes end here: weights that `exporters.pipeline` turns into a graph, and graphs that `exporters.ready_made`
takes as they are.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from exporters.card import (
    ARTEFACTS,
    CARD_FILE,
    CONFIG_FILE,
    SCHEMA_VERSION,
    Card,
    CardMCDropout,
    CardNormalization,
    CardSource,
    CardTensor,
    CardVerification,
    encode_card,
    file_sha256,
    read_card,
)
from exporters.config_pbtxt import encode_config
from exporters.errors import ExportError, VersionConflict
from exporters.protocol import ExportRequest
from exporters.publication import publish
from exporters.spec import Device, ModelFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A version whose artefact lies in staging, with all that its card says. `serving` is a ModelConfig message."""

    model_format: ModelFormat
    source: CardSource
    content_digest: str
    inputs: tuple[CardTensor, ...]
    outputs: tuple[CardTensor, ...]
    serving: Any
    device: Device
    verification: CardVerification
    versions: Mapping[str, Any]
    description: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    normalization: CardNormalization | None = None
    mc_dropout: CardMCDropout | None = None
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def published_card(request: ExportRequest) -> Card | None:
    """The card of the version that is already published, if it is there and whole.

    Raises:
        VersionConflict: a folder of that name is there without a readable card, and overwriting wasn't asked for.
    """
    folder = Path(request.repository) / request.triton_model
    if not folder.exists():
        return None
    try:
        return read_card(folder)
    except ExportError as error:
        if request.overwrite:
            return None
        raise VersionConflict(
            f"{request.triton_model} is in the repository already, without a readable model card.",
            got=error.detail,
            remedy="Remove that folder, or set overwrite.",
        ) from error


def is_whole(folder: Path, card: Card) -> bool:
    """Whether the published files are those that the card names."""
    try:
        return all(file_sha256(folder / name) == checksum for name, checksum in card.checksums.items())
    except OSError:
        return False


def is_published(request: ExportRequest, card: Card | None, digest: str) -> bool:
    """Whether exactly this content is published; False where it has to be written, or written anew.

    Raises:
        VersionConflict: other content is published under this version, and overwriting wasn't asked for.
    """
    if card is None:
        return False
    if card.content_digest == digest:
        return is_whole(Path(request.repository) / request.triton_model, card)
    refuse_conflict(request, card)
    return False


def refuse_conflict(request: ExportRequest, card: Card | None) -> None:
    """Raises VersionConflict unless the version is free or overwriting was asked for."""
    if card is not None and not request.overwrite:
        raise VersionConflict(
            f"{request.triton_model} is already published, with other content.",
            expected="an unused version, or the same file, configuration and options as before",
            got=f"published {card.created_at} from {card.source.file_name} (sha256 {card.source.sha256[:12]}…)",
            remedy="Choose another version, or set overwrite.",
        )


def finish(request: ExportRequest, folder: Path, draft: Draft) -> Card:
    """Writes card and configuration beside the staged artefact, and publishes the folder.

    Args:
        request: for names and places.
        folder: the staging folder; the artefact is in it.
        draft: everything else.

    Returns:
        The published card.

    Raises:
        OSError: translated by `publication.staged`.
        ExportFailed: the configuration doesn't read back.
    """
    artefact = ARTEFACTS[draft.model_format]
    (folder / CONFIG_FILE).write_bytes(encode_config(draft.serving))
    card = Card(
        schema_version=SCHEMA_VERSION,
        model_type=request.model_type,
        version=request.version,
        triton_model=request.triton_model,
        description=draft.description,
        format=draft.model_format,
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        source=draft.source,
        content_digest=draft.content_digest,
        inputs=draft.inputs,
        outputs=draft.outputs,
        max_batch_size=draft.serving.max_batch_size,
        device=draft.device,
        instance_count=max(1, sum(group.count for group in draft.serving.instance_group)),
        config=dict(draft.config),
        normalization=draft.normalization,
        mc_dropout=draft.mc_dropout,
        class_names=draft.class_names,
        feature_names=draft.feature_names,
        metrics=dict(draft.metrics),
        calibration=None,
        checksums={name: file_sha256(folder / name) for name in (CONFIG_FILE, artefact)},
        size_bytes=(folder / artefact).stat().st_size,
        verification=draft.verification,
        versions={"python": platform.python_version(), **draft.versions},
        warnings=draft.warnings,
        serving=_kept_serving(request),
    )
    (folder / CARD_FILE).write_bytes(encode_card(card))
    publish(Path(request.repository), folder, request.triton_model)
    return card


def _kept_serving(request: ExportRequest) -> dict[str, Any] | msgspec.UnsetType:
    """How the control plane serves the version that is replaced; but what `tune` measured was the old content."""
    replaced = published_card(request)
    if replaced is None or isinstance(replaced.serving, msgspec.UnsetType):
        return msgspec.UNSET
    return {name: value for name, value in replaced.serving.items() if name != "tuning"} or msgspec.UNSET
