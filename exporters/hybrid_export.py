"""The half of a hybrid's export that needs torch: tensors to a graph, and the graph written, verified, published."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from exporters import draft
from exporters.card import (
    ARTEFACTS,
    Card,
    CardMCDropout,
    CardSource,
    CardVerification,
    card_normalization,
    card_tensors,
)
from exporters.checkpoints.reader import Checkpoint
from exporters.config_pbtxt import ServingOptions, build_config
from exporters.hybrid.build import build_hybrid
from exporters.protocol import ExportRequest, OnStage, Stage
from exporters.publication import staged
from exporters.spec import ExportableModel, ModelFormat, Normalization
from exporters.verification import find_real_input, verify
from exporters.writers.onnx import write_onnx
from exporters.writers.torchscript import write_torchscript


def build(
    checkpoint: Checkpoint, config: Mapping[str, Any] | None, normalization: Normalization | None
) -> ExportableModel:
    """Builds the serving graph of an open checkpoint.

    Args:
        checkpoint: its tensors are read here.
        config: the request's configuration.
        normalization: to fold into the graph.

    Raises:
        ExportError: the checkpoint isn't a hybrid's, or disagrees with a configuration.
    """
    # An export runs beside serving. On two busy cores one thread took 2.5 s of processor time and two took 7 s: they
    # wait for each other by spinning.
    torch.set_num_threads(1)
    arrays = checkpoint.arrays()
    recorded = {key: value for key, value in (checkpoint.config or {}).items() if key != "normalization"}
    return build_hybrid(
        {name: torch.from_numpy(array) for name, array in arrays.items()},
        recorded,
        config,
        normalization=normalization,
        metrics=checkpoint.metrics,
    )


def write(
    request: ExportRequest,
    model: ExportableModel,
    *,
    source: CardSource,
    digest: str,
    model_format: ModelFormat,
    options: ServingOptions,
    on_stage: OnStage,
) -> Card:
    """Writes, verifies and publishes a graph.

    Raises:
        ExportError: the writer or the verification failed, or there is no room; nothing is left behind.
    """
    with staged(Path(request.repository), request.triton_model) as folder:
        artefact = folder / ARTEFACTS[model_format]
        on_stage(Stage.EXPORTING)
        writer = {ModelFormat.ONNX: write_onnx, ModelFormat.TORCHSCRIPT: write_torchscript}[model_format]
        versions: Mapping[str, Any] = {**writer(model, artefact)}
        on_stage(Stage.VERIFYING)
        verified = verify(
            model,
            artefact,
            model_format,
            max_batch_size=options.max_batch_size,
            real_input=find_real_input(Path(request.file_path).parent, model),
        )
        on_stage(Stage.PUBLISHING)
        inputs = card_tensors(model.inputs, model_format=model_format)
        outputs = card_tensors(model.outputs, model_format=model_format)
        return draft.finish(
            request,
            folder,
            draft.Draft(
                model_format=model_format,
                source=source,
                content_digest=digest,
                inputs=inputs,
                outputs=outputs,
                serving=build_config(
                    name=request.triton_model,
                    model_format=model_format,
                    inputs=inputs,
                    outputs=outputs,
                    options=options,
                    digest=digest,
                ),
                device=options.device,
                description=model.description,
                config=model.config,
                normalization=card_normalization(model.normalization),
                mc_dropout=None
                if model.mc_dropout is None
                else CardMCDropout(samples=model.mc_dropout.samples, seed=model.mc_dropout.seed),
                class_names=model.class_names,
                feature_names=model.feature_names,
                metrics=model.metrics,
                verification=CardVerification(
                    max_relative_error=verified.max_relative_error,
                    batch_sizes=verified.batch_sizes,
                    time_lengths=verified.time_lengths,
                    reference="torch",
                ),
                versions={
                    "torch": str(torch.__version__),
                    "onnxruntime": onnxruntime.__version__,
                    **versions,
                },
            ),
        )
