"""Posteriors against scipy's distributions, and the probability of being the best against numeric integration."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from control_plane.ensembles.credit import Floats, contribution
from control_plane.ensembles.posteriors import (
    DRAWS,
    Beta,
    Normal,
    best_probabilities,
    beta_posterior,
    evidence,
    normal_posterior,
)

MONTE_CARLO = 4 * math.sqrt(0.25 / DRAWS)
"""Four standard errors of a probability."""
LEVELS = (np.arange(2000) + 0.5) / 2000
"""Midpoints: the mean over one's quantiles of the probability that the other is below is ∫ f F dx, to 0.0005."""


def sums(rewards: list[list[float]]) -> Floats:
    """Statistics of agents that share no rewards, each with credit 1."""
    return np.array([sum((contribution(np.ones(1), r, 1.0)[0] for r in own), np.zeros(4)) for own in rewards])


def test_evidence_of_equal_credits_is_the_sample() -> None:
    draw = np.random.default_rng(1)
    rewards = [list(draw.normal(3, 2, size)) for size in (5, 40)]
    found = evidence(sums(rewards))
    assert found.count == pytest.approx([5, 40])
    assert found.mean == pytest.approx([np.mean(own) for own in rewards])
    assert found.variance == pytest.approx([np.var(own) for own in rewards])
    everything = np.concatenate(rewards)
    assert found.centre == pytest.approx(everything.mean())
    assert found.pooled == pytest.approx(everything.var())


def test_evidence_of_rare_actions_counts_the_rewards_there_were() -> None:
    # Seven rewards at credit 10: Σc is 70, though only seven were seen; forgetting shrinks the count.
    statistics = sum(contribution(np.array([10.0]), r, 0.5) for r in range(7))
    assert evidence(statistics).count == pytest.approx([3.5])


def test_evidence_without_rewards_is_zero() -> None:
    found = evidence(np.zeros((3, 4)))
    assert found.count.tolist() == found.mean.tolist() == found.variance.tolist() == [0.0] * 3
    assert found.centre == found.pooled == 0.0


def test_evidence_of_equal_rewards_has_no_scale_despite_rounding() -> None:
    assert evidence(sums([[0.1] * 7, [0.1] * 1000])).pooled == 0.0


@given(st.integers(0, 2**32), st.floats(-5, 5), st.floats(0.1, 10), st.integers(1, 50))
def test_normal_posterior_equals_sequential_conjugate_updates(
    seed: int, place: float, scale: float, size: int
) -> None:
    """One reward at a time, by the textbook's recursion, from the same prior."""
    draw = np.random.default_rng(seed)
    rewards = [list(draw.normal(place, scale, size)), list(draw.normal(place, scale, 10))]
    found = evidence(sums(rewards))
    posterior = normal_posterior(found)
    mean, kappa, alpha, beta = found.centre, 1.0, 2.0, 2.0 * found.pooled
    for reward in rewards[0]:
        beta += kappa * (reward - mean) ** 2 / (2 * (kappa + 1))
        mean = (kappa * mean + reward) / (kappa + 1)
        kappa, alpha = kappa + 1, alpha + 0.5
    assert posterior.location[0] == pytest.approx(mean)
    assert posterior.degrees[0] == pytest.approx(2 * alpha)
    assert posterior.scale[0] == pytest.approx(math.sqrt(beta / (alpha * kappa)))
    summary = posterior.summaries(found.count)[0]
    marginal = stats.t(2 * alpha, loc=mean, scale=math.sqrt(beta / (alpha * kappa)))
    assert (summary.lower, summary.upper) == pytest.approx(marginal.interval(0.95))
    assert summary.mean == pytest.approx(marginal.mean())
    assert summary.sd == pytest.approx(marginal.std())
    assert summary.pulls == pytest.approx(size)


def test_normal_posterior_without_own_rewards_is_as_the_others_with_their_noise() -> None:
    found = evidence(sums([[], [1.0, 3.0], [5.0, 7.0]]))
    mine = normal_posterior(found).summaries(found.count)[0]
    assert mine.mean == pytest.approx(4.0)
    assert mine.sd == pytest.approx(math.sqrt(5.0 * 4 / 2))  # Student's t with 4 degrees, scale √5
    assert mine.pulls == 0.0


