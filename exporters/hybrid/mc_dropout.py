"""Monte Carlo dropout in one pass: a fixed bank of masks, and the heads evaluated for all of them at once.

The backbone is deterministic and runs once. A head's layers in front of its first dropout do not depend on
the mask either, so they run once too; from there on every layer is one batched product over
`[batch, samples, width]`. The masks are drawn once, at export, so a request's uncertainty neither changes
between calls nor depends on the rest of the batch, and the graph needs no random operator.

Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation" (2016), section 4, with masks held fixed.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from exporters.hybrid.config import HybridConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskBank:
    """Masks of each dropout site of the heads, float32 [samples, width]; 0, or 1 / (1 - rate).

    Source: Srivastava et al., "Dropout" (2014), section 10 (inverted scaling at training time).
    """

    classification: Tensor
    regression_first: Tensor
    regression_second: Tensor

    @classmethod
    def draw(cls, config: HybridConfig, *, seed: int) -> Self:
        """Draws a bank of `config.samples` masks a site; all ones when Monte Carlo dropout is off."""
        width = config.feature_fusion_dim
        rate = config.dropout_rate if config.use_monte_carlo_dropout else 0.0
        generator = torch.Generator().manual_seed(seed)
        return cls(
            classification=draw_masks(config.samples, width // 2, rate, generator),
            regression_first=draw_masks(config.samples, width // 2, rate, generator),
            regression_second=draw_masks(config.samples, width // 4, rate, generator),
        )


def draw_masks(samples: int, width: int, rate: float, generator: torch.Generator) -> Tensor:
    """Draws inverted dropout masks, float32 [samples, width].

    Each element is kept with probability 1 - rate, as in training; units are independent. Over the samples a
    unit's draws are stratified (one in each of `samples` equal intervals, in random order), so that every
    unit is dropped in the stated share of the masks: the mean and spread of a finite bank come closer to
    those of unlimited dropout than with independent draws.

    Source: McKay, Beckman and Conover, "A Comparison of Three Methods …" (1979), Latin hypercube sampling.
    """
    order = torch.rand(samples, width, generator=generator).argsort(dim=0)
    within = torch.rand(samples, width, generator=generator, dtype=torch.float64)
    keep = 1.0 - rate
    return ((order + within) / samples < keep).to(torch.float32) / keep


class MaskedHeads(nn.Module):
    """The classification and regression heads of a network under a fixed mask bank."""

    def __init__(self, classification: nn.Sequential, regression: nn.Sequential, masks: MaskBank) -> None:
        super().__init__()
        self.classification = classification
        self.regression = regression
        self.mask_classification: Tensor
        self.mask_regression_first: Tensor
        self.mask_regression_second: Tensor
        self.register_buffer("mask_classification", masks.classification)
        self.register_buffer("mask_regression_first", masks.regression_first)
        self.register_buffer("mask_regression_second", masks.regression_second)

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluates both heads on fused features float32 [batch, fusion].

        Returns:
            Class logits without dropout [batch, classes], sampled class logits [batch, samples, classes] and
            sampled regression [batch, samples, targets], all float32.
        """
        linear, norm, relu, _, last = self.classification
        hidden = relu(norm(linear(fused)))
        base_logits = last(hidden)
        sampled_logits = last(hidden.unsqueeze(1) * self.mask_classification)

        first, relu, _, second, _, _, last = self.regression
        hidden = relu(first(fused)).unsqueeze(1) * self.mask_regression_first
        hidden = relu(second(hidden)) * self.mask_regression_second
        return base_logits, sampled_logits, last(hidden)
