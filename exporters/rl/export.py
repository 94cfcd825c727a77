"""An ensemble's export from request to published version. Agents are read without torch; it builds the graph."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporters import draft
from exporters.card import Card, CardSource, content_digest
from exporters.checkpoints.identify import FileKind
from exporters.errors import InvalidConfig, UnsupportedCheckpoint
from exporters.protocol import ExportRequest, OnStage, Stage, Status
from exporters.rl.bundle import open_bundle
from exporters.rl.ensemble import Ensemble, read_ensemble
from exporters.spec import OPSET, ModelFormat
from exporters.user_config import options_of


def export_agents(
    request: ExportRequest, kind: FileKind, *, on_stage: OnStage, max_bytes: int
) -> tuple[Status, Card]:
    """Exports a folder of agents, an archive of agents, or one agent.

    Args:
        request: what, whence, whereto.
        kind: of the file, by its content.
        on_stage: told as each stage begins.
        max_bytes: limit on the size of the archive, and of all that is read.

    Raises:
        ExportError: any of `exporters.errors`; nothing is published then.
    """
    path = Path(request.file_path)
    _check_request(request, kind, path, max_bytes)
    published = draft.published_card(request)
    with open_bundle(path, max_bytes=max_bytes) as bundle:
        ensemble = read_ensemble(bundle, request.config)
        source = CardSource(file_name=bundle.file_name, sha256=bundle.sha256, size_bytes=bundle.size_bytes)
    digest = _digest(request, source, ensemble.config())
    if draft.is_published(request, published, digest) and published is not None:
        return Status.UNCHANGED, published
    on_stage(Stage.BUILDING)
    return Status.PUBLISHED, _write(request, ensemble, source=source, digest=digest, on_stage=on_stage)


def _write(
    request: ExportRequest, ensemble: Ensemble, *, source: CardSource, digest: str, on_stage: OnStage
) -> Card:
    from exporters import graph_export  # noqa: PLC0415 - imports torch
    from exporters.rl.build import build_model, find_observations  # noqa: PLC0415

    model = build_model(ensemble)
    return graph_export.write(
        request,
        model,
        source=source,
        digest=digest,
        model_format=request.format or ModelFormat.ONNX,
        options=options_of(request, None),
        real_input=find_observations(Path(request.file_path), model),
        on_stage=on_stage,
    )


def _check_request(request: ExportRequest, kind: FileKind, path: Path, max_bytes: int) -> None:
    if kind is not FileKind.STABLE_BASELINES3:
        if kind is FileKind.TORCH_ZIP:  # or any damaged zip: opening it says how
            with open_bundle(path, max_bytes=max_bytes):
                pass
        raise UnsupportedCheckpoint(
            f"{path.name} holds no Stable-Baselines3 agents.",
            expected="a folder or zip of agents' zips, one agent's zip, or a ready-made ONNX or TorchScript model",
            got="a folder without them" if path.is_dir() else str(kind),
            remedy="Save each agent with model.save(…) into one folder.",
        )
    if request.normalization is not None:
        raise InvalidConfig(
            "An ensemble has no normalisation of its own: each agent was trained with one, or without.",
            expected='"normalization" of an agent in manifest.json: VecNormalize\'s statistics as .json or .npz',
            got="a normalisation in the request",
        )


def _digest(request: ExportRequest, source: CardSource, config: Mapping[str, Any]) -> str:
    model_format = request.format or ModelFormat.ONNX
    options = options_of(request, None)
    return content_digest(
        model_type=request.model_type,
        source_sha256=source.sha256,
        config=config,
        normalization=None,
        model_format=model_format,
        device=options.device,
        options={
            **options.as_mapping(),
            "opset": OPSET if model_format is ModelFormat.ONNX else None,
        },
    )
