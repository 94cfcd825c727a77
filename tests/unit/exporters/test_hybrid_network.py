"""The hybrid's network: parameter names, and agreement with a second implementation of its description."""

import pytest
import torch

from exporters.hybrid.build import build_hybrid
from exporters.hybrid.config import HybridConfig
from exporters.hybrid.network import HybridNetwork, NetworkVariant
from exporters.spec import ExportableModel
from tests.support.checkpoints import SMALL, random_state
from tests.support.hybrid_reference import reference_forward

SMALL_KEYS = """
cnn_extractor.conv_layers.{0-3}.weight
cnn_extractor.batch_norms.{0-3}.weight
cnn_extractor.batch_norms.{0-3}.bias
cnn_extractor.batch_norms.{0-3}.running_mean
cnn_extractor.batch_norms.{0-3}.running_var
cnn_extractor.batch_norms.{0-3}.num_batches_tracked
cnn_extractor.attention.w_q.weight
cnn_extractor.attention.w_q.bias
cnn_extractor.attention.w_k.weight
cnn_extractor.attention.w_k.bias
cnn_extractor.attention.w_v.weight
cnn_extractor.attention.w_v.bias
cnn_extractor.attention.w_o.weight
cnn_extractor.attention.w_o.bias
cnn_extractor.residual_projection.weight
cnn_extractor.residual_projection.bias
cnn_extractor.feature_projection.weight
cnn_extractor.feature_projection.bias
lstm_processor.input_projection.weight
lstm_processor.input_projection.bias
lstm_processor.lstm_layers.{0-1}.weight_ih_l0
lstm_processor.lstm_layers.{0-1}.weight_hh_l0
lstm_processor.lstm_layers.{0-1}.bias_ih_l0
lstm_processor.lstm_layers.{0-1}.bias_hh_l0
lstm_processor.lstm_layers.{0-1}.weight_ih_l0_reverse
lstm_processor.lstm_layers.{0-1}.weight_hh_l0_reverse
lstm_processor.lstm_layers.{0-1}.bias_ih_l0_reverse
lstm_processor.lstm_layers.{0-1}.bias_hh_l0_reverse
lstm_processor.layer_norms.{0-1}.weight
lstm_processor.layer_norms.{0-1}.bias
lstm_processor.attention.attention_linear.weight
lstm_processor.attention.attention_linear.bias
lstm_processor.attention.context_vector.weight
feature_fusion.cnn_projection.weight
feature_fusion.cnn_projection.bias
feature_fusion.lstm_projection.weight
feature_fusion.lstm_projection.bias
feature_fusion.cross_attention.w_q.weight
feature_fusion.cross_attention.w_q.bias
feature_fusion.cross_attention.w_k.weight
feature_fusion.cross_attention.w_k.bias
feature_fusion.cross_attention.w_v.weight
feature_fusion.cross_attention.w_v.bias
feature_fusion.cross_attention.w_o.weight
feature_fusion.cross_attention.w_o.bias
feature_fusion.fusion_layers.0.weight
feature_fusion.fusion_layers.0.bias
feature_fusion.fusion_layers.1.weight
feature_fusion.fusion_layers.1.bias
feature_fusion.fusion_layers.4.weight
feature_fusion.fusion_layers.4.bias
feature_fusion.fusion_layers.5.weight
feature_fusion.fusion_layers.5.bias
classification_head.0.weight
classification_head.0.bias
classification_head.1.weight
classification_head.1.bias
classification_head.4.weight
classification_head.4.bias
regression_head.layers.0.weight
regression_head.layers.0.bias
regression_head.layers.3.weight
regression_head.layers.3.bias
regression_head.layers.6.weight
regression_head.layers.6.bias
ensemble_models.{0-2}.0.weight
ensemble_models.{0-2}.0.bias
ensemble_models.{0-2}.3.weight
ensemble_models.{0-2}.3.bias
ensemble_weights
"""


def _expanded(lines: str) -> set[str]:
    keys = set()
    for line in lines.split():
        before, brace, after = line.partition("{0-")
        if not brace:
            keys.add(line)
            continue
        last, _, rest = after.partition("}")
        keys |= {f"{before}{index}{rest}" for index in range(int(last) + 1)}
    return keys


