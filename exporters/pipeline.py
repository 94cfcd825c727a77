"""One export from request to published version: read, build, export, verify, publish.

What a file is decides the route: weights (a torch checkpoint) are built into a graph here; graphs (ONNX,
TorchScript) go through `exporters.ready_made`, agents through `exporters.rl.export`. torch is imported only once it is
clear that there is something to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters import draft
from exporters.card import (
    Card,
    CardSource,
    content_digest,
)
from exporters.checkpoints.identify import DEFAULT_MAX_BYTES, FileKind, identify
from exporters.checkpoints.normalization import find_normalization
from exporters.checkpoints.reader import Checkpoint, open_checkpoint
from exporters.errors import InvalidConfig, UnsupportedCheckpoint
from exporters.hybrid.config import DEFAULT_SEED, INFERRED_FROM, ConfigOrigin, HybridConfig, read_fields
from exporters.protocol import ExportRequest, OnStage, Stage, Status, check_request
from exporters.publication import locked
from exporters.spec import OPSET, ModelFormat, Normalization
from exporters.user_config import options_of

HYBRID = "cnn_lstm_hybrid"
RL_ENSEMBLE = "rl_ensemble"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """How an export ended, and the version's card."""

    status: Status
    card: Card


def export(
    request: ExportRequest, *, on_stage: OnStage = lambda _: None, max_bytes: int = DEFAULT_MAX_BYTES
) -> ExportResult:
    """Exports a checkpoint, or takes a ready-made model, and publishes it as one version.

    Args:
        request: what, whence and whereto.
        on_stage: told as each stage begins.
        max_bytes: limit on the file's size.

    Raises:
        ExportError: any of `exporters.errors`; the repository is then as it was.
    """
    check_request(request)
    on_stage(Stage.READING)
    path = Path(request.file_path)
    kind = identify(path, max_bytes=max_bytes)
    if kind is FileKind.STABLE_BASELINES3 and request.model_type != RL_ENSEMBLE:
        raise UnsupportedCheckpoint(
            f"Stable-Baselines3 agents can't be exported as {request.model_type}.",
            expected=f"model type {RL_ENSEMBLE}",
            got=f"{kind} for {request.model_type}",
            remedy=f"Export them as {RL_ENSEMBLE}; one agent is an ensemble of one.",
        )
    with locked(Path(request.repository), request.triton_model):
        if kind in (FileKind.ONNX, FileKind.TORCHSCRIPT):
            from exporters.ready_made import export_ready_made  # noqa: PLC0415 - imports onnx

            status, card = export_ready_made(request, kind, on_stage=on_stage, max_bytes=max_bytes)
        elif request.model_type == RL_ENSEMBLE:
            from exporters.rl.export import export_agents  # noqa: PLC0415 - of this route only

            status, card = export_agents(request, kind, on_stage=on_stage, max_bytes=max_bytes)
        else:
            status, card = _export_hybrid(request, on_stage=on_stage, max_bytes=max_bytes)
    return ExportResult(status=status, card=card)


def _export_hybrid(request: ExportRequest, *, on_stage: OnStage, max_bytes: int) -> tuple[Status, Card]:
    path = Path(request.file_path)
    published = draft.published_card(request)
    with open_checkpoint(path, max_bytes=max_bytes) as checkpoint:
        if request.model_type != HYBRID:
            raise UnsupportedCheckpoint(
                f"Weights alone can't be exported as {request.model_type}: their architecture isn't known.",
                expected=f"model type {HYBRID}, or a ready-made ONNX or TorchScript model",
                got=f"a torch checkpoint for {request.model_type}",
                remedy="Export the model with torch.onnx.export and publish the .onnx file.",
            )
        if published is not None and published.source.sha256 != checkpoint.sha256:
            draft.refuse_conflict(request, published)
        if checkpoint.config is None and request.config is None:
            raise InvalidConfig(
                "The checkpoint holds no configuration, and the request gives none.",
                expected="a 'config' in the checkpoint, or in the request (an empty one takes the defaults)",
                got="neither",
                remedy="Give the training configuration with the request: --set input_dim=50 …",
            )
        read_fields(request.config or {}, origin=ConfigOrigin.REQUEST)  # refused before torch is imported
        normalization = find_normalization(path, request=request.normalization, config=checkpoint.config)
        if published is not None:
            digest = _published_digest(request, checkpoint, normalization, published)
            if digest is not None and draft.is_published(request, published, digest):
                return Status.UNCHANGED, published

        on_stage(Stage.BUILDING)
        from exporters import graph_export, hybrid_export  # noqa: PLC0415 - import torch
        from exporters.verification import find_real_input  # noqa: PLC0415

        model = hybrid_export.build(checkpoint, request.config, normalization)
    digest = _digest(request, checkpoint, model.config, model.class_names, model.feature_names, normalization)
    if draft.is_published(request, published, digest) and published is not None:
        return Status.UNCHANGED, published
    card = graph_export.write(
        request,
        model,
        source=_source(checkpoint),
        digest=digest,
        model_format=_format(request),
        options=options_of(request, None),
        real_input=find_real_input(path.parent, model),
        on_stage=on_stage,
    )
    return Status.PUBLISHED, card


def _format(request: ExportRequest) -> ModelFormat:
    return request.format or ModelFormat.ONNX


def _source(checkpoint: Checkpoint) -> CardSource:
    return CardSource(
        file_name=checkpoint.file_name, sha256=checkpoint.sha256, size_bytes=checkpoint.size_bytes
    )


def _digest(
    request: ExportRequest,
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    class_names: tuple[str, ...] | None,
    feature_names: tuple[str, ...] | None,
    normalization: Normalization | None,
) -> str:
    return content_digest(
        model_type=request.model_type,
        source_sha256=checkpoint.sha256,
        config={**config, "class_names": class_names, "feature_names": feature_names},
        normalization=normalization,
        model_format=_format(request),
        device=options_of(request, None).device,
        options={
            **options_of(request, None).as_mapping(),
            "opset": OPSET if _format(request) is ModelFormat.ONNX else None,
            "mask_seed": DEFAULT_SEED,
        },
    )


def _published_digest(
    request: ExportRequest, checkpoint: Checkpoint, normalization: Normalization | None, published: Card
) -> str | None:
    """The digest that this request would have, found without torch: None where only building can tell.

    The effective configuration is what request and checkpoint state, the defaults, and what the tensors' shapes
    settle. Where the published card has just that configuration, from the same file, it is the effective one.
    """
    if published.source.sha256 != checkpoint.sha256:
        return None
    stated = read_fields(checkpoint.config or {}, origin=ConfigOrigin.CHECKPOINT)
    stated |= read_fields(request.config or {}, origin=ConfigOrigin.REQUEST)
    settled = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in published.config.items()
        if key in INFERRED_FROM
    }
    if any(stated.get(key, value) != value for key, value in settled.items()):
        return None
    effective = HybridConfig(**(stated | settled))
    return _digest(
        request,
        checkpoint,
        effective.as_mapping(),
        effective.class_names,
        effective.feature_names,
        normalization,
    )