def test_normal_posterior_without_scale_says_nothing_but_the_count() -> None:
    found = evidence(sums([[2.0], []]))
    summaries = normal_posterior(found).summaries(found.count)
    assert [(s.mean, s.sd, s.lower, s.upper, s.pulls) for s in summaries] == [
        (None, None, None, None, 1.0),
        (None, None, None, None, 0.0),
    ]


@given(st.integers(0, 200), st.integers(0, 200))
def test_beta_posterior_equals_scipy(successes: int, failures: int) -> None:
    found = evidence(sums([[1.0] * successes + [0.0] * failures]))
    posterior = beta_posterior(found)
    exact = stats.beta(1 + successes, 1 + failures)
    summary = posterior.summaries(found.count)[0]
    assert summary.mean == pytest.approx(exact.mean())
    assert summary.sd == pytest.approx(exact.std())
    assert (summary.lower, summary.upper) == pytest.approx(exact.interval(0.95))


@pytest.mark.parametrize("degrees", [4.0, 5.7, 30.0, 1e6])
def test_normal_draws_follow_students_t(degrees: float) -> None:
    one = np.ones(2)
    drawn = Normal(location=3.0 * one, scale=2.0 * one, degrees=degrees * one).draws()
    for row in drawn:
        assert stats.kstest(row, stats.t(degrees, loc=3.0, scale=2.0).cdf).pvalue > 0.001
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.1


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (1.0, 1e6), (1e6, 1.0), (3.5, 1.2), (5000.0, 7000.0)])
def test_beta_draws_follow_the_beta_distribution(a: float, b: float) -> None:
    drawn = Beta(a=np.array([a]), b=np.array([b])).draws()[0]
    assert stats.kstest(drawn, stats.beta(a, b).cdf).pvalue > 0.001


def test_draws_are_the_same_each_time_and_move_with_the_posterior() -> None:
    two = Normal(location=np.zeros(2), scale=np.ones(2), degrees=np.full(2, 9.0))
    moved = Normal(location=np.full(2, 1e-3), scale=np.ones(2), degrees=np.full(2, 9.0))
    np.testing.assert_array_equal(two.draws(), two.draws())
    assert moved.draws() - two.draws() == pytest.approx(1e-3)


@given(st.floats(-3, 3), st.floats(0.1, 10), st.floats(4, 500), st.floats(4, 500))
def test_best_probability_of_two_normals_equals_integration(
    gap: float, scale: float, degrees: float, other_degrees: float
) -> None:
    posterior = Normal(
        location=np.array([gap, 0.0]),
        scale=np.array([1.0, scale]),
        degrees=np.array([degrees, other_degrees]),
    )

    quantiles = gap + special.stdtrit(degrees, LEVELS)
    exact = special.stdtr(other_degrees, quantiles / scale).mean()
    found = best_probabilities(posterior)
    assert found[0] == pytest.approx(exact, abs=MONTE_CARLO)
    assert found.sum() == pytest.approx(1.0, abs=1e-12)


@given(*(st.floats(1, 300) for _ in range(4)))
def test_best_probability_of_two_betas_equals_integration(a: float, b: float, c: float, d: float) -> None:
    exact = special.betainc(c, d, special.betaincinv(a, b, LEVELS)).mean()
    found = best_probabilities(Beta(a=np.array([a, c]), b=np.array([b, d])))
    assert found[0] == pytest.approx(exact, abs=MONTE_CARLO)


def test_best_probability_of_a_hopeless_agent_is_small_but_positive() -> None:
    found = best_probabilities(
        Normal(location=np.array([0.0, 1e6]), scale=np.ones(2), degrees=np.full(2, 1e4))
    )
    assert 0 < found[0] < 1 / DRAWS


@given(st.integers(0, 2**32), st.integers(2, 8))
def test_best_probabilities_of_many_agents_are_positive_and_sum_to_one(seed: int, agents: int) -> None:
    draw = np.random.default_rng(seed)
    posterior = Normal(
        location=draw.normal(size=agents),
        scale=draw.uniform(0.1, 2, agents),
        degrees=draw.uniform(4, 99, agents),
    )
    found = best_probabilities(posterior)
    assert (found > 0).all()
    assert found.sum() == pytest.approx(1.0, abs=1e-12)