def _outputs(model: ExportableModel, x: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return dict(zip([spec.name for spec in model.outputs], model.module(x), strict=True))


def test_state_dict_keys_are_those_of_the_checkpoints_in_use() -> None:
    network = HybridNetwork(HybridConfig.from_mapping(SMALL))
    assert set(network.state_dict()) == _expanded(SMALL_KEYS)


def test_default_configuration_has_the_documented_shapes() -> None:
    shapes = {
        name: tuple(tensor.shape) for name, tensor in HybridNetwork(HybridConfig()).state_dict().items()
    }
    assert shapes["cnn_extractor.conv_layers.3.weight"] == (64, 50, 11)
    assert shapes["cnn_extractor.residual_projection.weight"] == (256, 50)
    assert shapes["cnn_extractor.feature_projection.weight"] == (128, 256)
    assert shapes["lstm_processor.lstm_layers.0.weight_ih_l0"] == (512, 128)
    assert shapes["lstm_processor.lstm_layers.2.weight_ih_l0_reverse"] == (512, 256)
    assert shapes["feature_fusion.fusion_layers.0.weight"] == (256, 512)
    assert shapes["classification_head.4.weight"] == (3, 128)
    assert shapes["regression_head.layers.6.weight"] == (1, 64)
    assert shapes["ensemble_models.4.3.weight"] == (4, 128)
    assert shapes["ensemble_weights"] == (5,)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lstm_bidirectional": False},
        {"lstm_num_layers": 1},
        {"lstm_num_layers": 4},
        {"cnn_filter_sizes": [2, 3, 4, 8]},
        {"cnn_filter_sizes": [1], "cnn_num_filters": 16},
        {"cnn_attention_heads": 2},
        {"input_dim": 1, "num_classes": 5, "regression_targets": 3},
        {"num_ensemble_models": 1, "feature_fusion_dim": 40},
    ],
    ids=str,
)
def test_outputs_agree_with_a_second_implementation(changes: dict[str, object]) -> None:
    config = {**SMALL, **changes}
    state = random_state(config, seed=3)
    model = build_hybrid(state, {}, config)
    x = torch.randn(
        5, HybridConfig.from_mapping(config).input_dim, 9, generator=torch.Generator().manual_seed(1)
    )
    got = _outputs(model, x)
    with torch.no_grad():
        want = reference_forward(state, x, heads=int(str(config.get("cnn_attention_heads", 8))))
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(got["classification_probs"], want.class_probs, **close)
    torch.testing.assert_close(got["member_probs"], want.member_probs, **close)
    torch.testing.assert_close(got["member_regression"], want.member_regression, **close)
    torch.testing.assert_close(got["ensemble_weights"], want.ensemble_weights.expand(5, -1), **close)
    torch.testing.assert_close(got["attention_weights"], want.attention, **close)


def test_training_forward_in_evaluation_mode_agrees_with_the_serving_graph() -> None:
    state = random_state()
    model = build_hybrid(state, {}, {"use_monte_carlo_dropout": False})
    network = HybridNetwork(HybridConfig.from_mapping(SMALL)).eval()
    network.load_state_dict(state)
    (x,) = model.example(4, 12)
    got = _outputs(model, x)
    with torch.no_grad():
        logits = network(x)
    torch.testing.assert_close(got["classification_probs"], logits.class_logits.softmax(-1))
    torch.testing.assert_close(got["regression_pred"], logits.regression)
    torch.testing.assert_close(got["member_probs"], logits.member_logits.softmax(-1))
    torch.testing.assert_close(got["member_regression"], logits.member_regression)


def test_lstm_as_wide_as_the_input_reads_the_input() -> None:
    variant = NetworkVariant(lstm_reads_input=True)
    state = random_state(variant=variant)
    model = build_hybrid(state, {}, None)
    assert state["lstm_processor.input_projection.weight"].shape == (16, 12)
    network = HybridNetwork(HybridConfig.from_mapping(SMALL), variant).eval()
    network.load_state_dict(state)
    (x,) = model.example(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(_outputs(model, x)["attention_weights"], network.features(x)[1])
