"""The model card, `model.json`: what a published version is, for the control plane and for people.

Says nothing of how a model is built. The schema is versioned; readers refuse a newer one by name.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from exporters.errors import InvalidModel
from exporters.spec import Device, ModelFormat, Normalization, TensorSpec

SCHEMA_VERSION = 1
EXPORT_REVISION = 1
"""Raised whenever the exporters make something else of the same file and options: it is part of the digest."""
CARD_FILE = "model.json"
CONFIG_FILE = "config.pbtxt"
ARTEFACTS: Mapping[ModelFormat, str] = {
    ModelFormat.ONNX: "1/model.onnx",
    ModelFormat.TORCHSCRIPT: "1/model.pt",
}


class CardTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor: the name that clients use, Triton's name for it, and its shape without the batch axis."""

    name: str
    triton_name: str
    datatype: str
    shape: tuple[int, ...]


class CardSource(msgspec.Struct, frozen=True, kw_only=True):
    """The file that the model was exported from."""

    file_name: str
    sha256: str
    size_bytes: int


class CardNormalization(msgspec.Struct, frozen=True, kw_only=True):
    """The normalisation in the graph: (x - mean) / scale for each channel."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]


class CardMCDropout(msgspec.Struct, frozen=True, kw_only=True):
    """The graph's fixed Monte Carlo masks."""

    samples: int
    seed: int


class CardVerification(msgspec.Struct, frozen=True, kw_only=True):
    """What the exported graph was compared with, and how far it differs."""

    max_relative_error: float | None
    batch_sizes: tuple[int, ...]
    time_lengths: tuple[int, ...]
    reference: str


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """`model.json`, schema version 1. All keys but `serving` are always written, null where they don't apply."""

    schema_version: int
    model_type: str
    version: str
    triton_model: str
    description: str
    format: ModelFormat
    created_at: str
    source: CardSource
    content_digest: str
    inputs: tuple[CardTensor, ...]
    outputs: tuple[CardTensor, ...]
    max_batch_size: int
    device: Device
    instance_count: int
    config: dict[str, Any]
    normalization: CardNormalization | None
    mc_dropout: CardMCDropout | None
    class_names: tuple[str, ...] | None
    feature_names: tuple[str, ...] | None
    metrics: dict[str, Any]
    calibration: dict[str, Any] | None
    checksums: dict[str, str]
    size_bytes: int
    verification: CardVerification
    versions: dict[str, Any]
    warnings: tuple[str, ...]
    serving: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    """The control plane's own section, which an export only hands on."""

    @property
    def artefact(self) -> str:
        """Path of the artefact in the version's folder, e.g. `1/model.onnx`."""
        return ARTEFACTS[self.format]


def card_tensors(
    specs: tuple[TensorSpec, ...], *, model_format: ModelFormat, offset: int = 0
) -> tuple[CardTensor, ...]:
    """Names tensors for Triton: as they are for ONNX, `<name>__<index>` for TorchScript.

    Args:
        specs: inputs or outputs, in the graph's order.
        model_format: decides the names.
        offset: index of the first one.
    """
    return tuple(
        CardTensor(
            name=spec.name,
            triton_name=f"{spec.name}__{index}" if model_format is ModelFormat.TORCHSCRIPT else spec.name,
            datatype=spec.datatype,
            shape=spec.shape,
        )
        for index, spec in enumerate(specs, start=offset)
    )


def card_normalization(normalization: Normalization | None) -> CardNormalization | None:
    """The card's form of a normalisation."""
    if normalization is None:
        return None
    return CardNormalization(mean=normalization.mean, scale=normalization.scale)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return msgspec.json.encode(value, order="sorted")


def content_digest(
    *,
    model_type: str,
    source_sha256: str,
    config: Mapping[str, Any],
    normalization: Normalization | None,
    model_format: ModelFormat,
    device: Device,
    options: Mapping[str, Any],
) -> str:
    """SHA-256 over all that decides a published version's content. Equal digest, equal content.

    Args:
        model_type: as published.
        source_sha256: of the checkpoint, hex.
        config: the effective configuration.
        normalization: as folded into the graph.
        model_format: of the artefact.
        device: of the instances.
        options: of the export: max_batch_size, instance_count, the opset and the like.
    """
    content = {
        "revision": EXPORT_REVISION,
        "model_type": model_type,
        "source": source_sha256,
        "config": dict(config),
        "normalization": card_normalization(normalization),
        "format": model_format,
        "device": device,
        "options": dict(options),
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def encode_card(card: Card) -> bytes:
    """The card as indented JSON, in the order of its keys."""
    return msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n"


def decode_card(data: bytes, *, where: str) -> Card:
    """Reads a card.

    Raises:
        InvalidModel: not JSON, keys missing or of the wrong type, or of a newer schema; names `where`.
    """
    remedy = "Publish the version again with --overwrite."
    try:
        card = msgspec.json.decode(data, type=Card)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidModel(f"{where} isn't a model card.", got=str(error)[:200], remedy=remedy) from error
    if card.schema_version != SCHEMA_VERSION:
        raise InvalidModel(
            f"{where} is of another schema.",
            expected=f"schema_version {SCHEMA_VERSION}",
            got=str(card.schema_version),
            remedy=remedy,
        )
    return card


def read_card(folder: Path) -> Card:
    """Reads the card of a published version's folder.

    Raises:
        InvalidModel: missing or not a card.
    """
    path = folder / CARD_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidModel(
            f"{folder.name} has no readable {CARD_FILE}.",
            got=error.strerror,
            remedy="Remove the folder, or publish the version again with --overwrite.",
        ) from error
    return decode_card(data, where=f"{folder.name}/{CARD_FILE}")
