"""From a checkpoint's tensors and configurations to an exportable hybrid.

Reading files is `exporters.checkpoint`'s; writing them is the writers'.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from exporters.checkpoints.normalization import parse_normalization
from exporters.errors import ConfigMismatch, UnsupportedCheckpoint, shown
from exporters.hybrid.architecture import Architecture, clean_state, effective_config, infer_architecture
from exporters.hybrid.config import DEFAULT_SEED, HybridConfig
from exporters.hybrid.mc_dropout import MaskBank
from exporters.hybrid.network import HybridNetwork
from exporters.hybrid.serving import HybridServing, input_specs, output_specs
from exporters.spec import ExportableModel, MCDropout, Normalization

DESCRIPTION = (
    "CNN-LSTM hybrid: convolutions with self-attention and a bidirectional LSTM, fused by cross attention; "
    "classification and regression with Monte Carlo dropout, and an ensemble of heads."
)

_EXAMPLE_SEED = 0
# Layers that checkpoints in use have with and without a bias.
_BIAS_OPTIONAL = ("conv_layers.", "attention.")
_SHOWN_KEYS = 5


def build_hybrid(
    state_dict: Mapping[str, Tensor],
    checkpoint_config: Mapping[str, Any],
    request_config: Mapping[str, Any] | None,
    *,
    normalization: Normalization | None = None,
    metrics: Mapping[str, Any] = MappingProxyType({}),
    mc_seed: int = DEFAULT_SEED,
) -> ExportableModel:
    """Builds the serving graph of a CNN-LSTM hybrid checkpoint.

    Args:
        state_dict: The checkpoint's tensors, under the names of the checkpoints in use.
        checkpoint_config: The checkpoint's own configuration; unknown keys are ignored.
        request_config: The caller's configuration; wins over the checkpoint's, and is checked strictly.
        normalization: Per-channel mean and scale to fold in. None takes `normalization` of the checkpoint's
            configuration, and without that leaves the input as it is.
        metrics: Of training, for the card.
        mc_seed: Seed of the Monte Carlo masks; recorded in the result.

    Raises:
        UnsupportedCheckpoint: The tensors are not a hybrid's.
        ConfigMismatch: A configuration, or the normalisation, contradicts the tensors.
        InvalidConfig: A configuration has an unknown key or an unusable value.
    """
    tensors = clean_state(state_dict)
    architecture = infer_architecture(tensors)
    config = effective_config(architecture, checkpoint_config, request_config)
    network = load_network(tensors, config, architecture)
    if normalization is None and (recorded := checkpoint_config.get("normalization")) is not None:
        normalization = parse_normalization(recorded, source="the checkpoint's config.normalization")
    if normalization is not None:
        _check_normalization(normalization, config)
    masks = MaskBank.draw(config, seed=mc_seed)

    def example(batch: int, time: int | None) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(_EXAMPLE_SEED)
        x = torch.randn(batch, config.input_dim, time or config.sequence_length, generator=generator)
        if normalization is not None:
            x = x * torch.tensor(normalization.scale)[:, None] + torch.tensor(normalization.mean)[:, None]
        return (x,)

    return ExportableModel(
        module=HybridServing(network, masks, normalization).eval(),
        inputs=input_specs(config),
        outputs=output_specs(config),
        example=example,
        config=config.as_mapping(),
        time_lengths=tuple(sorted({1, max(1, config.sequence_length // 2), config.sequence_length})),
        description=DESCRIPTION,
        normalization=normalization,
        mc_dropout=MCDropout(samples=config.samples, seed=mc_seed)
        if config.use_monte_carlo_dropout
        else None,
        class_names=config.class_names,
        feature_names=config.feature_names,
        metrics=metrics,
    )


def load_network(
    tensors: Mapping[str, Tensor], config: HybridConfig, architecture: Architecture
) -> HybridNetwork:
    """Loads a cleaned state into the network of its architecture, in evaluation mode.

    Raises:
        UnsupportedCheckpoint: Keys are missing or unknown.
        ConfigMismatch: A tensor's shape does not follow from the others'.
    """
    network = HybridNetwork(config, architecture.variant)
    _match_biases(network, tensors)
    wanted = network.state_dict()
    state = dict(tensors)
    # Absent from checkpoints of old torch versions, and from those trained without the ensemble's weights.
    for name, default in wanted.items():
        if name.endswith(".num_batches_tracked") or name == "ensemble_weights":
            state.setdefault(name, default)
    _refuse_keys(wanted.keys() - state.keys(), "lacks keys of a cnn_lstm_hybrid")
    _refuse_keys(state.keys() - wanted.keys(), "has keys that a cnn_lstm_hybrid does not know")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise ConfigMismatch(
                f"'{name}' has shape {list(state[name].shape)}, but the checkpoint's other tensors and the "
                f"configuration make it {list(tensor.shape)}.",
                expected=f"{name}: shape {list(tensor.shape)}",
                got=f"{name}: shape {list(state[name].shape)}",
                remedy="Check that the whole state dict comes from one network.",
            )
    network.load_state_dict(state)
    return network.eval().requires_grad_(requires_grad=False)


def _check_normalization(normalization: Normalization, config: HybridConfig) -> None:
    for name, values in (("mean", normalization.mean), ("scale", normalization.scale)):
        if len(values) != config.input_dim:
            raise ConfigMismatch(
                f"The normalisation's {name} has {len(values)} values for {config.input_dim} input channels.",
                expected=f"{config.input_dim} values (input_dim)",
                got=f"{len(values)} values in normalization.{name}",
                remedy="Give one mean and one scale for each channel.",
            )


def _match_biases(network: HybridNetwork, tensors: Mapping[str, Tensor]) -> None:
    for name, module in network.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv1d) or not any(part in name for part in _BIAS_OPTIONAL):
            continue
        if f"{name}.bias" not in tensors:
            module.register_parameter("bias", None)
        elif module.bias is None:
            module.bias = nn.Parameter(torch.zeros(module.weight.shape[0]))


def _refuse_keys(names: set[str], what: str) -> None:
    if names:
        first = sorted(names)[:_SHOWN_KEYS]
        more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
        raise UnsupportedCheckpoint(
            f"The checkpoint {what}: {', '.join(map(shown, first))}{more}.",
            expected="the state dict of a cnn_lstm_hybrid",
            got=f"{len(names)} such keys",
            remedy="Check that the file is the checkpoint of this type of model.",
        )
