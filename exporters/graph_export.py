"""From a graph in torch to a published version: written, verified, described, published. Of any family."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

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
from exporters.config_pbtxt import ServingOptions, build_config
from exporters.protocol import ExportRequest, OnStage, Stage
from exporters.publication import staged
from exporters.spec import ExportableModel, ModelFormat
from exporters.verification import verify
from exporters.writers.onnx import write_onnx
from exporters.writers.torchscript import write_torchscript


def write(
    request: ExportRequest,
    model: ExportableModel,
    *,
    source: CardSource,
    digest: str,
    model_format: ModelFormat,
    options: ServingOptions,
    real_input: Tensor | None,
    on_stage: OnStage,
) -> Card:
    """Writes, verifies and publishes a graph.

    Args:
        request: what was asked for.
        model: the graph.
        source: the file or folder that it was made of.
        digest: of the version's content.
        model_format: to write.
        options: of serving.
        real_input: to verify with, as `exporters.verification.verify` takes it.
        on_stage: told as each stage begins.

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
            real_input=real_input,
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
