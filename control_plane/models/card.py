"""The model card: `model.json` beside each version's config.pbtxt, written by the exporters.

Read-only here. Unknown keys are ignored, so that a newer exporter can add some.
"""

from pathlib import Path
from typing import Any

import msgspec


class CardTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor: its name for clients, its name in Triton, its shape without the batch axis (-1 = dynamic)."""

    name: str
    triton_name: str
    datatype: str
    shape: tuple[int, ...]


class CardSource(msgspec.Struct, frozen=True, kw_only=True):
    """The file that the version was exported from."""

    file_name: str
    sha256: str
    size_bytes: int


class CardMCDropout(msgspec.Struct, frozen=True, kw_only=True):
    """Size and seed of the Monte Carlo mask bank in the graph."""

    samples: int
    seed: int


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one model type, as its exporter described it."""

    schema_version: int
    model_type: str
    version: str
    triton_model: str
    description: str
    format: str
    created_at: str
    source: CardSource
    content_digest: str
    inputs: tuple[CardTensor, ...]
    outputs: tuple[CardTensor, ...]
    max_batch_size: int
    device: str
    instance_count: int
    config: dict[str, Any]
    normalization: dict[str, Any] | None
    mc_dropout: CardMCDropout | None
    class_names: tuple[str, ...] | None
    feature_names: tuple[str, ...] | None
    metrics: dict[str, Any]
    calibration: dict[str, Any] | None
    checksums: dict[str, str]
    size_bytes: int
    verification: dict[str, Any]
    versions: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def output_names(self) -> frozenset[str]:
        """Names of the outputs, as clients see them."""
        return frozenset(tensor.name for tensor in self.outputs)


_decoder = msgspec.json.Decoder(ModelCard)


def read_card(folder: Path) -> ModelCard:
    """Reads `folder/model.json`.

    Raises:
        FileNotFoundError: there is no card.
        msgspec.MsgspecError: the card isn't one (not JSON, a key missing, a wrong type).
    """
    return _decoder.decode((folder / "model.json").read_bytes())
