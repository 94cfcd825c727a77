"""Monte Carlo dropout in one pass against torch's own dropout, draw by draw."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exporters.hybrid.build import build_hybrid
from exporters.hybrid.config import HybridConfig
from exporters.hybrid.mc_dropout import MaskBank, draw_masks
from exporters.writers.onnx import write_onnx
from tests.support.checkpoints import SMALL, random_state
from tests.support.hybrid_reference import dropout_draws, reference_forward

DRAWS = 10_000
RATE = 0.3


def _exported_samples(folder: Path, rate: float, x: torch.Tensor) -> torch.Tensor:
    """Regression and class probabilities of a T = 10,000 export, float64 [batch, draws, targets + classes]."""
    model = build_hybrid(random_state(), {}, {"mc_dropout_samples": DRAWS, "dropout_rate": rate})
    path = folder / f"{rate}.onnx"
    write_onnx(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    regression, probs = session.run(["mc_regression", "mc_probs"], {"x": x.numpy()})
    return torch.cat([torch.from_numpy(regression), torch.from_numpy(probs)], dim=-1).double()


def _torch_samples(x: torch.Tensor) -> torch.Tensor:
    state = random_state()
    with torch.no_grad():
        fused = reference_forward(state, x).fused
        draws = [dropout_draws(state, row, rate=RATE, draws=DRAWS, seed=i) for i, row in enumerate(fused)]
    return torch.stack([torch.cat([regression, probs], dim=-1) for probs, regression in draws]).double()


def _standard_errors_apart(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many Monte Carlo errors the means, and the standard deviations, lie apart; over axis 1."""
    sides = []
    for samples in (ours, theirs):
        mean = samples.mean(dim=1, keepdim=True)
        variance = samples.var(dim=1)
        fourth = ((samples - mean) ** 4).mean(dim=1)
        # Delta method: var(s) = (m4 - s^4) / (4 s^2 n).
        sides.append((mean[:, 0], variance, (fourth - variance**2) / (4 * variance * DRAWS)))
    (mean_a, variance_a, error_a), (mean_b, variance_b, error_b) = sides
    means = (mean_a - mean_b).abs() / ((variance_a + variance_b) / DRAWS).sqrt()
    deviations = (variance_a.sqrt() - variance_b.sqrt()).abs() / (error_a + error_b).sqrt()
    return means, deviations


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(2, SMALL["input_dim"], 12, generator=torch.Generator().manual_seed(2))


def test_ten_thousand_masks_agree_with_as_many_draws_of_torch_dropout(
    tmp_path: Path, x: torch.Tensor
) -> None:
    means, deviations = _standard_errors_apart(_exported_samples(tmp_path, RATE, x), _torch_samples(x))
    assert means.max() < 3
    assert deviations.max() < 3


@pytest.mark.parametrize("wrong_rate", [0.25, 0.35])
def test_ten_thousand_masks_of_a_wrong_rate_do_not_agree(
    tmp_path: Path, x: torch.Tensor, wrong_rate: float
) -> None:
    _, deviations = _standard_errors_apart(_exported_samples(tmp_path, wrong_rate, x), _torch_samples(x))
    assert (deviations > 3).all()


def test_samples_are_the_heads_under_each_mask() -> None:
    model = build_hybrid(random_state(), {}, {"mc_dropout_samples": 20})
    bank = MaskBank.draw(HybridConfig.from_mapping({**SMALL, "mc_dropout_samples": 20}), seed=20240917)
    (inputs,) = model.example(3, 12)
    state = random_state()
    with torch.no_grad():
        outputs = model.module(inputs)
        fused = reference_forward(state, inputs).fused
        linear = torch.nn.functional.linear
        for t in range(20):
            hidden = linear(
                fused, state["regression_head.layers.0.weight"], state["regression_head.layers.0.bias"]
            )
            hidden = hidden.relu() * bank.regression_first[t]
            hidden = linear(
                hidden, state["regression_head.layers.3.weight"], state["regression_head.layers.3.bias"]
            )
            hidden = hidden.relu() * bank.regression_second[t]
            value = linear(
                hidden, state["regression_head.layers.6.weight"], state["regression_head.layers.6.bias"]
            )
            torch.testing.assert_close(outputs[2][:, t], value, rtol=1e-4, atol=1e-6)


def test_base_probabilities_have_dropout_off() -> None:
    (inputs,) = build_hybrid(random_state(), {}, None).example(2, 12)
    with torch.no_grad():
        some = build_hybrid(random_state(), {}, {"dropout_rate": 0.1}).module(inputs)[0]
        other = build_hybrid(random_state(), {}, {"dropout_rate": 0.8}).module(inputs)[0]
    assert torch.equal(some, other)


def test_monte_carlo_dropout_off_gives_one_sample_with_nothing_dropped() -> None:
    model = build_hybrid(random_state(), {}, {"use_monte_carlo_dropout": False})
    (inputs,) = model.example(2, 12)
    with torch.no_grad():
        probs, regression, samples, mc_probs, *_ = model.module(inputs)
    assert model.mc_dropout is None
    assert samples.shape == (2, 1, 1)
    torch.testing.assert_close(mc_probs[:, 0], probs)
    torch.testing.assert_close(samples[:, 0], regression)


def test_same_seed_gives_the_same_masks_and_another_seed_others() -> None:
    config = HybridConfig.from_mapping(SMALL)
    first, again, other = (MaskBank.draw(config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.regression_first, again.regression_first)
    assert torch.equal(first.classification, again.classification)
    assert not torch.equal(first.classification, other.classification)
    assert not torch.equal(first.classification, first.regression_first)


@given(
    samples=st.integers(1, 50), width=st.integers(1, 40), rate=st.floats(0, 0.95), seed=st.integers(0, 2**32)
)
def test_masks_are_zero_or_the_inverse_of_the_kept_share(
    samples: int, width: int, rate: float, seed: int
) -> None:
    masks = draw_masks(samples, width, rate, torch.Generator().manual_seed(seed))
    assert masks.shape == (samples, width)
    kept = torch.tensor(1 / (1 - rate), dtype=torch.float32)
    assert ((masks == 0) | torch.isclose(masks, kept)).all()
    if rate == 0:
        assert (masks == 1).all()


@given(samples=st.integers(1, 200), rate=st.floats(0, 0.95), seed=st.integers(0, 2**32))
def test_every_unit_is_dropped_in_the_stated_share_of_the_masks(samples: int, rate: float, seed: int) -> None:
    kept = (draw_masks(samples, 8, rate, torch.Generator().manual_seed(seed)) != 0).sum(dim=0)
    assert ((kept - samples * (1 - rate)).abs() <= 1).all()


def test_single_masks_keep_each_unit_with_its_probability() -> None:
    generator = torch.Generator().manual_seed(3)
    kept = torch.stack([draw_masks(1, 4, RATE, generator)[0] != 0 for _ in range(5_000)]).double()
    assert (kept.mean(dim=0) - (1 - RATE)).abs().max() < 4 * (RATE * (1 - RATE) / 5_000) ** 0.5


def test_units_are_dropped_independently_of_each_other() -> None:
    kept = (draw_masks(DRAWS, 16, RATE, torch.Generator().manual_seed(4)) != 0).double()
    correlations = torch.corrcoef(kept.T) - torch.eye(16)
    assert correlations.abs().max() < 5 / DRAWS**0.5
