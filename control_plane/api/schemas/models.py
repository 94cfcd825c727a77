"""Requests and answers of the model endpoints."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from control_plane.api.schemas.serving import ServingOptionsAnswer, TuningAnswer
from control_plane.models.tuning.tuner import DEFAULT_P95_MS
from control_plane.models.versions import MODEL_TYPE_PATTERN, VERSION_PATTERN


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class _Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class Problem(_Answer):
    """RFC 9457 problem details."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    request_id: str | None = None
    expected: str | None = None
    got: str | None = None
    remedy: str | None = None


class LoadBody(_Body):
    """What to load."""

    model_type: str = Field(
        pattern=MODEL_TYPE_PATTERN,
        description="A known type, or a new name for a ready-made ONNX or TorchScript model",
        examples=["cnn_lstm_hybrid"],
    )
    version: str = Field(
        min_length=1, max_length=64, description="Its version; a leading `v` is optional", examples=["v1.0"]
    )
    file_path: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="A checkpoint under the model registry or checkpoints/; left out: load a registered version",
        examples=["models/hybrid_v1.pth"],
    )
    config: dict[str, Any] | None = Field(
        default=None,
        description="The training configuration, where the checkpoint has none; see /models/types",
    )
    format: Literal["onnx", "torchscript"] | None = Field(default=None, description="Format to export to")
    device: Literal["auto", "cpu", "gpu"] | None = Field(default=None, description="Where its instances run")
    overwrite: bool = Field(
        default=False, description="Replace the version where it exists with other content"
    )
    normalization: dict[str, Any] | None = Field(
        default=None, description="`mean` and `scale` per channel, folded into the graph"
    )
    wait: bool = Field(default=True, description="false: answer 202 at once, with a job to follow")


class LoadAnswer(_Answer):
    """A load that is done. `status`: published, unchanged (same content again), or registered (no file)."""

    message: str
    model_type: str
    version: str
    triton_model: str
    status: Literal["published", "unchanged", "registered"]
    load_time_ms: float = Field(description="Of the whole load, export included")
    triton_load_time_ms: float = Field(description="In Triton alone; 0 where it was loaded already")
    evicted: list[str] = Field(description="Triton names of the versions that had to leave")
    warnings: list[str]
    timestamp: datetime


class LoadAccepted(_Answer):
    """A load that goes on in the background."""

    message: str
    job_id: str
    model_type: str
    version: str
    timestamp: datetime


class JobAnswer(_Answer):
    """A load job."""

    job_id: str
    model_type: str
    version: str
    status: Literal["running", "succeeded", "failed"]
    stage: str = Field(
        description="waiting, reading, building, exporting, verifying, publishing, loading, finished"
    )
    progress: float = Field(ge=0, le=1)
    created_at: datetime
    updated_at: datetime
    error: Problem | None
    result: dict[str, Any] | None


class VersionBody(_Body):
    """Names a version."""

    model_type: str = Field(min_length=1, max_length=64, examples=["cnn_lstm_hybrid"])
    version: str = Field(default="latest", min_length=1, max_length=64, examples=["v1.0"])


class WarmupBody(_Body):
    """Names versions."""

    models: list[VersionBody] = Field(max_length=100)
    tune: bool = Field(
        default=False,
        description="Also measure each that is loaded, one after the other, and keep the best call size",
    )
    p95_ms: float = Field(
        default=DEFAULT_P95_MS,
        gt=0,
        le=600_000,
        allow_inf_nan=False,
        description="For `tune`: longest P95 of a request, in milliseconds",
    )
    seconds: float = Field(
        default=10.0,
        ge=1,
        le=300,
        allow_inf_nan=False,
        description="For `tune`: time to measure each version, in seconds",
    )


def _as_object(given: Any) -> Any:
    return {"models": given} if isinstance(given, list) else given


