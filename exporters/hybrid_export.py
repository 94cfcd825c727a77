"""The half of a hybrid's export that needs torch: tensors to a graph."""

from collections.abc import Mapping
from typing import Any

import torch

from exporters.checkpoints.reader import Checkpoint
from exporters.hybrid.build import build_hybrid
from exporters.spec import ExportableModel, Normalization


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
