"""Off-policy evaluation: against a plain loop, under changes that must change nothing, and where it has to refuse."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.ensembles import confidence, off_policy
from control_plane.ensembles.off_policy import Log, NotIdentifiable, evaluate, evaluate_probabilities
from control_plane.ensembles.outcome_model import BURN_IN, batches
from control_plane.ensembles.scores import score

WEIGHTS = {
    "first": np.array([1.0, 0.0, 0.0]),
    "uniform": np.full(3, 1 / 3),
    "given": np.array([0.2, 0.5, 0.3]),
}


def make_log(
    seed: int = 0, *, entries: int = 400, agents: int = 3, actions: int = 3, spread: float = 1.0
) -> Log:
    """Weights that change every few entries; rewards that depend on action and context."""
    random = np.random.default_rng(seed)
    probs = random.dirichlet(np.full(actions, 1 / spread), (entries, agents))
    changes = random.dirichlet(np.ones(agents), entries // 7 + 1)
    weights = changes.repeat(7, axis=0)[:entries]
    mixture = np.einsum("na,nak->nk", weights, probs)
    action = (mixture.cumsum(axis=1) < random.random((entries, 1))).sum(axis=1).clip(max=actions - 1)
    return Log(
        agent_probs=probs,
        weights=weights,
        action=action,
        propensity=mixture[np.arange(entries), action],
        reward=random.standard_normal(entries) + action * probs[:, 0, 0],
        sampled=np.ones(entries, np.bool_),
    )


def probs_of(log: Log, weights: np.ndarray) -> np.ndarray:
    return np.einsum("a,nak->nk", weights, log.agent_probs)


def numbers(value: off_policy.PolicyValue) -> np.ndarray:
    """All figures of a value."""
    rows = [value.ips, value.snips, value.dr]
    return np.array(
        [
            *(number for one in rows for number in (one.estimate, one.standard_error, one.lower, one.upper)),
            *(value.estimate, value.standard_error, value.interval.lower, value.interval.upper),
            *(value.naive_interval.lower, value.naive_interval.upper),
            *(value.effective_sample_size, value.expected_effective_size, value.unsupported),
            *(value.mean_weight, value.mean_weight_error, value.max_weight, value.max_weight_share),
        ]
    )


def expected_rewards(log: Log, until: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Intercepts, slopes and noise of each action from the first entries, by least squares with made-up rows."""
    reward, features = log.reward[:until], log.agent_probs[:until].reshape(until, -1)
    intercepts, slopes, noise = [], [], []
    for action in range(log.agent_probs.shape[2]):
        here = log.action[:until] == action
        if here.sum() < 5:
            intercepts.append(reward.mean())
            slopes.append(np.zeros(features.shape[1]))
            noise.append(reward.var())
            continue
        x, r, count = features[here], reward[here], here.sum()
        ridge = 10 * x.var(axis=0).sum() / count
        rows = np.vstack([(x - x.mean(axis=0)) / count**0.5, ridge**0.5 * np.eye(x.shape[1])])
        wanted = np.concatenate([(r - r.mean()) / count**0.5, np.zeros(x.shape[1])])
        slope = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        intercepts.append(r.mean() - x.mean(axis=0) @ slope)
        slopes.append(slope)
        residual = r.var() - np.mean((x - x.mean(axis=0)) * (r - r.mean())[:, None], axis=0) @ slope
        noise.append((count * residual + 5 * reward.var()) / (count + 5))
    return np.array(intercepts), slopes, np.array(noise)


