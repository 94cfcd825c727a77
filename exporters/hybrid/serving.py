"""The graph that is exported: normalisation, backbone, heads under all masks, ensemble, named outputs."""

import torch
from torch import Tensor, nn

from exporters.hybrid.config import HybridConfig
from exporters.hybrid.mc_dropout import MaskBank, MaskedHeads
from exporters.hybrid.network import HybridNetwork
from exporters.spec import Normalization, TensorSpec


def input_specs(config: HybridConfig) -> tuple[TensorSpec, ...]:
    """The graph's inputs, in order."""
    return (TensorSpec(name="x", shape=(config.input_dim, -1)),)


def output_specs(config: HybridConfig) -> tuple[TensorSpec, ...]:
    """The graph's outputs, in order."""
    classes, targets = config.num_classes, config.regression_targets
    samples, members = config.samples, config.num_ensemble_models
    return (
        TensorSpec(name="classification_probs", shape=(classes,)),
        TensorSpec(name="regression_pred", shape=(targets,)),
        TensorSpec(name="mc_regression", shape=(samples, targets)),
        TensorSpec(name="mc_probs", shape=(samples, classes)),
        TensorSpec(name="member_probs", shape=(members, classes)),
        TensorSpec(name="member_regression", shape=(members, targets)),
        TensorSpec(name="ensemble_weights", shape=(members,)),
        TensorSpec(name="attention_weights", shape=(-1,)),
    )


class Standardization(nn.Module):
    """(x - mean) / scale for each channel of float32 [batch, channels, time]."""

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.tensor(normalization.mean, dtype=torch.float32)[:, None])
        self.register_buffer("scale", torch.tensor(normalization.scale, dtype=torch.float32)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """Standardises float32 [batch, channels, time]."""
        return (x - self.mean) / self.scale


class EnsembleHeads(nn.Module):
    """All members as two batched products; dropout is off in serving.

    Copies the members' parameters into stacked buffers: weights [members, inputs, outputs].
    """

    def __init__(self, network: HybridNetwork) -> None:
        super().__init__()
        state = {name: value.detach() for name, value in network.ensemble_models.state_dict().items()}
        members = range(len(network.ensemble_models))
        self.num_classes = network.num_classes
        self.first_weight: Tensor
        self.first_bias: Tensor
        self.last_weight: Tensor
        self.last_bias: Tensor
        self.weights: Tensor
        self.register_buffer("first_weight", torch.stack([state[f"{m}.0.weight"].T for m in members]))
        self.register_buffer("first_bias", torch.stack([state[f"{m}.0.bias"] for m in members])[:, None])
        self.register_buffer("last_weight", torch.stack([state[f"{m}.3.weight"].T for m in members]))
        self.register_buffer("last_bias", torch.stack([state[f"{m}.3.bias"] for m in members])[:, None])
        self.register_buffer("weights", torch.softmax(network.ensemble_weights.detach(), dim=0)[None])

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluates all members on fused features float32 [batch, fusion].

        Returns:
            Class logits [batch, members, classes] and regression [batch, members, targets], float32.
        """
        hidden = torch.relu(fused @ self.first_weight + self.first_bias)
        outputs = (hidden @ self.last_weight + self.last_bias).transpose(0, 1)
        return outputs[..., : self.num_classes], outputs[..., self.num_classes :]


class HybridServing(nn.Module):
    """What Triton runs: raw features float32 [batch, channels, time] to the outputs of `output_specs`."""

    def __init__(self, network: HybridNetwork, masks: MaskBank, normalization: Normalization | None) -> None:
        super().__init__()
        self.standardization = nn.Identity() if normalization is None else Standardization(normalization)
        self.network = network
        self.heads = MaskedHeads(network.classification_head, network.regression_head.layers, masks)
        self.ensemble = EnsembleHeads(network)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Runs float32 [batch, channels, time]; returns the tensors of `output_specs`, in order."""
        fused, attention = self.network.features(self.standardization(x))
        base_logits, sampled_logits, sampled_regression = self.heads(fused)
        member_logits, member_regression = self.ensemble(fused)
        # The batch size is the input's own: of the fused features, torch's ONNX exporter (2.13) believes it
        # to be the example's and folds it into a constant.
        weights = self.ensemble.weights.expand(x.shape[0], -1)
        # Contiguous, since a server may copy an output's memory without looking at its strides.
        return (
            torch.softmax(base_logits, dim=-1),
            sampled_regression.mean(dim=1),
            sampled_regression,
            torch.softmax(sampled_logits, dim=-1),
            torch.softmax(member_logits, dim=-1).contiguous(),
            member_regression.contiguous(),
            weights.contiguous(),
            attention,
        )
