"""Credit, and sums that forget: the same in any order, on any number of replicas, at any time."""

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.ensembles import credit
from control_plane.ensembles.credit import CREDIT_CAP, Decay, Floats, combine, contribution

AGENTS = 3
HALF_LIVES_S = st.one_of(st.none(), st.floats(1e-3, 1e9))
Event = tuple[float, float, list[float]]
"""Time in half-lives, reward, credit of each agent."""


def events(span_half_lives: float) -> st.SearchStrategy[list[Event]]:
    """Some rewards over a span of time."""
    event = st.tuples(
        st.floats(0, span_half_lives),
        st.floats(-1e3, 1e3),
        st.lists(st.floats(0, CREDIT_CAP), min_size=AGENTS, max_size=AGENTS),
    )
    return st.lists(event, min_size=1, max_size=30)


def summed(given: Sequence[Event], decay: Decay, begin_s: float) -> dict[int, Floats]:
    """The sums by period, as a store keeps them."""
    periods: dict[int, Floats] = {}
    for half_lives, reward, shares in given:
        time_s = begin_s + half_lives * (decay.half_life_s or 1.0)
        period = decay.period(time_s)
        terms = contribution(np.array(shares), reward, decay.factor(time_s))
        periods[period] = periods.get(period, np.zeros((AGENTS, 4))) + terms
    return periods


def recomputed(given: Sequence[Event], decay: Decay, begin_s: float, now_s: float) -> tuple[Floats, Floats]:
    """The sums straight from their definition, with exact summation; and the same of absolute values."""
    sums, sizes = np.zeros((AGENTS, 4)), np.zeros((AGENTS, 4))
    for agent in range(AGENTS):
        for column in range(4):
            terms = []
            for half_lives, reward, shares in given:
                time_s = begin_s + half_lives * (decay.half_life_s or 1.0)
                c = shares[agent]
                age = 0.0 if decay.half_life_s is None else (now_s - time_s) / decay.half_life_s
                terms.append((c, c * c, c * reward, c * reward * reward)[column] * 2.0**-age)
            sums[agent, column], sizes[agent, column] = math.fsum(terms), math.fsum(map(abs, terms))
    return sums, sizes


def assert_close(found: Floats, expected: Floats, sizes: Floats) -> None:
    """Equal to 1e-9 of the size of the terms."""
    assert (np.abs(found - expected) <= 1e-9 * sizes + 1e-300).all()


@given(events(150.0), HALF_LIVES_S, st.integers(0, 2**32), st.integers(0, 30))
def test_sums_in_any_order_on_any_replicas_are_the_same(
    given: list[Event], half_life_s: float | None, seed: int, split: int
) -> None:
    decay = Decay(half_life_s=half_life_s)
    now_s = 151.0 * (half_life_s or 1.0)
    together = combine(summed(given, decay, 0.0), decay, now_s)
    shuffled = random.Random(seed).sample(given, len(given))
    one, other = (summed(part, decay, 0.0) for part in (shuffled[:split], shuffled[split:]))
    merged = {
        period: one.get(period, np.zeros((AGENTS, 4))) + other.get(period, np.zeros((AGENTS, 4)))
        for period in one.keys() | other.keys()
    }
    _, sizes = recomputed(given, decay, 0.0, now_s)
    assert_close(combine(merged, decay, now_s), together, sizes)


@given(events(100.0), st.floats(0.5, 1e7), st.sampled_from([0.0, -3e9, 1.7e9, 4e11]), st.floats(0, 300))
def test_sums_across_periods_equal_their_definition(
    given: list[Event], half_life_s: float, begin_s: float, later: float
) -> None:
    # Times as floats: their own rounding, relative to the half-life, is below 1e-9 only if the half-life isn't tiny.
    half_life_s = max(half_life_s, abs(begin_s) * 1e-5)
    decay = Decay(half_life_s=half_life_s)
    now_s = begin_s + (100.0 + later) * half_life_s
    found = combine(summed(given, decay, begin_s), decay, now_s)
    assert_close(found, *recomputed(given, decay, begin_s, now_s))


@given(events(50.0))
def test_sums_without_half_life_are_plain(given: list[Event]) -> None:
    decay = Decay(half_life_s=None)
    periods = summed(given, decay, 1e9)
    assert set(periods) == {0}
    assert_close(combine(periods, decay, 2e9), *recomputed(given, decay, 1e9, 2e9))


@given(st.floats(-1e15, 1e15), st.floats(1e-6, 1e12))
def test_factor_at_any_time_is_within_its_period(time_s: float, half_life_s: float) -> None:
    decay = Decay(half_life_s=half_life_s)
    assert 1.0 <= decay.factor(time_s) < 2.0**64
    begin_s = decay.period(time_s) * 64 * half_life_s
    assert begin_s <= time_s + abs(time_s) * 1e-12
    assert time_s < begin_s + 64 * half_life_s * (1 + 1e-12) + abs(time_s) * 1e-12