def test_evaluate_equals_a_plain_loop() -> None:
    log, weights = make_log(3, entries=150), WEIGHTS["given"]
    value = evaluate(log, {"given": weights}).policies["given"]
    count, actions = len(log.action), log.agent_probs.shape[2]
    ratios, robust, stabilisers = [], [], []
    for i in range(count):
        target = sum(weights[k] * log.agent_probs[i, k] for k in range(3))
        ratios.append(target[log.action[i]] / log.propensity[i])
        if i < BURN_IN:
            continue
        until = next(batch.start for batch in batches(count) if batch.start <= i < batch.stop)
        intercepts, slopes, noise = expected_rewards(log, until)

        def expect(
            j: int, a: int, intercepts: np.ndarray = intercepts, slopes: list[np.ndarray] = slopes
        ) -> float:
            return float(intercepts[a] + log.agent_probs[j].reshape(-1) @ slopes[a])

        direct = sum(target[a] * expect(i, a) for a in range(actions))
        robust.append(direct + ratios[-1] * (log.reward[i] - expect(i, log.action[i])))
        spread, directs = [], []
        for j in sorted({int(place) for place in np.linspace(0, until - 1, 64)}):
            there = weights @ log.agent_probs[j]
            mixture = log.weights[i] @ log.agent_probs[j]
            spread.append(sum(there[a] ** 2 * noise[a] / mixture[a] for a in range(actions)))
            directs.append(sum(there[a] * expect(j, a) for a in range(actions)))
        stabilisers.append((np.mean(spread) + np.var(directs)) ** -0.5)
    ratios, robust, h = np.array(ratios), np.array(robust), np.array(stabilisers)
    assert value.ips.estimate == pytest.approx(np.mean(ratios * log.reward))
    assert value.snips.estimate == pytest.approx(np.average(log.reward, weights=ratios))
    assert value.dr.estimate == pytest.approx(robust.mean())
    assert value.dr.standard_error == pytest.approx(robust.std(ddof=1) / len(robust) ** 0.5)
    assert value.estimate == pytest.approx(np.average(robust, weights=h))
    terms = h * (robust - value.estimate)
    lags = int(len(terms) ** 0.5)
    nearby = [
        (1 - abs(i - j) / (lags + 1)) * terms[i] * terms[j]
        for i in range(len(terms))
        for j in range(len(terms))
        if abs(i - j) <= lags
    ]
    assert value.standard_error == pytest.approx(max(sum(terms**2), sum(nearby)) ** 0.5 / sum(h))
    assert value.effective_sample_size == pytest.approx(sum(ratios) ** 2 / sum(ratios**2))
    assert value.max_weight == pytest.approx(max(ratios))


def test_evaluate_of_what_was_done_is_the_mean_reward() -> None:
    log = make_log(1)
    done = evaluate_probabilities(log, {"done": np.einsum("na,nak->nk", log.weights, log.agent_probs)})
    value = done.policies["done"]
    assert value.ips.estimate == pytest.approx(log.reward.mean())
    assert value.snips.estimate == pytest.approx(log.reward.mean())
    assert done.logged.estimate == pytest.approx(log.reward.mean())
    assert (value.max_weight, value.mean_weight) == (pytest.approx(1), pytest.approx(1))
    assert value.effective_sample_size == pytest.approx(len(log.action))
    assert value.expected_effective_size == pytest.approx(len(log.action) - BURN_IN, rel=0.05)


def test_one_hot_weights_equal_the_agent_alone() -> None:
    log = make_log(2)
    for agent, one in enumerate(np.eye(3)):
        by_weights = evaluate(log, {"it": one}).policies["it"]
        directly = evaluate_probabilities(log, {"it": log.agent_probs[:, agent]}).policies["it"]
        np.testing.assert_allclose(numbers(by_weights), numbers(directly), rtol=1e-12)


@given(seed=st.integers(0, 2**31), order=st.permutations(range(3)), names=st.permutations(range(3)))
@settings(max_examples=10, deadline=None)
def test_order_of_agents_and_of_actions_makes_no_difference(
    seed: int, order: list[int], names: list[int]
) -> None:
    log = make_log(seed, entries=200)
    other = replace(
        log,
        agent_probs=log.agent_probs[:, order][:, :, names],
        weights=log.weights[:, order],
        action=np.argsort(names)[log.action],
    )
    here = evaluate(log, WEIGHTS).policies
    there = evaluate(other, {name: weights[order] for name, weights in WEIGHTS.items()}).policies
    for name in WEIGHTS:
        np.testing.assert_allclose(numbers(here[name]), numbers(there[name]), rtol=1e-7)


