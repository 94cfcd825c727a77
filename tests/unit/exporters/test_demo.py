"""The demonstration: causal features, a split without overlap, honest scores, and the committed files."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exporters.demo.__main__ import VERSIONS, recorded_config, write_test_windows
from exporters.demo.dataset import (
    CLASS_NAMES,
    HORIZON,
    SEQUENCE_LENGTH,
    Dataset,
    Part,
    build_dataset,
    label_returns,
    split_positions,
)
from exporters.demo.evaluation import BLOCK_SAMPLES, baselines, block_bootstrap, evaluate, run_graph
from exporters.demo.features import FEATURE_NAMES, WARM_UP_BARS, compute_features
from exporters.demo.market_data import Bars, find_bars_file, read_bars
from exporters.demo.training import to_basis_points, train_hybrid
from exporters.hybrid.build import build_hybrid
from exporters.hybrid.config import HybridConfig
from exporters.hybrid.network import HybridNetwork
from exporters.verification import find_real_input

CHECKPOINTS = Path(__file__).parents[3] / "checkpoints"
TINY = HybridConfig(
    input_dim=len(FEATURE_NAMES),
    cnn_num_filters=2,
    lstm_hidden_dim=4,
    lstm_num_layers=1,
    feature_fusion_dim=8,
    num_ensemble_models=2,
    cnn_attention_heads=2,
    mc_dropout_samples=10,
)


@pytest.fixture(scope="module")
def bars() -> Bars:
    return read_bars(find_bars_file())


@pytest.fixture(scope="module")
def dataset(bars: Bars) -> Dataset:
    return build_dataset(bars)


def _cut(bars: Bars, count: int) -> Bars:
    columns = ("time", "open", "high", "low", "close", "volume")
    return replace(bars, **{name: getattr(bars, name)[:count] for name in columns})


def test_bars_are_the_hourly_ones_of_2017_in_order(bars: Bars) -> None:
    assert len(bars.close) == 6225
    assert (np.diff(bars.time) >= 3600).all()
    assert ((bars.low <= bars.close) & (bars.close <= bars.high)).all()


@given(count=st.integers(WARM_UP_BARS + 1, 6225))
def test_features_of_a_bar_do_not_change_when_later_bars_arrive(bars: Bars, count: int) -> None:
    early = compute_features(_cut(bars, count))
    np.testing.assert_allclose(early, compute_features(bars)[: len(early)], rtol=1e-6)


def test_features_are_finite_and_named(bars: Bars) -> None:
    features = compute_features(bars)
    assert features.shape == (6225 - WARM_UP_BARS, len(FEATURE_NAMES))
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


def test_windows_end_at_their_last_bar_and_outcomes_begin_after_it(bars: Bars, dataset: Dataset) -> None:
    features = compute_features(bars)
    for part in (dataset.train, dataset.validation, dataset.test):
        for sample in (0, len(part.label) - 1):
            last = int(part.last_bar[sample])
            first = last - WARM_UP_BARS - SEQUENCE_LENGTH + 1
            np.testing.assert_array_equal(part.x[sample], features[first : first + SEQUENCE_LENGTH].T)
            change = 1e4 * np.log(bars.close[last + HORIZON] / bars.close[last])
            assert part.forward_return_bp[sample] == pytest.approx(change, rel=1e-4)
            assert part.time[sample] == bars.time[last]


def test_parts_share_no_bar_as_input_or_outcome(dataset: Dataset) -> None:
    parts = (dataset.train, dataset.validation, dataset.test)
    for earlier, later in pairwise(parts):
        last_outcome = earlier.last_bar[-1] + HORIZON
        first_input = later.last_bar[0] - SEQUENCE_LENGTH + 1
        assert last_outcome < first_input


@given(st.integers(1_000, 100_000))
def test_split_keeps_order_gaps_and_every_other_sample(samples: int) -> None:
    train, validation, test = split_positions(samples)
    gap = HORIZON + SEQUENCE_LENGTH
    assert train.start == 0
    assert validation.start - train.stop == gap
    assert test.start - validation.stop == gap
    assert test.stop == samples
    assert train.stop - train.start > validation.stop - validation.start > 0
    assert test.stop > test.start


def test_statistics_are_the_training_parts_alone(bars: Bars, dataset: Dataset) -> None:
    end = int(dataset.train.last_bar[-1])
    seen = compute_features(_cut(bars, end + 1)).astype(np.float64)
    np.testing.assert_allclose(dataset.normalization.mean, seen.mean(axis=0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(dataset.normalization.scale, seen.std(axis=0), rtol=1e-6)
    held = np.abs(dataset.train.forward_return_bp) <= dataset.threshold_bp
    assert held.mean() == pytest.approx(1 / 3, abs=1e-3)


def test_classes_are_balanced_on_the_training_part(dataset: Dataset) -> None:
    shares = np.bincount(dataset.train.label, minlength=3) / len(dataset.train.label)
    assert np.abs(shares - 1 / 3).max() < 0.03


def test_labels_are_the_sides_of_the_threshold() -> None:
    returns = np.array([-5.0, -2.0, 0.0, 2.0, 5.0], dtype=np.float32)
    assert [CLASS_NAMES[label] for label in label_returns(returns, 2.0)] == [
        "sell",
        "hold",
        "hold",
        "hold",
        "buy",
    ]


def test_training_from_one_seed_twice_gives_the_same_parameters(dataset: Dataset) -> None:
    few = replace(dataset, train=_first(dataset.train, 256), validation=_first(dataset.validation, 256))
    losses: list[float] = []
    runs = [
        train_hybrid(
            TINY, few, seed=5, max_epochs=1, patience=1, on_epoch=lambda _, loss: losses.append(loss)
        )
        for _ in range(2)
    ]
    assert losses[0] == losses[1]
    first, second = (run.state_dict for run in runs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def _first(part: Part, count: int) -> Part:
    names = ("x", "forward_return_bp", "label", "last_bar", "time", "past_return_bp")
    return replace(part, **{name: getattr(part, name)[:count] for name in names})


def test_state_in_basis_points_scales_the_regressions_and_nothing_else() -> None:
    torch.manual_seed(0)
    state = dict(HybridNetwork(TINY).state_dict())
    plain = build_hybrid(state, {}, {"cnn_attention_heads": 2, "mc_dropout_samples": 10})
    scaled = build_hybrid(
        to_basis_points(state, TINY, 20.0), {}, {"cnn_attention_heads": 2, "mc_dropout_samples": 10}
    )
    (x,) = plain.example(3, 10)
    for spec, ours, theirs in zip(plain.outputs, scaled.module(x), plain.module(x), strict=True):
        factor = 20.0 if "regression" in spec.name else 1.0
        torch.testing.assert_close(ours, theirs * factor)


def test_class_shares_of_training_score_as_entropy_says(dataset: Dataset) -> None:
    prior, last_value = baselines(dataset).values()
    assert prior.log_loss == pytest.approx(np.log(3), abs=0.02)
    assert prior.mae_bp == pytest.approx(np.abs(dataset.test.forward_return_bp).mean())
    assert last_value.log_loss is None


def test_bootstrap_interval_holds_the_mean_and_widens_with_dependence() -> None:
    generator = np.random.default_rng(0)
    independent = generator.normal(1.0, 1.0, size=40 * BLOCK_SAMPLES)
    dependent = np.repeat(generator.normal(1.0, 1.0, size=40), BLOCK_SAMPLES)
    narrow, wide = block_bootstrap(independent), block_bootstrap(dependent)
    assert narrow.low < narrow.mean < narrow.high
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert (narrow.verdict, block_bootstrap(-independent).verdict) == ("is worse than", "beats")
    assert block_bootstrap(independent - independent.mean()).verdict == "cannot be told from"


@pytest.mark.parametrize("demo", VERSIONS, ids=lambda demo: demo.version)
def test_committed_checkpoint_is_the_version_and_scores_as_recorded(demo, dataset: Dataset) -> None:
    path = CHECKPOINTS / f"cnn_lstm_hybrid-{demo.version}.pth"
    assert path.stat().st_size < 2 * 1024**2
    saved = torch.load(path, weights_only=True)
    assert set(saved) == {"model_state_dict", "config", "metrics"}
    assert saved["config"] == recorded_config(demo.config, dataset.normalization)
    model = build_hybrid(saved["model_state_dict"], saved["config"], None)
    assert model.normalization == dataset.normalization
    scores = evaluate(model, dataset).model.as_mapping("test_")
    assert {name: saved["metrics"][name] for name in scores} == pytest.approx(scores, rel=1e-3)


def test_committed_windows_are_of_the_test_part_and_fit_the_checkpoints(
    dataset: Dataset, tmp_path: Path
) -> None:
    write_test_windows(tmp_path / "eurusd_test_windows.npz", dataset.test)
    with (
        np.load(CHECKPOINTS / "eurusd_test_windows.npz", allow_pickle=False) as committed,
        np.load(tmp_path / "eurusd_test_windows.npz", allow_pickle=False) as fresh,
    ):
        assert set(committed) == set(fresh)
        for name in fresh:
            np.testing.assert_array_equal(committed[name], fresh[name])
        x = committed["x"]
    assert x.shape == (64, len(FEATURE_NAMES), SEQUENCE_LENGTH)
    saved = torch.load(CHECKPOINTS / "cnn_lstm_hybrid-v1.0.pth", weights_only=True)
    model = build_hybrid(saved["model_state_dict"], saved["config"], None)
    found = find_real_input(CHECKPOINTS, model)
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), x)
    outputs = run_graph(model, x)
    np.testing.assert_allclose(outputs["classification_probs"].sum(axis=1), 1.0, rtol=1e-5)
