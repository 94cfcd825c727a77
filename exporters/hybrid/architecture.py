"""Reads a hybrid's architecture from the shapes of a checkpoint's tensors, and holds configurations to it.

What shapes cannot tell (sequence length, dropout rates, attention heads, Monte Carlo samples) comes from the
request, then the checkpoint's own configuration, then the defaults.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exporters.errors import ConfigMismatch, UnsupportedCheckpoint
from exporters.hybrid.config import INFERRED_FROM, ConfigOrigin, HybridConfig, read_fields
from exporters.hybrid.network import NetworkVariant

DATA_PARALLEL_PREFIX = "module."

UNUSED_KEYS = (
    "lstm_processor.output_projection.",
    "lstm_processor.sequence_decoder.",
    "lstm_processor.decoder_lstm.",
)
"""Prefixes of what a checkpoint may hold for sequence-to-sequence training and serving never runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The values of the configuration that the tensors determine, and the variant of the network."""

    fields: Mapping[str, Any]
    variant: NetworkVariant


def clean_state(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Brings a checkpoint's tensors to the network's names and to float32 on the CPU.

    Strips the prefix that DataParallel adds, drops the unused keys, and takes a pointwise convolution for
    the residual projection as the linear layer that it is.

    Raises:
        UnsupportedCheckpoint: Not a mapping of names to tensors, or a tensor holds NaN or infinity.
    """
    wrapped = bool(state_dict) and all(str(name).startswith(DATA_PARALLEL_PREFIX) for name in state_dict)
    tensors: dict[str, Tensor] = {}
    for raw_name, tensor in state_dict.items():
        name = str(raw_name).removeprefix(DATA_PARALLEL_PREFIX) if wrapped else str(raw_name)
        if name.startswith(UNUSED_KEYS):
            continue
        if not isinstance(tensor, Tensor):
            raise UnsupportedCheckpoint(
                f"'{name}' in the checkpoint's state is not a tensor.",
                expected="a state dict: names to tensors",
                got=type(tensor).__name__,
            )
        tensors[name] = _as_float32(name, tensor)
    residual = tensors.get("cnn_extractor.residual_projection.weight")
    if residual is not None and residual.ndim == 3 and residual.shape[2] == 1:
        tensors["cnn_extractor.residual_projection.weight"] = residual.squeeze(2)
    return tensors


def infer_architecture(tensors: Mapping[str, Tensor]) -> Architecture:
    """Reads dimensions and counts from the shapes of a cleaned state.

    Raises:
        UnsupportedCheckpoint: A tensor that tells them is missing or of another rank.
    """
    convolutions = [
        _shape(tensors, f"cnn_extractor.conv_layers.{i}.weight", 3)
        for i in range(_count(tensors, "cnn_extractor.conv_layers.{}.weight"))
    ]
    filters, channels, _ = convolutions[0]
    hidden = _shape(tensors, "lstm_processor.lstm_layers.0.weight_hh_l0", 2)[1]
    fusion = _shape(tensors, "feature_fusion.cnn_projection.weight", 2)[0]
    lstm_inputs = _shape(tensors, "lstm_processor.input_projection.weight", 2)[1]
    return Architecture(
        fields={
            "input_dim": channels,
            "cnn_filter_sizes": tuple(kernel for _, _, kernel in convolutions),
            "cnn_num_filters": filters,
            "lstm_hidden_dim": hidden,
            "lstm_num_layers": _count(tensors, "lstm_processor.lstm_layers.{}.weight_hh_l0"),
            "lstm_bidirectional": "lstm_processor.lstm_layers.0.weight_hh_l0_reverse" in tensors,
            "feature_fusion_dim": fusion,
            "num_classes": _shape(tensors, "classification_head.4.weight", 2)[0],
            "regression_targets": _shape(tensors, "regression_head.layers.6.weight", 2)[0],
            "num_ensemble_models": _count(tensors, "ensemble_models.{}.0.weight"),
        },
        variant=NetworkVariant(
            lstm_reads_input=lstm_inputs == channels != fusion // 2,
            residual_projected="cnn_extractor.residual_projection.weight" in tensors
            or channels != filters * len(convolutions),
            temporal_attention_dim=_shape(tensors, "lstm_processor.attention.attention_linear.weight", 2)[0],
        ),
    )


def effective_config(
    architecture: Architecture,
    checkpoint_config: Mapping[str, Any],
    request_config: Mapping[str, Any] | None,
) -> HybridConfig:
    """Merges what was said with what the tensors show.

    A key that both the request and the checkpoint's configuration give is the request's, so a caller can
    correct a checkpoint whose own configuration is wrong.

    Raises:
        ConfigMismatch: The request, or the checkpoint's configuration, contradicts the tensors.
        InvalidConfig: Unknown key in the request, value of the wrong type or range, or a resulting
            configuration that no network can have.
    """
    given = read_fields(request_config or {}, origin=ConfigOrigin.REQUEST)
    recorded = read_fields(checkpoint_config, origin=ConfigOrigin.CHECKPOINT)
    stated = recorded | given
    for key, actual in architecture.fields.items():
        if key in stated and stated[key] != actual:
            origin = ConfigOrigin.REQUEST if key in given else ConfigOrigin.CHECKPOINT
            raise ConfigMismatch(
                f"The {origin.value}'s configuration has {key} = {_show(stated[key])}, but the checkpoint's "
                f"tensors have {key} = {_show(actual)} (from '{INFERRED_FROM[key]}').",
                expected=f"{key} = {_show(actual)} (checkpoint's tensors)",
                got=f"{key} = {_show(stated[key])} ({origin.value}'s configuration)",
                remedy=f"Set '{key}' to {_show(actual)} in the request's config, or load another checkpoint.",
            )
    return HybridConfig(**(stated | dict(architecture.fields)))


def _show(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _as_float32(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.detach().cpu()
    converted = tensor.detach().to(device="cpu", dtype=torch.float32)
    if not bool(torch.isfinite(converted).all()):
        raise UnsupportedCheckpoint(
            f"'{name}' in the checkpoint holds NaN or infinite values in float32.",
            expected="finite weights",
            got="NaN or infinity",
            remedy="Export a checkpoint from before the training diverged.",
        )
    return converted


def _shape(tensors: Mapping[str, Tensor], name: str, rank: int) -> tuple[int, ...]:
    tensor = tensors.get(name)
    if tensor is None or tensor.ndim != rank or 0 in tensor.shape:
        raise UnsupportedCheckpoint(
            f"The checkpoint is not a cnn_lstm_hybrid: '{name}' is missing or has another rank.",
            expected=f"a non-empty tensor of rank {rank} under '{name}'",
            got="nothing" if tensor is None else f"shape {list(tensor.shape)}",
            remedy="Check that the file holds the state dict of a CNN-LSTM hybrid.",
        )
    return tuple(tensor.shape)


def _count(tensors: Mapping[str, Tensor], template: str) -> int:
    pattern = re.compile(re.escape(template).replace(r"\{\}", r"(\d+)"))
    indices = {int(match[1]) for name in tensors if (match := pattern.fullmatch(name))}
    if not indices or indices != set(range(len(indices))):
        raise UnsupportedCheckpoint(
            f"The checkpoint is not a cnn_lstm_hybrid: keys '{template.format('*')}' must be numbered from 0.",
            expected=f"'{template.format(0)}' and on, without gaps",
            got=f"numbers {sorted(indices)}" if indices else "no such key",
            remedy="Check that the file holds the state dict of a CNN-LSTM hybrid.",
        )
    return len(indices)
