"""The model card: `model.json` beside each version's config.pbtxt, written by the exporters.

Unknown keys are ignored, so that a newer exporter can add some. The one section that is the control plane's own is
`serving`; `change_serving` writes it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from control_plane.models.files import replace_file


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


class ResponseCacheOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Keeps a version's outputs for identical inputs, in each worker's memory."""

    ttl_s: Annotated[float, Meta(gt=0, le=86_400)]
    """How long kept outputs answer, in seconds."""
    max_bytes: Annotated[int, Meta(ge=1024)] = 64 * 1024 * 1024
    """Most memory of one worker for them, in bytes."""
    stale_for_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    """How long after `ttl_s` they may still answer an overloaded request that degrades, in seconds."""


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """What `tune` measured and chose for the dispatcher."""

    rows_per_call: Annotated[int, Meta(ge=1)]
    """Most rows of one call."""
    calls_in_flight: Annotated[int, Meta(ge=1, le=64)]
    """Most calls to Triton at once."""
    objective_p95_ms: float
    """The latency objective that was asked for, in milliseconds."""
    p95_ms: float
    """P95 of a call at the chosen size, with so many in flight, in milliseconds."""
    rows_per_s: float
    """Throughput at the chosen size."""
    measured_at: str
    """RFC 3339, UTC."""


class ServingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the control plane serves the version; changeable while it serves."""

    on_overload: Literal["reject", "degrade"] = "reject"
    """What happens to a request that can't finish in time and says nothing itself."""
    fallback: str | None = None
    """A cheaper version of the same type, kept loaded with this one, that answers for it under overload."""
    response_cache: ResponseCacheOptions | None = None
    """None: off."""
    tuning: Tuning | None = None
    """None: never tuned."""


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
    serving: ServingOptions = ServingOptions()

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


def change_serving(folder: Path, serving: ServingOptions) -> None:
    """Writes `serving` into `folder/model.json`: whole or not at all; every other key stays as it is.

    The caller holds the version's lock. Every worker reads the card again at its next look at the repository.

    Raises:
        FileNotFoundError: there is no card.
        OSError: the folder isn't writable, or the disk is full.
    """
    _change(folder, {"serving": msgspec.to_builtins(serving)})


def change_configuration(
    folder: Path, *, instance_count: int, config_sha256: str, serving: ServingOptions
) -> None:
    """Writes into `folder/model.json` what another config.pbtxt changes, as `change_serving` does.

    Raises:
        FileNotFoundError: there is no card.
        OSError: the folder isn't writable, or the disk is full.
    """
    checksums = read_card(folder).checksums | {"config.pbtxt": config_sha256}
    _change(
        folder,
        {
            "instance_count": instance_count,
            "checksums": checksums,
            "serving": msgspec.to_builtins(serving),
        },
    )


def _change(folder: Path, changed: dict[str, Any]) -> None:
    path = folder / "model.json"
    document = msgspec.json.decode(path.read_bytes()) | changed
    replace_file(path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
