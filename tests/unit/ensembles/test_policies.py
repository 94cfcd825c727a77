"""Weights from statistics: what each policy makes of them, what it is indifferent to, and what is refused."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.ensembles.credit import Floats, contribution
from control_plane.ensembles.policies import (
    PolicySettings,
    RewardKind,
    WeightsPolicy,
    check,
    check_reward,
    learned_weights,
)

AGENTS = ("ppo", "a2c", "sac", "td3", "dqn")
LEARNING = [
    PolicySettings(),
    PolicySettings(policy=WeightsPolicy.SOFTMAX),
    PolicySettings(floor=0.05),
    PolicySettings(reward=RewardKind.BINARY),
    PolicySettings(policy=WeightsPolicy.SOFTMAX, reward=RewardKind.BINARY),
]
SEEDS = st.integers(0, 2**32)


def some_credits(seed: int, size: int = 200) -> Floats:
    """float64 [rewards, agents]."""
    return np.random.default_rng(seed).uniform(0, 10, (size, len(AGENTS))) ** 2 / 10


def some_rewards(seed: int, size: int = 200) -> Floats:
    """float64 [rewards], of mean 0.2 and standard deviation 1."""
    return np.random.default_rng(seed + 1).normal(0.2, 1, size)


def summed(shares: Floats, rewards: Floats) -> Floats:
    """The statistics, float64 [agents, 4]."""
    return contribution(shares, rewards, np.ones(len(rewards))).sum(axis=0)


@given(SEEDS, st.sampled_from(LEARNING))
def test_weights_are_probabilities_above_the_floor(seed: int, settings: PolicySettings) -> None:
    rewards = some_rewards(seed)
    if settings.reward is RewardKind.BINARY:
        rewards = (rewards > 0).astype(np.float64)
    weights, posteriors = learned_weights(settings, AGENTS, summed(some_credits(seed), rewards))
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert (weights >= settings.floor).all()
    assert len(posteriors) == len(AGENTS)
    for found in posteriors:
        assert found.lower is not None
        assert found.mean is not None
        assert found.upper is not None
        assert found.lower < found.mean < found.upper


@given(SEEDS, st.permutations(range(len(AGENTS))), st.sampled_from(LEARNING))
def test_weights_of_reordered_agents_are_reordered(
    seed: int, order: list[int], settings: PolicySettings
) -> None:
    rewards = some_rewards(seed)
    if settings.reward is RewardKind.BINARY:
        rewards = (rewards > 0).astype(np.float64)
    statistics = summed(some_credits(seed), rewards)
    weights, posteriors = learned_weights(settings, AGENTS, statistics)
    names = tuple(AGENTS[place] for place in order)
    moved, moved_posteriors = learned_weights(settings, names, statistics[order])
    # The sums over agents are taken in another order, so a draw may fall on the other side of a tie.
    assert moved == pytest.approx(weights[order], abs=2 / 4096)
    assert [p.mean for p in moved_posteriors] == pytest.approx([posteriors[place].mean for place in order])


@given(SEEDS, st.floats(1e-6, 1e6), st.floats(-20, 20), st.sampled_from(LEARNING[:3]))
def test_weights_of_scaled_and_shifted_rewards_are_the_same(
    seed: int, scale: float, shift: float, settings: PolicySettings
) -> None:
    shares, rewards = some_credits(seed), some_rewards(seed)
    weights, posteriors = learned_weights(settings, AGENTS, summed(shares, rewards))
    moved, moved_posteriors = learned_weights(settings, AGENTS, summed(shares, scale * (rewards + shift)))
    assert moved == pytest.approx(weights, abs=2 / 4096)
    for mine, theirs in zip(posteriors, moved_posteriors, strict=True):
        assert mine.mean is not None
        assert mine.sd is not None
        assert theirs.mean == pytest.approx(scale * (mine.mean + shift), abs=1e-9 * scale * 20)
        assert theirs.sd == pytest.approx(scale * mine.sd, rel=1e-9)
        assert theirs.pulls == mine.pulls


@pytest.mark.parametrize("settings", [*LEARNING, PolicySettings(policy=WeightsPolicy.FIXED)])
def test_weights_without_rewards_are_uniform(settings: PolicySettings) -> None:
    weights, posteriors = learned_weights(settings, AGENTS, np.zeros((5, 4)))
    assert weights == pytest.approx(np.full(5, 0.2))
    assert [found.pulls for found in posteriors] == [0.0] * 5


@pytest.mark.parametrize("settings", LEARNING[:3])
@pytest.mark.parametrize("reward", [0.0, 0.1, -3e7])
def test_weights_after_equal_rewards_are_uniform(settings: PolicySettings, reward: float) -> None:
    statistics = summed(some_credits(1), np.full(200, reward))
    assert learned_weights(settings, AGENTS, statistics)[0] == pytest.approx(np.full(5, 0.2))


@pytest.mark.parametrize("settings", LEARNING)
def test_weight_of_the_agent_that_earned_most_is_the_greatest(settings: PolicySettings) -> None:
    shares = np.tile(np.eye(5), (200, 1))
    rewards = (np.random.default_rng(3).random(1000) < 0.3 + 0.3 * shares[:, 2]).astype(np.float64)
    weights, posteriors = learned_weights(settings, AGENTS, summed(shares, rewards))
    assert weights.argmax() == 2
    assert weights[2] > 0.7
    assert [found.pulls for found in posteriors] == pytest.approx([200.0] * 5)


def test_fixed_weights_are_as_given_whatever_is_earned() -> None:
    given = {"dqn": 0.5, "ppo": 0.25, "a2c": 0.25, "sac": 0.0, "td3": 0.0}
    settings = PolicySettings(policy=WeightsPolicy.FIXED, weights=given)
    check(settings, AGENTS)
    weights, posteriors = learned_weights(settings, AGENTS, summed(some_credits(1), some_rewards(1)))
    assert weights.tolist() == [0.25, 0.25, 0.0, 0.0, 0.5]
    assert posteriors[0].mean is not None


def test_softmax_weights_follow_the_temperature() -> None:
    shares = np.tile(np.eye(5), (1000, 1))
    rewards = np.random.default_rng(3).normal(shares[:, 0] * 0.1, 1)
    ratios = []
    for temperature in (0.1, 0.2):
        settings = PolicySettings(policy=WeightsPolicy.SOFTMAX, temperature=temperature)
        weights, _ = learned_weights(settings, AGENTS, summed(shares, rewards))
        ratios.append(math.log(weights[0] / weights[1]))
    assert ratios[0] == pytest.approx(2 * ratios[1])


def test_weights_of_one_agent_are_one() -> None:
    weights, _ = learned_weights(PolicySettings(), ("ppo",), summed(some_credits(1), some_rewards(1))[:1])
    assert weights.tolist() == [1.0]


def test_settings_as_json_survive_the_round_trip_and_refuse_unknown_fields() -> None:
    settings = PolicySettings(policy=WeightsPolicy.SOFTMAX, half_life_hours=24.0, floor=0.01)
    assert msgspec.json.decode(msgspec.json.encode(settings), type=PolicySettings) == settings
    assert msgspec.json.decode(b"{}", type=PolicySettings) == PolicySettings()
    with pytest.raises(msgspec.ValidationError, match="halflife"):
        msgspec.json.decode(b'{"halflife": 1}', type=PolicySettings)
    with pytest.raises(msgspec.ValidationError, match="ucb"):
        msgspec.json.decode(b'{"policy": "ucb"}', type=PolicySettings)


FIXED = WeightsPolicy.FIXED
EVEN = dict.fromkeys(AGENTS, 0.2)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            PolicySettings(half_life_hours=9e-4),
            "half_life_hours: expected from 0.001 to 1e.06 or null, got 0.0009",
        ),
        (PolicySettings(half_life_hours=2e6), "half_life_hours: expected .* got 2e.06"),
        (PolicySettings(half_life_hours=math.nan), "half_life_hours: expected .* got nan"),
        (PolicySettings(temperature=5e-324), "temperature: expected from 1e-06 to 1e.06, got 4.94066e-324"),
        (PolicySettings(temperature=math.inf), "temperature: expected .* got inf"),
        (PolicySettings(floor=0.21), r"floor: expected from 0 to 0.2 \(1 / 5 agents\), got 0.21"),
        (PolicySettings(floor=-0.1), "floor: expected from 0"),
        (PolicySettings(weights=EVEN), "weights: expected none with policy thompson"),
        (PolicySettings(policy=FIXED, weights=EVEN, floor=0.1), "floor: expected 0 beside given weights"),
        (PolicySettings(policy=FIXED, weights={"ppo": 1.0}), "expected one for each of ppo, a2c.*, got ppo"),
        (PolicySettings(policy=FIXED, weights=EVEN | {"dqn": 0.3}), "weights: expected a sum of 1, got 1.1"),
        (PolicySettings(policy=FIXED, weights=EVEN | {"dqn": -0.2}), "at least 0 for dqn, got -0.2"),
        (PolicySettings(policy=FIXED, weights=EVEN | {"dqn": math.nan}), "at least 0 for dqn, got nan"),
    ],
)
def test_check_of_senseless_settings_says_what_was_expected(settings: PolicySettings, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check(settings, AGENTS)


@pytest.mark.parametrize("reward", [-0.1, 1.1, math.nan])
def test_check_reward_of_a_binary_model_takes_nothing_beyond_0_to_1(reward: float) -> None:
    settings = PolicySettings(reward=RewardKind.BINARY)
    check_reward(settings, 0.0)
    check_reward(settings, 1.0)
    with pytest.raises(ValueError, match="expected from 0 to 1"):
        check_reward(settings, reward)


@pytest.mark.parametrize("reward", [math.nan, math.inf, 1e200])
def test_check_reward_refuses_what_is_not_finite(reward: float) -> None:
    check_reward(PolicySettings(), -1e9)
    with pytest.raises(ValueError, match="expected a finite number"):
        check_reward(PolicySettings(), reward)