def test_reward_of_one_half_life_ago_counts_half() -> None:
    decay = Decay(half_life_s=100.0)
    times_s = (6300.0, 6400.0)  # the last half-life of a period, and the first moment of the next one
    periods = {decay.period(t): contribution(np.ones(1), 4.0, decay.factor(t)) for t in times_s}
    assert sorted(periods) == [0, 1]
    assert combine(periods, decay, 6400.0).tolist() == [[1.5, 1.5, 6.0, 24.0]]
    assert combine(periods, decay, 6500.0).tolist() == [[0.75, 0.75, 3.0, 12.0]]


def test_combine_after_very_long_is_zero_and_spent() -> None:
    decay = Decay(half_life_s=1.0)
    periods = {0: contribution(np.full(1, 10.0), 1e3, decay.factor(63.0))}
    assert not decay.is_spent(0, 191.0)
    assert decay.is_spent(0, 192.0)
    assert combine(periods, decay, 192.0)[0, 0] < 10 * 2.0**-128
    assert combine(periods, decay, 1e12).tolist() == [[0.0] * 4]
    assert not Decay(half_life_s=None).is_spent(0, 1e12)


def test_combine_with_a_reward_from_the_future_stays_finite() -> None:
    decay = Decay(half_life_s=1e-3)
    periods = {decay.period(t): contribution(np.ones(1), 1.0, decay.factor(t)) for t in (1e9, 2e9)}
    assert np.isfinite(combine(periods, decay, 1e9)).all()


def test_combine_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one period"):
        combine({}, Decay(half_life_s=None), 0.0)


@pytest.mark.parametrize("half_life_s", [0.0, -1.0, math.nan, math.inf, 1e308])
def test_decay_with_impossible_half_life_is_refused(half_life_s: float) -> None:
    with pytest.raises(ValueError, match="half_life_s must be positive and finite"):
        Decay(half_life_s=half_life_s)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf, 1e200])
def test_contribution_of_a_reward_that_overflows_is_refused(reward: float) -> None:
    with pytest.raises(ValueError, match="expected a finite reward"):
        contribution(np.ones(2), reward, 1.0)


def test_credits_are_importance_weights_with_a_cap() -> None:
    probs = np.array([[0.5, 0.5, 0.0], [0.1, 0.0, 0.9]])
    weights = np.array([0.96, 0.04])
    assert credit.credits(probs, weights, 0) == pytest.approx([0.5 / 0.484, 0.1 / 0.484])
    assert credit.credits(probs, weights, 1) == pytest.approx([1 / 0.96, 0.0])
    assert credit.credits(probs, weights, 2).tolist() == [0.0, CREDIT_CAP]
    assert credit.credits(probs, weights, 2, cap=math.inf) == pytest.approx([0.0, 25.0])


def test_credits_of_an_action_beyond_the_mixture_are_the_cap_or_nothing() -> None:
    probs = np.array([[1.0, 0.0, 0.0], [0.0, 1e-200, 0.0], [0.0, 0.5, 0.0]])
    assert credit.credits(probs, np.array([1.0, 0.0, 0.0]), 1).tolist() == [0.0, CREDIT_CAP, CREDIT_CAP]
    assert credit.credits(probs, np.array([1.0, 0.0, 0.0]), 2).tolist() == [0.0, 0.0, 0.0]
    assert credit.credits(probs, np.array([0.5, 0.5, 1e-300]), 1).tolist() == pytest.approx([0, 2, 10])


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(2, 5))
def test_credits_of_each_agent_average_one_under_the_mixture(seed: int, agents: int, actions: int) -> None:
    draw = np.random.default_rng(seed)
    probs = draw.dirichlet(np.ones(actions), agents)
    weights = draw.dirichlet(np.ones(agents))
    shares = np.array([credit.credits(probs, weights, a, cap=math.inf) for a in range(actions)])
    assert (weights @ probs) @ shares == pytest.approx(np.ones(agents))


@given(st.integers(0, 2**32))
def test_credits_and_contributions_of_many_equal_those_of_each(seed: int) -> None:
    draw = np.random.default_rng(seed)
    probs, weights = draw.dirichlet(np.ones(3), (4, 5)), draw.dirichlet(np.ones(5), 4)
    actions, rewards, factors = draw.integers(3, size=4), draw.standard_normal(4), draw.uniform(1, 9, 4)
    many = contribution(credit.credits(probs, weights, actions), rewards, factors)
    for i in range(4):
        one = contribution(credit.credits(probs[i], weights[i], int(actions[i])), rewards[i], factors[i])
        np.testing.assert_array_equal(many[i], one)
