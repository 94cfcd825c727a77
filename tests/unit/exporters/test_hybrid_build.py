"""From tensors and configurations to an exportable model: what is inferred, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exporters.errors import ConfigMismatch, InvalidConfig, UnsupportedCheckpoint
from exporters.hybrid.architecture import clean_state, infer_architecture
from exporters.hybrid.build import build_hybrid
from exporters.hybrid.config import DEFAULT_SEED, HybridConfig
from exporters.spec import MCDropout, Normalization
from tests.support.checkpoints import SMALL, random_state


def _run(state: dict[str, torch.Tensor], x: torch.Tensor, **options: Any) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        outputs: tuple[torch.Tensor, ...] = build_hybrid(state, {}, None, **options).module(x)
        return outputs


def _input(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 12, 12, generator=torch.Generator().manual_seed(5))


def test_outputs_have_the_documented_names_shapes_and_order() -> None:
    model = build_hybrid(random_state(), {}, SMALL)
    assert [(spec.name, spec.shape) for spec in model.inputs] == [("x", (12, -1))]
    assert [(spec.name, spec.shape) for spec in model.outputs] == [
        ("classification_probs", (3,)),
        ("regression_pred", (1,)),
        ("mc_regression", (100, 1)),
        ("mc_probs", (100, 3)),
        ("member_probs", (3, 3)),
        ("member_regression", (3, 1)),
        ("ensemble_weights", (3,)),
        ("attention_weights", (-1,)),
    ]
    for spec, tensor in zip(model.outputs, model.module(*model.example(2, 7)), strict=True):
        assert tensor.shape == (2, *(7 if size == -1 else size for size in spec.shape))
        assert tensor.dtype == torch.float32


def test_probabilities_and_weights_sum_to_one() -> None:
    probs, _, _, mc_probs, member_probs, _, weights, attention = _run(random_state(), _input())
    for values in (probs, mc_probs, member_probs, weights, attention):
        torch.testing.assert_close(values.sum(-1), torch.ones(values.shape[:-1]))


def test_regression_is_the_mean_of_its_samples() -> None:
    _, regression, samples, *_ = _run(random_state(), _input())
    torch.testing.assert_close(regression, samples.mean(dim=1))


def test_rows_do_not_depend_on_the_rest_of_the_batch() -> None:
    model = build_hybrid(random_state(), {}, None)
    x = _input(6)
    with torch.no_grad():
        together, alone = model.module(x), model.module(x[2:3])
    for whole, row in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[2:3], row)


def test_everything_that_shapes_tell_is_inferred() -> None:
    config = {
        **SMALL,
        "cnn_filter_sizes": [2, 9],
        "lstm_bidirectional": False,
        "num_classes": 4,
        "regression_targets": 2,
        "lstm_num_layers": 3,
    }
    model = build_hybrid(random_state(config), {}, None)
    inferred = {key: model.config[key] for key in config if key != "sequence_length"}
    assert inferred == {key: value for key, value in config.items() if key != "sequence_length"}


def test_request_wins_over_checkpoint_and_checkpoint_over_default() -> None:
    recorded = {"sequence_length": 30, "mc_dropout_samples": 7, "learning_rate": 0.1}
    model = build_hybrid(random_state(), recorded, {"mc_dropout_samples": 9})
    assert model.config["sequence_length"] == 30
    assert model.config["mc_dropout_samples"] == 9
    assert model.config["dropout_rate"] == 0.3
    assert model.time_lengths == (1, 15, 30)
    assert model.mc_dropout == MCDropout(samples=9, seed=DEFAULT_SEED)


@pytest.mark.parametrize(
    ("key", "stated", "actual"),
    [
        ("input_dim", 50, "12"),
        ("cnn_filter_sizes", [3, 5, 7], "[3, 5, 7, 11]"),
        ("cnn_num_filters", 16, "8"),
        ("lstm_hidden_dim", 128, "16"),
        ("lstm_num_layers", 3, "2"),
        ("lstm_bidirectional", False, "True"),
        ("feature_fusion_dim", 256, "32"),
        ("num_classes", 2, "3"),
        ("regression_targets", 2, "1"),
        ("num_ensemble_models", 5, "3"),
    ],
)
@pytest.mark.parametrize("origin", ["request", "checkpoint"])
def test_configuration_against_tensors_names_the_key_and_both_values(
    key: str, stated: Any, actual: str, origin: str
) -> None:
    configs: tuple[dict[str, Any], dict[str, Any]] = ({}, {key: stated})
    recorded, requested = configs if origin == "request" else configs[::-1]
    with pytest.raises(ConfigMismatch, match=key) as caught:
        build_hybrid(random_state(), recorded, requested)
    assert caught.value.got == f"{key} = {stated} ({origin}'s configuration)"
    assert caught.value.expected == f"{key} = {actual} (checkpoint's tensors)"
    assert caught.value.remedy is not None


def test_request_corrects_a_checkpoint_whose_own_configuration_is_wrong() -> None:
    model = build_hybrid(random_state(), {"input_dim": 50}, {"input_dim": 12})
    assert model.config["input_dim"] == 12


def test_heads_that_do_not_divide_the_checkpoint_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="cnn_attention_heads"):
        build_hybrid(random_state(), {}, {"cnn_attention_heads": 3})


def test_decoder_keys_change_nothing() -> None:
    with_decoder = random_state(unused_keys=True)
    assert any("decoder_lstm" in key for key in with_decoder)
    for ours, theirs in zip(_run(with_decoder, _input()), _run(random_state(), _input()), strict=True):
        assert torch.equal(ours, theirs)


def test_data_parallel_prefix_is_stripped() -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in random_state().items()}
    for ours, theirs in zip(_run(wrapped, _input()), _run(random_state(), _input()), strict=True):
        assert torch.equal(ours, theirs)


def test_projections_without_bias_are_loaded_without() -> None:
    state = random_state()
    zeroed, absent = dict(state), dict(state)
    for name in [name for name in state if "attention.w_" in name and name.endswith(".bias")]:
        zeroed[name] = torch.zeros_like(state[name])
        del absent[name]
    for ours, theirs in zip(_run(absent, _input()), _run(zeroed, _input()), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_pointwise_convolution_serves_as_residual_projection() -> None:
    state = random_state()
    convolution = dict(state)
    name = "cnn_extractor.residual_projection.weight"
    convolution[name] = state[name].unsqueeze(2)
    for ours, theirs in zip(_run(convolution, _input()), _run(state, _input()), strict=True):
        assert torch.equal(ours, theirs)


def test_absent_ensemble_weights_are_uniform() -> None:
    state = random_state()
    del state["ensemble_weights"]
    weights = _run(state, _input())[6]
    torch.testing.assert_close(weights, torch.full((3, 3), 1 / 3))


def test_half_precision_is_taken_to_float32() -> None:
    state = {name: t.half() if t.is_floating_point() else t for name, t in random_state().items()}
    assert all(output.dtype == torch.float32 for output in _run(state, _input()))


@pytest.mark.parametrize(
    ("drop", "add", "named"),
    [
        ("classification_head.4.weight", {}, "classification_head.4.weight"),
        ("feature_fusion.fusion_layers.5.bias", {}, "feature_fusion.fusion_layers.5.bias"),
        ("ensemble_models.0.0.weight", {}, "ensemble_models"),
        ("cnn_extractor.conv_layers.1.weight", {}, "conv_layers"),
        (None, {"value_head.weight": torch.zeros(1)}, "value_head.weight"),
        (None, {"ensemble_weights": "text"}, "ensemble_weights"),
        (None, {"ensemble_weights": torch.tensor([1.0, float("nan"), 1.0])}, "ensemble_weights"),
    ],
)
def test_foreign_or_broken_state_is_refused_by_key(drop: str | None, add: dict[str, Any], named: str) -> None:
    state: dict[str, Any] = random_state() | add
    if drop is not None:
        del state[drop]
    with pytest.raises(UnsupportedCheckpoint, match=named):
        build_hybrid(state, {}, None)


def test_empty_state_is_refused() -> None:
    with pytest.raises(UnsupportedCheckpoint, match="not a cnn_lstm_hybrid"):
        build_hybrid({}, {}, None)


def test_tensor_that_does_not_follow_from_the_others_is_named_with_both_shapes() -> None:
    state = random_state()
    state["ensemble_models.1.3.weight"] = torch.zeros(5, 16)
    with pytest.raises(ConfigMismatch, match=r"ensemble_models\.1\.3\.weight") as caught:
        build_hybrid(state, {}, None)
    assert "[4, 16]" in str(caught.value.expected)
    assert "[5, 16]" in str(caught.value.got)


def test_normalization_is_folded_in() -> None:
    normalization = Normalization(mean=tuple(map(float, range(12))), scale=(2.0,) * 12)
    x = _input()
    raw = x * 2.0 + torch.arange(12.0)[:, None]
    for ours, theirs in zip(
        _run(random_state(), raw, normalization=normalization), _run(random_state(), x), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_normalization_of_the_checkpoint_is_used_unless_one_is_given() -> None:
    recorded = {"normalization": {"mean": [1] * 12, "scale": [2.5] * 12}}
    given_one = Normalization(mean=(0.0,) * 12, scale=(1.0,) * 12)
    taken = build_hybrid(random_state(), recorded, None).normalization
    assert taken == Normalization(mean=(1.0,) * 12, scale=(2.5,) * 12)
    assert build_hybrid(random_state(), recorded, None, normalization=given_one).normalization == given_one


@pytest.mark.parametrize(("means", "scales"), [(11, 12), (12, 1)])
def test_normalization_of_another_length_is_refused(means: int, scales: int) -> None:
    normalization = Normalization(mean=(0.0,) * means, scale=(1.0,) * scales)
    with pytest.raises(ConfigMismatch):
        build_hybrid(random_state(), {}, None, normalization=normalization)


@pytest.mark.parametrize("recorded", [1, [1], {"mean": [1.0] * 12}, {"mean": "x" * 12, "scale": [1.0] * 12}])
def test_unreadable_normalization_of_the_checkpoint_is_refused(recorded: Any) -> None:
    with pytest.raises(InvalidConfig, match="normalization"):
        build_hybrid(random_state(), {"normalization": recorded}, None)


def test_names_come_from_the_checkpoint_and_the_request_wins() -> None:
    recorded = {"class_names": ["a", "b", "c"], "feature_names": [f"f{i}" for i in range(12)]}
    model = build_hybrid(random_state(), recorded, {"class_names": ["sell", "hold", "buy"]})
    assert model.class_names == ("sell", "hold", "buy")
    assert model.feature_names == tuple(f"f{i}" for i in range(12))


@given(
    input_dim=st.integers(1, 20),
    filters=st.sampled_from([8, 16]),
    kernels=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    hidden=st.integers(1, 9),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    fusion=st.sampled_from([8, 24, 32]),
    classes=st.integers(2, 6),
    targets=st.integers(1, 3),
    members=st.integers(1, 4),
)
def test_inference_from_shapes_inverts_construction(
    input_dim: int,
    filters: int,
    kernels: list[int],
    hidden: int,
    layers: int,
    bidirectional: bool,
    fusion: int,
    classes: int,
    targets: int,
    members: int,
) -> None:
    mapping = {
        "input_dim": input_dim,
        "cnn_num_filters": filters,
        "cnn_filter_sizes": kernels,
        "lstm_hidden_dim": hidden,
        "lstm_num_layers": layers,
        "lstm_bidirectional": bidirectional,
        "feature_fusion_dim": fusion,
        "num_classes": classes,
        "regression_targets": targets,
        "num_ensemble_models": members,
    }
    architecture = infer_architecture(clean_state(random_state(mapping)))
    assert HybridConfig(**architecture.fields) == HybridConfig.from_mapping(mapping)
