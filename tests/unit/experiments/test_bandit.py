"""Thompson sampling against exact probabilities, under drift, and with accounts."""

import numpy as np
import pytest
from scipy import integrate, stats

from control_plane.experiments.bandit import best_probabilities, level, shares
from control_plane.experiments.design import Direction, MetricKind
from control_plane.experiments.moments import BUCKETS, Floats, add, empty


def epoch(draw: np.random.Generator, *arms: Floats) -> Floats:
    """Moments [1, variants, 256, moments] of units that are requests."""
    found = empty(1, len(arms))
    for place, y in enumerate(arms):
        add(found[0, place], draw.integers(0, BUCKETS, y.size), y)
    return found


def test_probability_of_being_the_best_is_that_of_two_beta_posteriors() -> None:
    draw = np.random.default_rng(1)
    arms = [np.repeat([1.0, 0.0], [hits, 400 - hits]) for hits in (40, 55)]
    found = best_probabilities(epoch(draw, *arms), MetricKind.RATE, Direction.UP, seed=3)
    first, second = (stats.beta(1 + hits, 401 - hits) for hits in (40, 55))
    expected = integrate.quad(lambda p: second.pdf(p) * first.cdf(p), 0, 0.4)[0]
    assert found[1] == pytest.approx(expected, abs=0.05)
    assert best_probabilities(epoch(draw, *arms), MetricKind.RATE, Direction.DOWN, seed=3)[
        0
    ] == pytest.approx(expected, abs=0.05)


def test_probability_of_being_the_best_is_that_of_two_normal_means() -> None:
    draw = np.random.default_rng(2)
    arms = [draw.normal(mean, 1, 500) for mean in (0.0, 0.08)]
    z = (arms[1].mean() - arms[0].mean()) / np.sqrt(sum(y.var() / y.size for y in arms))
    found = best_probabilities(epoch(draw, *arms), MetricKind.MEAN, Direction.UP, seed=1)
    assert found[1] == pytest.approx(stats.norm.cdf(z), abs=0.05)


def test_drift_of_the_level_does_not_favour_what_was_given_in_good_times() -> None:
    draw = np.random.default_rng(3)
    epochs = []
    for height, share in ((0.0, 0.1), (5.0, 0.5), (10.0, 0.9)):
        sizes = (int(2000 * (1 - share)), int(2000 * share))
        arms = [draw.normal(height + more, 1, n) for more, n in zip((0.3, 0.0), sizes, strict=True)]
        epochs.append(epoch(draw, *arms))
    together = np.concatenate(epochs)
    means, counts, variance = level(together)
    assert means[0] - means[1] == pytest.approx(0.3, abs=0.15)
    assert variance == pytest.approx(1.0, abs=0.1)
    assert counts.sum() <= 6000
    assert best_probabilities(together, MetricKind.MEAN, Direction.UP, seed=1)[0] > 0.95


def test_accounts_count_less_than_their_requests() -> None:
    draw = np.random.default_rng(4)
    found = empty(1, 2)
    for arm in range(2):
        for bucket, effect in enumerate(draw.normal(0, 1, 100)):
            add(found[0, arm], np.full(20, bucket), effect + draw.normal(0, 1, 20))
    _, counts, _ = level(found)
    assert counts.sum() == pytest.approx(4000 / (1 + 19 * 0.5), rel=0.3)


def test_shares_keep_the_floor_and_repeat() -> None:
    draw = np.random.default_rng(5)
    moments = epoch(draw, *(draw.normal(mean, 1, 3000) for mean in (0.0, 1.0, 0.1)))
    found = shares(moments, MetricKind.MEAN, Direction.UP, floor_share=0.05, seed=9)
    assert sum(found) == pytest.approx(1.0)
    assert min(found) >= 0.05
    assert found[1] == pytest.approx(0.9, abs=0.01)
    assert found == shares(moments, MetricKind.MEAN, Direction.UP, floor_share=0.05, seed=9)
    with pytest.raises(ValueError, match="can't have a share"):
        shares(moments, MetricKind.MEAN, Direction.UP, floor_share=0.4, seed=9)


@pytest.mark.parametrize("kind", MetricKind)
def test_shares_without_outcomes_are_equal(kind: MetricKind) -> None:
    assert shares(empty(2, 4), kind, Direction.UP, floor_share=0.05, seed=1) == pytest.approx((0.25,) * 4)
    assert shares(empty(0, 2), kind, Direction.UP, floor_share=0.05, seed=1) == pytest.approx((0.5, 0.5))


def test_outcomes_without_any_spread_still_tell_the_better_one() -> None:
    moments = empty(1, 2)
    for variant, value in ((0, 0.0), (1, 1.0)):
        add(moments[0, variant], np.arange(200) % 256, np.full(200, value))
    for kind in (MetricKind.RATE, MetricKind.MEAN):
        found = shares(moments, kind, Direction.UP, floor_share=0.1, seed=1)
        assert found[1] > 0.85
    moments[..., 1:3] = moments[..., :1]
    assert shares(moments, MetricKind.MEAN, Direction.UP, floor_share=0.1, seed=1) == pytest.approx(
        (0.5, 0.5)
    )
