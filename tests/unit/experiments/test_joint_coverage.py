"""Do confidence sequences cover the truth at all looks jointly? Small and seeded; `make simulate` is the large form.

The naive standard error, of requests that were independent, goes into the same sequence in the same run, and fails on
accounts that differ: so the test can tell.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from control_plane.experiments.estimates import estimate
from control_plane.experiments.moments import BUCKETS, YY, Floats, N, Y, add, empty
from control_plane.experiments.sequential import half_width, information_of, planned_information, started

ALPHA = 0.05
EXPERIMENTS = 200
ACCOUNTS = 200
LOOKS = 100
EACH = 100
"""Requests between looks, of different accounts each."""
Draw = np.random.Generator


@dataclass(frozen=True)
class Law:
    """How outcomes arise.

    Attributes:
        noise: From a shape to noise with sd 1 and mean 0.
        effect: Sd of an account's own level.
        memory: Correlation of an account's successive noises.
        rate: Of the control, for 0 and 1 instead of noise.
        truth: Treatment - control.
    """

    noise: Callable[[Draw, tuple[int, ...]], Floats] = Draw.standard_normal
    effect: float = 0.0
    memory: float = 0.0
    rate: float | None = None
    truth: float = 0.1


LAWS = {
    "bernoulli": Law(rate=0.02, truth=0.0),
    "bernoulli_apart": Law(rate=0.02, truth=0.02),
    "normal": Law(),
    "t3": Law(noise=lambda draw, shape: draw.standard_t(3, shape) / np.sqrt(3)),
    "accounts": Law(effect=0.5),
    "ar1": Law(memory=0.3),
}


@functools.cache
def missed(name: str, *, routing_keys: bool) -> tuple[float, float]:
    """Share of experiments in which the interval ever misses the truth: ours, and with the naive standard error."""
    law, draw = LAWS[name], np.random.default_rng([*name.encode(), routing_keys])
    shape = (EXPERIMENTS, ACCOUNTS)
    own = law.effect * draw.standard_normal(shape)
    treated, buckets = draw.random(shape) < 0.5, draw.integers(0, BUCKETS, shape)
    last = law.noise(draw, shape)
    arms = [empty(EXPERIMENTS, 1) for _ in range(2)]
    plans = np.zeros((2, EXPERIMENTS))
    ever = np.zeros((2, EXPERIMENTS), dtype=bool)
    everyone = np.arange(EXPERIMENTS)[:, np.newaxis]
    for look in range(1, LOOKS + 1):
        here = np.argpartition(draw.random(shape), EACH, axis=1)[:, :EACH]
        noise = law.memory * last[everyone, here] + np.sqrt(1 - law.memory**2) * law.noise(draw, here.shape)
        last[everyone, here] = noise
        if not routing_keys:
            treated, buckets = draw.random(shape) < 0.5, draw.integers(0, BUCKETS, shape)
        treatment = treated[everyone, here]
        y = own[everyone, here] + noise + law.truth * treatment
        if law.rate is not None:
            y = (draw.random(here.shape) < law.rate + law.truth * treatment).astype(np.float64)
        for arm, mask in zip(arms, (treatment, ~treatment), strict=True):
            add(arm, buckets[everyone, here], y, where=mask)
        found = estimate(*arms, binary=law.rate is not None)
        errors = np.stack([found.standard_error, naive_error(*arms)])
        requests = np.stack([arm[..., N].sum(axis=(1, 2)) for arm in arms], axis=-1)
        begun = started(requests, np.minimum(requests, ACCOUNTS / 2)) & np.isfinite(errors)
        first = begun & (plans == 0.0)
        plans[first] = planned_information(errors, look * EACH, LOOKS * EACH)[first]
        half = half_width(errors, information_of(errors), np.where(begun, plans, 0.0), ALPHA)
        ever |= np.abs(found.difference - law.truth) > half
    return float(ever[0].mean()), float(ever[1].mean())


def naive_error(*arms: Floats) -> Floats:
    """The standard error of independent requests; infinite without spread."""
    total = np.zeros(EXPERIMENTS)
    for arm in arms:
        n, y, yy = (arm[..., column].sum(axis=(1, 2)) for column in (N, Y, YY))
        total += (yy / n - (y / n) ** 2) / n
    return np.where(total > 0.0, np.sqrt(np.maximum(total, 1e-300)), np.inf)


@pytest.mark.parametrize("routing_keys", [True, False])
@pytest.mark.parametrize("name", LAWS)
def test_intervals_cover_the_truth_at_all_looks_jointly(name: str, routing_keys: bool) -> None:
    assert missed(name, routing_keys=routing_keys)[0] <= ALPHA


def test_naive_standard_error_fails_on_accounts_with_an_effect() -> None:
    assert missed("accounts", routing_keys=True)[1] >= 0.3
    assert missed("normal", routing_keys=True)[1] <= ALPHA