@given(
    seed=st.integers(0, 2**31), shift=st.floats(-1e4, 1e4), scale=st.sampled_from([1e-5, 0.3, 7.0, 1e3, -2.0])
)
@settings(max_examples=10, deadline=None)
def test_other_units_of_reward_only_change_the_units(seed: int, shift: float, scale: float) -> None:
    log = make_log(seed, entries=200)
    here = evaluate(log, WEIGHTS).policies["given"]
    there = evaluate(replace(log, reward=(log.reward + shift) * scale), WEIGHTS).policies["given"]
    tolerance = 1e-9 * abs(scale) * (1 + abs(shift))
    for name in ("snips", "dr"):
        one, other = getattr(here, name), getattr(there, name)
        assert other.estimate == pytest.approx((one.estimate + shift) * scale, abs=tolerance, rel=1e-7)
        assert other.standard_error == pytest.approx(one.standard_error * abs(scale), rel=1e-5)
    assert there.estimate == pytest.approx((here.estimate + shift) * scale, abs=tolerance, rel=1e-7)
    assert there.interval.width == pytest.approx(here.interval.width * abs(scale), rel=1e-5)
    # Plain inverse propensity has no such luck with a shift, only with a scale.
    scaled = evaluate(replace(log, reward=log.reward * scale), WEIGHTS).policies["given"]
    assert scaled.ips.estimate == pytest.approx(here.ips.estimate * scale, rel=1e-9)


def test_doubly_robust_is_exact_where_the_action_decides_the_reward() -> None:
    log = make_log(14, entries=600)
    worth = np.array([0.5, -1.0, 2.0])
    log = replace(log, reward=worth[log.action])
    assert np.bincount(log.action[:BURN_IN]).min() >= 5  # what the first model needs
    value = evaluate(log, WEIGHTS).policies["given"]
    assert value.dr.estimate == pytest.approx((probs_of(log, WEIGHTS["given"])[BURN_IN:] @ worth).mean())
    assert value.dr.standard_error < 0.4 * value.ips.standard_error


def test_scores_and_their_weights_know_nothing_of_what_comes_later() -> None:
    log, random = make_log(5, entries=300), np.random.default_rng(0)
    targets = np.stack([probs_of(log, weights) for weights in WEIGHTS.values()])
    before = score(log, targets)
    for now in (60, 131, 299):
        reward, action = log.reward.copy(), log.action.copy()
        reward[now:] += 1e3 * random.standard_normal(300 - now)
        action[now + 1 :] = 0
        after = score(replace(log, reward=reward, action=action), targets)
        seen = now - BURN_IN
        np.testing.assert_array_equal(before.robust[:, :seen], after.robust[:, :seen])
        np.testing.assert_array_equal(before.stabilisers[:, : seen + 1], after.stabilisers[:, : seen + 1])
        assert not np.isclose(before.robust[:, seen:], after.robust[:, seen:]).all()


def test_stabilisers_fall_where_the_target_was_hardly_ever_tried() -> None:
    log = make_log(6, entries=400, spread=20.0)  # sure agents
    weights = np.where(np.arange(400)[:, None] < 200, [[0.5, 0.25, 0.25]], [[0.01, 0.495, 0.495]])
    mixture = np.einsum("na,nak->nk", weights, log.agent_probs)
    log = replace(log, weights=weights, propensity=mixture[np.arange(400), log.action])
    stabilisers = score(log, probs_of(log, WEIGHTS["first"])[None]).stabilisers[0]
    assert stabilisers[200 - BURN_IN :].max() < 0.5 * stabilisers[60 : 200 - BURN_IN].min()


def test_only_sampled_entries_count() -> None:
    log, random = make_log(7), np.random.default_rng(1)
    sampled = random.random(len(log.action)) < 0.6
    whole = evaluate(replace(log, sampled=sampled, reward=np.where(sampled, log.reward, 1e6)), WEIGHTS)
    part = evaluate(log.only(sampled), WEIGHTS)
    assert (whole.entries, whole.sampled) == (len(sampled), sampled.sum())
    for name in WEIGHTS:
        np.testing.assert_array_equal(numbers(whole.policies[name]), numbers(part.policies[name]))


def test_greedy_log_is_refused() -> None:
    log = make_log(8)
    with pytest.raises(NotIdentifiable, match="chosen greedily"):
        evaluate(replace(log, sampled=np.zeros_like(log.sampled)), WEIGHTS)


@pytest.mark.parametrize(("entries", "reason"), [(0, "No request has got a reward"), (99, "Only 99 of 400")])
def test_too_few_sampled_entries_are_refused(entries: int, reason: str) -> None:
    log = make_log(9)
    log = replace(log, sampled=np.arange(400) < entries) if entries else log.only(np.zeros(400, np.bool_))
    with pytest.raises(NotIdentifiable) as refusal:
        evaluate(log, WEIGHTS)
    assert refusal.value.reason.startswith(reason)


