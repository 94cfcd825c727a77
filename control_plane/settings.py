"""Typed settings: defaults < config/model_serving.yaml < environment.

Read once, in `create_app` or the command line, and passed down. Every key of the file can be given as
`MODEL_SERVING__<SECTION>__<KEY>`; a few have a documented short name (`API_HOST`, `REDIS_HOST`, …). An unknown or wrong
key stops the start with its name and what is allowed.
"""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

ENV_PREFIX = "MODEL_SERVING__"
CONFIG_FILE_VARIABLE = "MODEL_SERVING_CONFIG"
DEFAULT_CONFIG_FILE = Path("config/model_serving.yaml")

SHORT_NAMES: dict[str, tuple[str, str]] = {
    "API_HOST": ("api", "host"),
    "API_PORT": ("api", "port"),
    "API_DEBUG": ("api", "debug"),
    "API_WORKERS": ("api", "workers"),
    "REDIS_HOST": ("redis", "host"),
    "REDIS_PORT": ("redis", "port"),
    "REDIS_DB": ("redis", "db"),
    "REDIS_URL": ("redis", "url"),
    "REDIS_PASSWORD": ("redis", "password"),
    "TRITON_GRPC_URL": ("triton", "grpc_url"),
    "TRITON_HTTP_URL": ("triton", "http_url"),
    "MODEL_REGISTRY_PATH": ("models", "registry_path"),
    # prometheus-client reads this variable itself; the settings must agree with it.
    "PROMETHEUS_MULTIPROC_DIR": ("api", "metrics_dir"),
}

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


class SettingsError(Exception):
    """A setting is unknown or wrong; the text names it, its source and what is allowed."""


class Section(BaseModel):
    """A section of the file: frozen, and without room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ApiSettings(Section):
    """The REST server."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8080
    """Port to listen on; 0 takes a free one, and the start prints which."""
    debug: bool = False
    """Debug logs."""
    workers: int = Field(default=1, ge=1, le=64)
    """API worker processes. On two cores a second one gains nothing: Triton needs the other."""
    request_timeout_s: Seconds = 30.0
    """Longest time a prediction may take when it names no `timeout_ms`, in seconds."""
    shutdown_timeout_s: Seconds = 30.0
    """How long a stopping worker waits for its requests in flight, in seconds."""
    metrics_dir: Path | None = None
    """Folder where the workers share their metrics; `serve` sets it, as PROMETHEUS_MULTIPROC_DIR."""


