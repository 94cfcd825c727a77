"""The CNN-LSTM hybrid as a torch module, with the parameter names of the checkpoints in use.

One module serves training (dropout live, raw logits) and export (`exporters.hybrid.serving` wraps it). Where
the description of the architecture leaves room, this is the reading:

* the LSTM reads the convolutional features; a checkpoint whose `input_projection` is as wide as the raw
  input, and not as the features, gets the raw input (`lstm_reads_input`);
* `residual_projection` is always there; without one in the checkpoint the raw input must already have the
  width of the features and is added as it is (`residual_projected`);
* a bidirectional layer's output is both directions side by side, so twice `lstm_hidden_dim`;
* `cnn_attention_heads` is the self-attention's; the cross attention has 8 heads whatever it says;
* even kernels pad one step more behind than before.

The heads read the last time step only, so the fusion computes no other.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from exporters.hybrid.config import CROSS_ATTENTION_HEADS, HybridConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkVariant:
    """What differs between checkpoints without a configuration key for it; read from the tensors' shapes.

    `temporal_attention_dim` is the width of the temporal attention's hidden layer, None for the LSTM's.
    """

    lstm_reads_input: bool = False
    residual_projected: bool = True
    temporal_attention_dim: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridLogits:
    """What training needs: raw head outputs, float32.

    `class_logits` [batch, classes], `regression` [batch, targets], `member_logits` [batch, members, classes],
    `member_regression` [batch, members, targets].
    """

    class_logits: Tensor
    regression: Tensor
    member_logits: Tensor
    member_regression: Tensor


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention of `query` over `memory`.

    Source: Vaswani et al., "Attention Is All You Need" (2017), equation 1 and section 3.2.2.
    """

    def __init__(self, width: int, heads: int, dropout_rate: float) -> None:
        super().__init__()
        self.split = (heads, width // heads)
        self.scale = (width // heads) ** -0.5
        self.w_q = nn.Linear(width, width)
        self.w_k = nn.Linear(width, width)
        self.w_v = nn.Linear(width, width)
        self.w_o = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """Attends from `query` float32 [batch, time_q, width] to `memory` float32 [batch, time_m, width]."""
        q = self._by_head(self.w_q(query)) * self.scale
        k = self._by_head(self.w_k(memory))
        v = self._by_head(self.w_v(memory))
        weights = self.dropout(torch.softmax(q @ k.transpose(-2, -1), dim=-1))
        attended: Tensor = self.w_o((weights @ v).transpose(1, 2).flatten(2))
        return attended

    def _by_head(self, values: Tensor) -> Tensor:
        split: Tensor = torch.unflatten(values, -1, self.split)
        return split.transpose(1, 2)


class CNNExtractor(nn.Module):
    """Parallel convolutions of several widths, self-attention, and a residual of the raw input."""

    def __init__(self, config: HybridConfig, variant: NetworkVariant) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(
            nn.Conv1d(config.input_dim, config.cnn_num_filters, kernel, padding=kernel // 2, bias=False)
            for kernel in config.cnn_filter_sizes
        )
        # Padded alike on both sides, an even kernel gives one step too many; the first goes.
        self.surplus = tuple(1 - kernel % 2 for kernel in config.cnn_filter_sizes)
        self.batch_norms = nn.ModuleList(
            nn.BatchNorm1d(config.cnn_num_filters) for _ in config.cnn_filter_sizes
        )
        self.attention = MultiHeadAttention(config.cnn_width, config.cnn_attention_heads, config.dropout_rate)
        self.residual_projection = (
            nn.Linear(config.input_dim, config.cnn_width) if variant.residual_projected else nn.Identity()
        )
        self.dropout = nn.Dropout(config.dropout_rate)
        self.feature_projection = nn.Linear(config.cnn_width, config.feature_fusion_dim // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps float32 [batch, channels, time] to features float32 [batch, time, fusion / 2]."""
        columns = []
        for conv, norm, surplus in zip(self.conv_layers, self.batch_norms, self.surplus, strict=True):
            convolved = conv(x)[:, :, 1:] if surplus else conv(x)
            columns.append(torch.relu(norm(convolved)))
        features = torch.cat(columns, dim=1).transpose(1, 2)
        features = self.attention(features, features) + self.residual_projection(x.transpose(1, 2))
        projected: Tensor = self.feature_projection(self.dropout(features))
        return projected


class TemporalAttention(nn.Module):
    """Additive attention over time against a learned context vector.

    Source: Yang et al., "Hierarchical Attention Networks" (2016), equations 5 to 7.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.attention_linear = nn.Linear(width, hidden)
        self.context_vector = nn.Linear(hidden, 1, bias=False)

    def forward(self, encoded: Tensor) -> Tensor:
        """Weights over time, float32 [batch, time], of `encoded` float32 [batch, time, width]."""
        scores = self.context_vector(torch.tanh(self.attention_linear(encoded)))
        return torch.softmax(scores.squeeze(-1), dim=1)


class LSTMProcessor(nn.Module):
    """Stacked one-layer LSTMs, each normalised and, from the second on, with a residual after the norm."""

    def __init__(self, config: HybridConfig, variant: NetworkVariant) -> None:
        super().__init__()
        hidden, width = config.lstm_hidden_dim, config.lstm_width
        inputs = config.input_dim if variant.lstm_reads_input else config.feature_fusion_dim // 2
        self.input_projection = nn.Linear(inputs, hidden)
        self.lstm_layers = nn.ModuleList(
            nn.LSTM(
                hidden if layer == 0 else width,
                hidden,
                batch_first=True,
                bidirectional=config.lstm_bidirectional,
            )
            for layer in range(config.lstm_num_layers)
        )
        self.layer_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.lstm_num_layers))
        self.dropout = nn.Dropout(config.dropout_rate)
        self.attention = TemporalAttention(width, variant.temporal_attention_dim or width)
        # nn.LSTM's own zero state would put the exporting machine's device into a traced graph as a constant;
        # a buffer moves with the module.
        self.initial_state: Tensor
        self.register_buffer(
            "initial_state", torch.zeros(2 if config.lstm_bidirectional else 1, 1, hidden), persistent=False
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes float32 [batch, time, inputs].

        Returns:
            The encoded sequence float32 [batch, time, width] and the attention over time float32 [batch, time].
        """
        state = self.initial_state.expand(-1, features.shape[0], -1).contiguous()
        current: Tensor = self.input_projection(features)
        for layer, (lstm, norm) in enumerate(zip(self.lstm_layers, self.layer_norms, strict=True)):
            encoded = norm(lstm(current, (state, state))[0])
            current = self.dropout(encoded + current if layer else encoded)
        return current, self.attention(current)


class FeatureFusion(nn.Module):
    """Cross attention both ways through one set of weights, then two fused layers; last time step only."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        width = config.feature_fusion_dim
        self.cnn_projection = nn.Linear(width // 2, width)
        self.lstm_projection = nn.Linear(config.lstm_width, width)
        self.cross_attention = MultiHeadAttention(width, CROSS_ATTENTION_HEADS, config.dropout_rate)
        self.fusion_layers = nn.Sequential(
            nn.Linear(2 * width, width),
            nn.LayerNorm(width),
            nn.ReLU(),
            nn.Dropout(config.dropout_rate),
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.ReLU(),
            nn.Dropout(config.dropout_rate),
        )

    def forward(self, cnn_features: Tensor, lstm_features: Tensor) -> Tensor:
        """Fuses float32 [batch, time, fusion / 2] and [batch, time, lstm width] to [batch, fusion]."""
        cnn = self.cnn_projection(cnn_features)
        lstm = self.lstm_projection(lstm_features)
        cnn_attended = self.cross_attention(cnn[:, -1:], lstm)
        lstm_attended = self.cross_attention(lstm[:, -1:], cnn)
        fused: Tensor = self.fusion_layers(torch.cat([cnn_attended, lstm_attended], dim=-1).squeeze(1))
        return fused


class RegressionHead(nn.Module):
    """Three layers with dropout after the first two."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        width = config.feature_fusion_dim
        widths = (width, width // 2, width // 4)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(config.dropout_rate)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], config.regression_targets))

    def forward(self, fused: Tensor) -> Tensor:
        """Maps fused features float32 [batch, fusion] to float32 [batch, targets]."""
        values: Tensor = self.layers(fused)
        return values


class HybridNetwork(nn.Module):
    """The whole hybrid: backbone, two heads, and an ensemble of small heads."""

    def __init__(self, config: HybridConfig, variant: NetworkVariant | None = None) -> None:
        super().__init__()
        variant = variant or NetworkVariant()
        width = config.feature_fusion_dim
        self.num_classes = config.num_classes
        self.lstm_reads_input = variant.lstm_reads_input
        self.cnn_extractor = CNNExtractor(config, variant)
        self.lstm_processor = LSTMProcessor(config, variant)
        self.feature_fusion = FeatureFusion(config)
        self.classification_head = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.LayerNorm(width // 2),
            nn.ReLU(),
            nn.Dropout(config.dropout_rate),
            nn.Linear(width // 2, config.num_classes),
        )
        self.regression_head = RegressionHead(config)
        self.ensemble_models = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width // 2),
                nn.ReLU(),
                nn.Dropout(config.ensemble_dropout_rate),
                nn.Linear(width // 2, config.num_classes + config.regression_targets),
            )
            for _ in range(config.num_ensemble_models)
        )
        self.ensemble_weights = nn.Parameter(torch.ones(config.num_ensemble_models))

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the backbone on normalised input float32 [batch, channels, time].

        Returns:
            Fused features of the last step float32 [batch, fusion], and the temporal attention [batch, time].
        """
        cnn_features = self.cnn_extractor(x)
        lstm_input = x.transpose(1, 2) if self.lstm_reads_input else cnn_features
        encoded, attention = self.lstm_processor(lstm_input)
        return self.feature_fusion(cnn_features, encoded), attention

    def forward(self, x: Tensor) -> HybridLogits:
        """All heads on normalised input float32 [batch, channels, time]; dropout as the module's mode says."""
        fused, _ = self.features(x)
        members = torch.stack([member(fused) for member in self.ensemble_models], dim=1)
        return HybridLogits(
            class_logits=self.classification_head(fused),
            regression=self.regression_head(fused),
            member_logits=members[..., : self.num_classes],
            member_regression=members[..., self.num_classes :],
        )