def test_target_without_support_is_refused_by_name_and_the_others_answered() -> None:
    log = make_log(10)
    probs = log.agent_probs.copy()
    probs[:, 0], probs[:, 1:, 2] = [0.0, 0.1, 0.9], 0.0
    probs[:, 1:] /= probs[:, 1:].sum(axis=2, keepdims=True)
    weights = np.tile([0.0, 0.4, 0.6], (400, 1))
    mixture = np.einsum("na,nak->nk", weights, probs)
    action = (mixture[:, 0] < np.random.default_rng(2).random(400)).astype(np.int64)
    log = replace(
        log, agent_probs=probs, weights=weights, action=action, propensity=mixture[np.arange(400), action]
    )
    evaluation = evaluate(log, WEIGHTS | {"others": np.array([0.0, 0.5, 0.5])})
    assert set(evaluation.policies) == {"others"}
    assert evaluation.not_identifiable["first"].startswith("90.0%")
    assert evaluation.not_identifiable["uniform"].startswith("30.0%")
    with pytest.raises(NotIdentifiable, match=r"first: 90\.0%"):
        evaluate(log, {"first": WEIGHTS["first"]})


def test_target_that_was_tried_too_rarely_is_refused() -> None:
    log = make_log(11)
    probs = log.agent_probs.copy()
    probs[:, 0], probs[:, 1:] = [0.0, 0.0, 1.0], [0.5, 0.49, 0.01]
    weights = np.tile([0.0, 0.4, 0.6], (400, 1))
    mixture = np.array([0.5, 0.49, 0.01])
    action = np.random.default_rng(3).choice(3, size=400, p=mixture)
    log = replace(log, agent_probs=probs, weights=weights, action=action, propensity=mixture[action])
    reason = evaluate(log, WEIGHTS).not_identifiable["first"]
    assert "rest on 3.7 effective requests" in reason  # 1 % of the 375 beyond the burn-in


def test_rewards_that_are_all_equal_leave_no_doubt() -> None:
    log = make_log(12)
    value = evaluate(replace(log, reward=np.full(400, 2.5)), WEIGHTS).policies["given"]
    assert value.estimate == pytest.approx(2.5)
    assert value.interval.width == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"reward": np.full(400, np.nan)}, "reward: expected finite"),
        ({"reward": np.zeros(399)}, r"reward: expected shape \[400\], got \[399\]"),
        ({"action": np.full(400, 3)}, "action: expected 0 to 2, got 3"),
        ({"propensity": np.zeros(400)}, "propensity: expected more than 0"),
        ({"weights": np.full((400, 3), 0.5)}, "weights: expected numbers"),
        ({"agent_probs": np.full((400, 3, 3), np.nan)}, "agent_probs: expected numbers"),
        ({"agent_probs": np.zeros((400, 9))}, "agent_probs: expected"),
    ],
)
def test_log_that_cannot_be_is_refused_by_field(change: dict[str, np.ndarray], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        evaluate(replace(make_log(), **change), WEIGHTS)


@pytest.mark.parametrize("weights", [[1.0], [1.5, -0.5, 0.0], [0.5, 0.4, 0.0], [np.nan, 0.5, 0.5]])
def test_weights_that_cannot_be_are_refused_by_name(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="mine: expected"):
        evaluate(make_log(), {"mine": np.array(weights)})


def test_ratio_of_equal_weights_is_the_mean() -> None:
    rewards = np.random.default_rng(4).standard_normal(100)
    one, other = confidence.ratio(np.full(100, 3.0), rewards, level=0.9), confidence.mean(rewards, level=0.9)
    assert one.estimate == pytest.approx(other.estimate)
    assert one.standard_error == pytest.approx(other.standard_error, rel=0.01)
    assert other.upper - other.estimate == pytest.approx(1.6449 * other.standard_error, rel=1e-4)


def test_stabilised_interval_is_wider_where_neighbours_are_alike_and_where_few_scores_decide() -> None:
    random = np.random.default_rng(5)
    alone = random.standard_normal(1000)
    alike = random.standard_normal(100).repeat(10)
    few = np.where(np.arange(1000) % 200 == 0, 30.0, 0.03) * alone
    even = np.ones(1000)

    def factor(scores: np.ndarray) -> float:
        """Half-width in standard errors of a plain mean."""
        interval = confidence.stabilised(scores, even, level=0.95)
        return interval.interval.width / 2 / (scores.std() / 1000**0.5)

    assert 1.95 < factor(alone) < 2.4  # what looks like likeness by chance counts, too
    assert factor(alike) > 2 * 1.96
    assert factor(few) > 2.7