class RedisSettings(Section):
    """The shared state of all replicas. Without `url` and `host`, `serve` embeds a Redis of its own."""

    url: SecretStr | None = None
    """`redis://`, `rediss://`, `redis+sentinel://host:port[,host:port]/service[/db]`; wins over host, port, db."""
    host: str | None = None
    """Host name; unset means embedded under `serve`, else localhost."""
    port: Port = 6379
    """Port."""
    db: int = Field(default=0, ge=0)
    """Database number."""
    password: SecretStr | None = None
    """Password for `host`."""
    key_prefix: str = Field(default="ms", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """First part of every key, so that several deployments can share a Redis."""
    timeout_s: Seconds = 2.0
    """Deadline of one Redis command, in seconds."""


class TritonSettings(Section):
    """The inference server. Without `grpc_url`, `serve` embeds one of its own."""

    grpc_url: str | None = None
    """host:port of Triton's gRPC service; unset means embedded under `serve`, else localhost:`grpc_port`."""
    http_url: str | None = Field(default=None, pattern=r"^http://[^/\s]+:\d+/?$")
    """`http://host:port` of Triton's HTTP service. Where it is set, inference goes by it, at a third of gRPC's
    cost in Python; unset means embedded under `serve`, else inference by gRPC."""
    http_port: Port = 8000
    """HTTP port of the embedded Triton; 0 takes a free one."""
    grpc_port: Port = 8001
    """gRPC port of the embedded Triton; 0 takes a free one."""
    metrics_port: Port = 8002
    """Metrics port of the embedded Triton; 0 takes a free one."""
    model_repository: Path = Path("model_repository")
    """The folder that Triton reads and the exporters fill."""
    timeout_s: Seconds = 30.0
    """Deadline of one inference call, in seconds."""
    load_timeout_s: Seconds = 120.0
    """Deadline of loading one model, in seconds."""


class ModelCacheSettings(Section):
    """Which versions stay loaded in Triton."""

    max_models: int = Field(default=10, ge=1, le=10_000)
    """Most versions loaded at once, over the whole Triton set."""
    ttl_seconds: float = Field(default=3600.0, ge=0)
    """A version unused for so many seconds is unloaded; 0 turns that off."""
    enable_metrics: bool = True
    """Export the cache's hits, misses, evictions and expirations to Prometheus."""
    reconcile_interval_s: Seconds = 2.0
    """How often Triton's repository index is compared with what is believed, in seconds."""


class BatchProcessingSettings(Section):
    """The dispatcher in front of each Triton model."""

    max_batch_size: int = Field(default=64, ge=1, le=1024)
    """Most rows merged in one call, and `max_batch_size` of newly exported models."""
    batch_timeout_ms: float = Field(default=0.0, ge=0, le=1000)
    """Longest time a request may be held back for merging while a slot is free, in milliseconds."""
    max_queue_size: int = Field(default=1000, ge=1)
    """Most requests waiting for each model in each worker; beyond it 503 with Retry-After."""
    worker_threads: int = Field(default=1, ge=1, le=64)
    """Upper bound of a new model's instance count. Embedded on CPU each is a process of about 70 MB."""
    calls_in_flight: int | None = Field(default=None, ge=1, le=64)
    """Calls in flight to Triton for each model; default what `tune` measured, else twice its instance count."""


class ModelsSettings(Section):
    """The registry of checkpoints, and the exporter that turns them into versions."""

    registry_path: Path = Path("models")
    """Where people put checkpoints; `file_path` of a load is resolved under it."""
    checkpoints_path: Path = Path("checkpoints")
    """Committed checkpoints; also allowed for `file_path`."""
    export_timeout_s: Seconds = 900.0
    """Longest time of one export, in seconds."""
    export_memory_limit_mb: int = Field(default=8192, ge=512)
    """Memory of one export, in MiB."""


class LimitsSettings(Section):
    """Bounds of what a request may hold."""

    max_rows: int = Field(default=1000, ge=1)
    """Most rows of one prediction."""
    max_body_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    """Largest request body, in bytes."""


class FeedbackSettings(Section):
    """What is kept of an ensemble's decisions until their rewards come."""

    retention_s: float = Field(default=259_200.0, ge=0)
    """How long a decision waits for its feedback, in seconds; it takes about 400 bytes of Redis, rewarded 600.
    0: none is kept, and no feedback taken."""
    max_redis_bytes: int = Field(default=2 << 30, ge=1)
    """While Redis takes more memory than this, all its keys together, no further decisions are kept."""
    max_rows: int = Field(default=64, ge=1, le=1000)
    """Decisions are kept of requests of at most so many rows."""
    max_waiting: int = Field(default=20_000, ge=1)
    """Most rows of decisions that a worker holds back while Redis is away; more are dropped and counted."""
    flush_interval_s: Seconds = 0.2
    """How often a worker writes its decisions, in seconds."""


class EnsemblesSettings(Section):
    """Ensembles whose weights learn."""

    log_size: int = Field(default=50_000, ge=100, le=1_000_000)
    """Rewarded decisions that each ensemble keeps for its evaluation; about 200 bytes of Redis each."""
    poll_interval_s: Seconds = 1.0
    """How often a worker looks for what others learned, where Redis' messages were lost, in seconds."""
    history_interval_s: Seconds = 60.0
    """Time between two points of the weights' history, in seconds; the last 1,440 are kept."""


class ExperimentsSettings(Section):
    """A/B tests, shadows, canaries and bandits."""

    poll_interval_s: Seconds = 2.0
    """How often a worker looks for experiments that changed, where Redis' messages were lost, in seconds."""
    flush_interval_s: Seconds = 0.2
    """How often a worker writes what it counted, in seconds; `kill -9` loses at most so much of its counts."""
    certificate_s: float = Field(default=20.0, ge=0, le=600)
    """Bound of a new experiment's simulations, in seconds of a niced process; 0: no certificates."""


class EmbeddedSettings(Section):
    """What `serve` keeps when it embeds Triton or Redis."""

    data_dir: Path = Path("data")
    """Logs, Redis' append-only file, Triton's backends folder."""


class Settings(Section):
    """All of it."""

    api: ApiSettings = ApiSettings()
    redis: RedisSettings = RedisSettings()
    triton: TritonSettings = TritonSettings()
    model_cache: ModelCacheSettings = ModelCacheSettings()
    batch_processing: BatchProcessingSettings = BatchProcessingSettings()
    models: ModelsSettings = ModelsSettings()
    limits: LimitsSettings = LimitsSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    ensembles: EnsemblesSettings = EnsemblesSettings()
    experiments: ExperimentsSettings = ExperimentsSettings()
    embedded: EmbeddedSettings = EmbeddedSettings()
    log_format: Literal["json", "console"] = "json"
    """Logs as JSON lines, or for people."""

    @model_validator(mode="after")
    def _one_way_to_redis(self) -> Self:
        if self.redis.url is not None and self.redis.host is not None:
            raise ValueError("redis.url and redis.host are both set; keep one of them")
        return self


def load_settings(
    environment: Mapping[str, str] | None = None, *, config_file: Path | None = None
) -> Settings:
    """Reads the settings.

    Args:
        environment: The variables to read; the process's own when None.
        config_file: The YAML file; else the one that MODEL_SERVING_CONFIG names, else config/model_serving.yaml
            where it exists.

    Raises:
        SettingsError: an unknown or wrong key, or an unreadable file.
    """
    env = dict(os.environ if environment is None else environment)  # noqa: TID251  the one place that reads it
    named = config_file or (Path(env[CONFIG_FILE_VARIABLE]) if env.get(CONFIG_FILE_VARIABLE) else None)
    merged, origins = _from_file(named)
    _merge_environment(merged, origins, env)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError(_explain(error, origins)) from None


def _from_file(named: Path | None) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    path = named or DEFAULT_CONFIG_FILE
    if not path.is_file():
        if named is not None:
            raise SettingsError(f"The configuration file {path} doesn't exist.")
        return {}, {}
    try:
        content = yaml.safe_load(path.read_text("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"The configuration file {path} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise SettingsError(
            f"{path}: expected sections (a mapping) at the top, got {type(content).__name__}."
        )
    merged: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    for section, values in content.items():
        if isinstance(values, dict):
            merged[section] = dict(values)
            origins.update({(section, key): str(path) for key in values})
        elif values is not None:
            merged[section] = values
        origins[(section,)] = str(path)
    return merged, origins


def _merge_environment(
    merged: dict[str, Any], origins: dict[tuple[str, ...], str], env: dict[str, str]
) -> None:
    for name, place in SHORT_NAMES.items():
        if env.get(name):
            _put(merged, origins, place, name, env[name])
    for name, value in env.items():
        if not name.upper().startswith(ENV_PREFIX):
            continue
        named = tuple(name[len(ENV_PREFIX) :].lower().split("__"))
        if len(named) not in (1, 2) or not all(named):
            raise SettingsError(f"{name}: expected {ENV_PREFIX}<SECTION>__<KEY>.")
        _put(merged, origins, named, name, value)


def _put(
    merged: dict[str, Any], origins: dict[tuple[str, ...], str], place: tuple[str, ...], name: str, text: str
) -> None:
    value: Any = text
    if text.strip().lower() in {"null", "none", ""}:
        value = None
    elif text.lstrip()[:1] in "[{":
        value = yaml.safe_load(text)
    if len(place) == 1:
        merged[place[0]] = value
    else:
        section = merged.setdefault(place[0], {})
        if not isinstance(section, dict):
            raise SettingsError(
                f"{name}: {place[0]} is not a section in {origins.get((place[0],), 'the file')}."
            )
        section[place[1]] = value
    origins[place] = name


def _explain(error: ValidationError, origins: dict[tuple[str, ...], str]) -> str:
    lines = ["The settings are wrong:"]
    for entry in error.errors():
        place = tuple(str(part) for part in entry["loc"])
        inside = (name for key, name in origins.items() if place[:2] == key[: len(place)])
        origin = origins.get(place) or next(inside, "the defaults")
        dotted = ".".join(place) or "settings"
        if entry["type"] == "extra_forbidden":
            allowed = _allowed_keys(place[:-1])
            close = get_close_matches(place[-1], allowed, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            lines.append(f"  {dotted} (from {origin}): no such key.{hint} Allowed: {', '.join(allowed)}.")
        else:
            got = "" if place[-1:] and place[-1] in {"password", "url"} else f", got {entry['input']!r}"
            lines.append(f"  {dotted} (from {origin}): {entry['msg']}{got}.")
    return "\n".join(lines)


def _allowed_keys(place: tuple[str, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in place:
        model = cast("type[BaseModel]", model.model_fields[part].annotation)
    return list(model.model_fields)
