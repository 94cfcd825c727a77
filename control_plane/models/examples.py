"""Inputs that any version takes: for warm-up and measurements."""

import numpy as np

from control_plane.models.card import CardTensor, ModelCard
from control_plane.triton.datatypes import Array, dtype_of


def example_inputs(card: ModelCard, *, rows: int = 1) -> dict[str, Array]:
    """Zeros of a valid shape for each input, `[rows, ...]`, by Triton tensor name.

    A dynamic axis gets the configuration's `sequence_length` where there is one, else 1. A model without a batch axis
    has no axis for rows either.
    """
    return {tensor.triton_name: _zeros(tensor, card, rows) for tensor in card.inputs}


def _zeros(tensor: CardTensor, card: ModelCard, rows: int) -> Array:
    configured = card.config.get("sequence_length")
    dynamic = configured if isinstance(configured, int) and configured > 0 else 1
    shape = [dynamic if size < 0 else size for size in tensor.shape]
    batch = [rows] if card.max_batch_size > 0 else []
    return np.zeros((*batch, *shape), dtype_of(tensor.datatype))
