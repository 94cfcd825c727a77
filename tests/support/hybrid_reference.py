"""The hybrid written a second time, straight from its description and from a state dict.

Nothing is shared with `exporters.hybrid`: every step runs over all time steps, one member and one mask at a
time, with torch's own attention and LSTM.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it


@dataclass(frozen=True, kw_only=True)
class ReferenceOutputs:
    """Head outputs without dropout; the weights over time and of the ensemble."""

    fused: Tensor
    class_probs: Tensor
    regression: Tensor
    member_probs: Tensor
    member_regression: Tensor
    ensemble_weights: Tensor
    attention: Tensor


def reference_forward(state: Mapping[str, Tensor], x: Tensor, *, heads: int = 8) -> ReferenceOutputs:
    """Runs the description on float32 [batch, channels, time]."""
    columns = []
    for index in _numbers(state, "cnn_extractor.conv_layers."):
        weight = state[f"cnn_extractor.conv_layers.{index}.weight"]
        norm = f"cnn_extractor.batch_norms.{index}"
        kernel = weight.shape[2]
        convolved = F.conv1d(F.pad(x, ((kernel - 1) // 2, kernel // 2)), weight)
        columns.append(
            F.relu(
                F.batch_norm(
                    convolved,
                    state[f"{norm}.running_mean"],
                    state[f"{norm}.running_var"],
                    state[f"{norm}.weight"],
                    state[f"{norm}.bias"],
                )
            )
        )
    features = torch.cat(columns, dim=1).transpose(1, 2)
    features = _attention(state, "cnn_extractor.attention", features, features, heads)
    features = features + _linear(state, "cnn_extractor.residual_projection", x.transpose(1, 2))
    features = _linear(state, "cnn_extractor.feature_projection", features)

    current = _linear(state, "lstm_processor.input_projection", features)
    for index in _numbers(state, "lstm_processor.lstm_layers."):
        encoded = _lstm(state, f"lstm_processor.lstm_layers.{index}", current)
        encoded = _layer_norm(state, f"lstm_processor.layer_norms.{index}", encoded)
        current = encoded if index == 0 else encoded + current
    hidden = torch.tanh(_linear(state, "lstm_processor.attention.attention_linear", current))
    scores = hidden @ state["lstm_processor.attention.context_vector.weight"].T
    attention = torch.softmax(scores[..., 0], dim=1)

    cnn = _linear(state, "feature_fusion.cnn_projection", features)
    lstm = _linear(state, "feature_fusion.lstm_projection", current)
    fused = torch.cat(
        [
            _attention(state, "feature_fusion.cross_attention", cnn, lstm, 8),
            _attention(state, "feature_fusion.cross_attention", lstm, cnn, 8),
        ],
        dim=-1,
    )
    for linear, norm in ((0, 1), (4, 5)):
        fused = _linear(state, f"feature_fusion.fusion_layers.{linear}", fused)
        fused = F.relu(_layer_norm(state, f"feature_fusion.fusion_layers.{norm}", fused))
    last = fused[:, -1]

    logits = _linear(state, "classification_head.0", last)
    logits = F.relu(_layer_norm(state, "classification_head.1", logits))
    logits = _linear(state, "classification_head.4", logits)
    regression = last
    for index in (0, 3):
        regression = F.relu(_linear(state, f"regression_head.layers.{index}", regression))
    regression = _linear(state, "regression_head.layers.6", regression)
    members = torch.stack(
        [
            _linear(state, f"ensemble_models.{m}.3", F.relu(_linear(state, f"ensemble_models.{m}.0", last)))
            for m in _numbers(state, "ensemble_models.")
        ],
        dim=1,
    )
    classes = logits.shape[1]
    return ReferenceOutputs(
        fused=last,
        class_probs=torch.softmax(logits, dim=-1),
        regression=regression,
        member_probs=torch.softmax(members[..., :classes], dim=-1),
        member_regression=members[..., classes:],
        ensemble_weights=torch.softmax(state["ensemble_weights"], dim=0),
        attention=attention,
    )


def dropout_draws(
    state: Mapping[str, Tensor], fused: Tensor, *, rate: float, draws: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Independent draws of torch's own dropout in training mode in both heads, for one row `fused` [fusion].

    Returns:
        Class probabilities [draws, classes] and regression [draws, targets].
    """
    rows = fused.expand(draws, -1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        dropout = nn.Dropout(rate).train()
        hidden = F.relu(
            _layer_norm(state, "classification_head.1", _linear(state, "classification_head.0", rows))
        )
        logits = _linear(state, "classification_head.4", dropout(hidden))
        hidden = dropout(F.relu(_linear(state, "regression_head.layers.0", rows)))
        hidden = dropout(F.relu(_linear(state, "regression_head.layers.3", hidden)))
        regression = _linear(state, "regression_head.layers.6", hidden)
    return torch.softmax(logits, dim=-1), regression


def _numbers(state: Mapping[str, Tensor], prefix: str) -> list[int]:
    return sorted({int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix)})


def _linear(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _layer_norm(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _lstm(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    hidden = own["weight_hh_l0"].shape[1]
    layer = nn.LSTM(x.shape[-1], hidden, batch_first=True, bidirectional="weight_hh_l0_reverse" in own)
    layer.load_state_dict(own)
    with torch.no_grad():
        return layer(x)[0]


def _attention(state: Mapping[str, Tensor], name: str, query: Tensor, memory: Tensor, heads: int) -> Tensor:
    width = query.shape[-1]
    attention = nn.MultiheadAttention(width, heads, batch_first=True)
    zeros = torch.zeros(width)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([state[f"{name}.w_{part}.weight"] for part in "qkv"]))
        attention.in_proj_bias.copy_(torch.cat([state.get(f"{name}.w_{part}.bias", zeros) for part in "qkv"]))
        attention.out_proj.weight.copy_(state[f"{name}.w_o.weight"])
        attention.out_proj.bias.copy_(state.get(f"{name}.w_o.bias", zeros))
        return attention(query, memory, memory, need_weights=False)[0]