# No union: where neither fits, that would tell the faults of both, by the classes' names.
WarmupBodyOrList = Annotated[
    WarmupBody, BeforeValidator(_as_object, json_schema_input_type=WarmupBody | list[VersionBody])
]
"""The versions, or with options an object."""


class MessageAnswer(_Answer):
    """What was done to a version."""

    message: str
    model_type: str
    version: str
    timestamp: datetime


class AliasBody(_Body):
    """Where an alias is to point."""

    version: str = Field(pattern=VERSION_PATTERN, examples=["v1.0"])


class AliasMoveAnswer(_Answer):
    """One move of an alias."""

    model_config = ConfigDict(populate_by_name=True)

    time: datetime
    from_version: str | None = Field(alias="from")
    to_version: str | None = Field(alias="to")


class AliasAnswer(_Answer):
    """An alias after a change."""

    message: str
    model_type: str
    alias: str
    version: str | None
    previous: str | None
    history: list[AliasMoveAnswer]
    timestamp: datetime


class ModelUsage(_Answer):
    """State and use over all workers."""

    state: Literal["ready", "loading", "unloading", "unloaded"]
    usage_count: int
    loaded_at: datetime | None
    last_used: datetime | None


class ModelEntry(ModelUsage):
    """A registered version in the list."""

    model_type: str
    version: str
    triton_model: str
    latest: bool
    aliases: list[str]
    format: str
    created_at: datetime
    size_bytes: int


class ModelsAnswer(_Answer):
    """All registered versions."""

    models: list[ModelEntry]
    total_models: int
    timestamp: datetime


class Tensor(_Answer):
    """A tensor, without the batch axis; -1 is a dynamic axis."""

    name: str
    triton_name: str
    datatype: str
    shape: list[int]


class Signature(_Answer):
    """Inputs and outputs."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    max_batch_size: int


class ModelDetail(ModelEntry):
    """One version: its model card, signature, state and use."""

    signature: Signature
    serving: ServingOptionsAnswer
    card: dict[str, Any]
    timestamp: datetime


class CachedModelEntry(_Answer):
    """A loaded version."""

    key: str
    model_type: str
    version: str
    loaded_at: datetime
    last_used: datetime
    usage_count: int
    ttl_remaining_s: float | None
    size_bytes: int


class CacheStatsAnswer(_Answer):
    """The cache over all workers."""

    total_models: int
    max_capacity: int
    total_usage: int
    models: list[CachedModelEntry]
    hits: int
    misses: int
    evictions: int
    expirations: int
    hit_rate: float


class TypeEntry(_Answer):
    """A model type."""

    name: str
    description: str
    input_format: str
    output_format: str
    supports_uncertainty: bool
    supports_ensemble: bool
    versions: list[str]
    config_schema: dict[str, Any]


class TypesAnswer(_Answer):
    """All model types: the known ones, and those of registered ready-made models."""

    model_types: dict[str, TypeEntry]
    timestamp: datetime


class TuningPoint(_Answer):
    """What calls of one size take."""

    rows: int
    calls_in_flight: int
    p50_ms: float = Field(description="Of a call")
    p95_ms: float = Field(description="Of a call")
    request_p95_ms: float = Field(description="Of a request that waits for a free call first")
    rows_per_s: float


class TuningReport(_Answer):
    """What `tune` measured. `chosen` is in the card now; null: no size meets the objective, and nothing changed."""

    chosen: TuningAnswer | None
    points: list[TuningPoint]


class WarmupEntry(_Answer):
    """What became of one version."""

    model_type: str
    version: str
    status: Literal["warmed", "already_cached", "not_found", "error"]
    load_time_ms: float | None = None
    inference_time_ms: float | None = None
    error: Problem | None = None
    tuning: TuningReport | None = Field(default=None, description="With `tune`")


class WarmupAnswer(_Answer):
    """What became of all of them."""

    message: str
    results: list[WarmupEntry]
    timestamp: datetime
