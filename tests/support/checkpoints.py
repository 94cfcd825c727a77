"""Random but valid hybrid checkpoints, saved in the ways that training code saves them."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from exporters.hybrid.config import HybridConfig
from exporters.hybrid.network import HybridNetwork, NetworkVariant

FOREIGN_MODULE = "training.models.hybrid"
"""Module that the pickled `HybridModelConfig` claims to come from; it doesn't exist."""

SMALL: Mapping[str, Any] = {
    "input_dim": 12,
    "sequence_length": 12,
    "cnn_num_filters": 8,
    "lstm_hidden_dim": 16,
    "lstm_num_layers": 2,
    "feature_fusion_dim": 32,
    "num_ensemble_models": 3,
}
"""The small configuration of the tests: exports in well under a second."""


def random_state(
    config: Mapping[str, Any] = SMALL,
    *,
    seed: int = 0,
    unused_keys: bool = False,
    variant: NetworkVariant | None = None,
) -> dict[str, Tensor]:
    """A state dict with everything random: also batch statistics, norms and ensemble weights."""
    parsed = HybridConfig.from_mapping(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = dict(HybridNetwork(parsed, variant).state_dict())
        for name, tensor in state.items():
            if name.endswith(("running_mean", "ensemble_weights")) or "norm" in name:
                noise = torch.rand(tensor.shape) if tensor.is_floating_point() else torch.zeros(tensor.shape)
                state[name] = tensor + noise.to(tensor.dtype)
        if unused_keys:
            state |= _decoder_state(parsed)
    return state


def save_checkpoint(
    path: Path,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = SMALL,
    *,
    legacy: bool = False,
    pickled_config: bool = False,
    state_key: str = "model_state_dict",
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Saves a checkpoint.

    Args:
        path: Where.
        state: Tensors.
        config: Configuration; None leaves the key out.
        legacy: torch's format from before the zip.
        pickled_config: Pickle the configuration as an object of a dataclass `HybridModelConfig`, whose module
            nobody else has, instead of as a dict.
        state_key: `model_state_dict` or `state_dict`.
        extra: Further keys beside the state (metrics, epoch, …).
    """
    payload: dict[str, Any] = {state_key: dict(state), **(extra or {})}
    with foreign_config_class(config or {}) as instance:
        if config is not None:
            payload["config"] = instance if pickled_config else dict(config)
        torch.save(payload, path, _use_new_zipfile_serialization=not legacy)
    return path


@contextmanager
def foreign_config_class(config: Mapping[str, Any]) -> Iterator[Any]:
    """An instance of `training.models.hybrid.HybridModelConfig`, picklable while the context lasts."""
    parts = FOREIGN_MODULE.split(".")
    names = [".".join(parts[: end + 1]) for end in range(len(parts))]
    modules = {name: ModuleType(name) for name in names}
    cls = make_dataclass("HybridModelConfig", list(config))
    cls.__module__ = FOREIGN_MODULE
    cls.__qualname__ = "HybridModelConfig"
    vars(modules[FOREIGN_MODULE])["HybridModelConfig"] = cls
    sys.modules.update(modules)
    try:
        yield cls(**config)
    finally:
        for name in names:
            del sys.modules[name]


def _decoder_state(config: HybridConfig) -> dict[str, Tensor]:
    hidden, outputs = config.lstm_hidden_dim, config.feature_fusion_dim // 2
    decoder = nn.ModuleDict(
        {
            "output_projection": nn.Linear(hidden, hidden),
            "sequence_decoder": nn.Linear(hidden, outputs),
            "decoder_lstm": nn.LSTM(outputs + config.lstm_width, hidden, batch_first=True),
        }
    )
    return {f"lstm_processor.{name}": tensor for name, tensor in decoder.state_dict().items()}
