"""The demonstration's agents: no look ahead, costs that add up, honest scores, and the committed files."""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.demo.dataset import build_dataset
from exporters.demo.features import FEATURE_NAMES
from exporters.demo.market_data import Bars, find_bars_file, read_bars
from exporters.demo.page import replace_section
from exporters.demo_rl.__main__ import TEST_OBSERVATIONS, train_agents, write_test_observations
from exporters.demo_rl.agents import PLANS, AgentPlan, TrainedAgent
from exporters.demo_rl.archive import write_ensemble
from exporters.demo_rl.environment import (
    HALF_SPREAD_BP,
    OBSERVATION_NAMES,
    Market,
    Markets,
    TradingEnvironment,
    build_markets,
    classes_of,
    rewards_bp,
)
from exporters.demo_rl.evaluation import (
    HOURS_PER_YEAR,
    class_probs,
    deterministic,
    evaluate,
    greedy,
    max_drawdown,
    q_temperature,
    score,
    sharpe_ratio,
    walk,
)
from exporters.demo_rl.report import Run, write_report

CHECKPOINTS = Path(__file__).parents[3] / "checkpoints"
ENSEMBLE = CHECKPOINTS / "rl_ensemble-v1.0.zip"
PAGE = Path(__file__).parents[3] / "docs" / "demo_models.md"
REWARDS = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50).map(np.array)


@pytest.fixture(scope="module")
def bars() -> Bars:
    return read_bars(find_bars_file())


@pytest.fixture(scope="module")
def markets(bars: Bars) -> Markets:
    return build_markets(bars, build_dataset(bars))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _cut(market: Market, bars: int) -> Market:
    return Market(
        features=market.features[:bars],
        next_return_bp=market.next_return_bp[:bars],
        time=market.time[:bars],
    )


def _tiny(plan: AgentPlan) -> AgentPlan:
    options = dict(plan.options)
    if "learning_starts" in options:
        options |= {"learning_starts": 20, "batch_size": 16}
    else:
        options |= {"n_steps": 8}
    if "n_epochs" in options:
        options |= {"batch_size": 16, "n_epochs": 1}
    return replace(plan, steps=64, environments=2, options=options)


@pytest.fixture(scope="module")
def tiny_agents(markets: Markets) -> tuple[TrainedAgent, ...]:
    return train_agents([_tiny(plan) for plan in PLANS], markets.train, seed=3)


def _committed() -> tuple[Mapping[str, Any], tuple[TrainedAgent, ...], float]:
    """The manifest, the agents as Stable-Baselines3 loads them, and DQN's temperature."""
    plans = {plan.name: plan for plan in PLANS}
    agents = []
    with zipfile.ZipFile(ENSEMBLE) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        for entry in manifest["agents"]:
            plan = plans[entry["name"]]
            stream = io.BytesIO(archive.read(entry["file"]))
            model = plan.algorithm.load(stream, device="cpu")
            agents.append(_Loaded(plan, model, archive, entry.get("normalization")))
    temperature = next(entry["temperature"] for entry in manifest["agents"] if "temperature" in entry)
    return manifest, tuple(agents), temperature


class _Loaded(TrainedAgent):
    """A committed agent, with the statistics that were written for it."""

    def __init__(self, plan: AgentPlan, model: Any, archive: zipfile.ZipFile, name: str | None) -> None:
        super().__init__(plan=plan, model=model, normalization=None)
        object.__setattr__(self, "statistics", None if name is None else json.loads(archive.read(name)))

    def prepare(self, observations):
        s = self.statistics
        if s is None:
            return observations
        scaled = (observations - np.array(s["mean"])) / np.sqrt(np.array(s["var"]) + s["epsilon"])
        return np.clip(scaled, -s["clip_obs"], s["clip_obs"]).astype(np.float32)


@pytest.mark.filterwarnings("ignore:.*(infinity|symmetric|normalized).*")
@pytest.mark.parametrize("continuous", [False, True])
def test_environment_is_one_of_gymnasium(markets: Markets, continuous: bool) -> None:
    check_env(
        TradingEnvironment(markets.train, continuous=continuous, episode_bars=20), skip_render_check=True
    )


@settings(max_examples=15)
@given(data=st.data())
def test_later_bars_change_no_earlier_observation_or_reward(
    bars: Bars, markets: Markets, data: st.DataObject
) -> None:
    known = data.draw(st.integers(1, 886), label="rows known")
    generator = np.random.default_rng(known)
    last = int(np.searchsorted(bars.time, markets.test.time[known]))
    factors = np.ones(len(bars.close))
    factors[last + 1 :] = generator.uniform(0.5, 2.0, len(factors) - last - 1)
    changed = replace(
        bars, **{name: getattr(bars, name) * factors for name in ("open", "high", "low", "close", "volume")}
    )
    other = build_markets(changed, build_dataset(changed)).test
    environments = [
        TradingEnvironment(market, continuous=False, episode_bars=None) for market in (markets.test, other)
    ]
    seen = [environment.reset(seed=1)[0] for environment in environments]
    np.testing.assert_array_equal(*seen)
    for _ in range(known):
        action = generator.integers(3)
        (before, reward, *_), (after, other_reward, *_) = [
            environment.step(action) for environment in environments
        ]
        np.testing.assert_array_equal(before, after)
        assert reward == other_reward
    assert environments[0].step(2)[1] != environments[1].step(2)[1]  # the next close is a changed one


def test_observations_are_the_bars_features_and_the_position_held(bars: Bars, markets: Markets) -> None:
    environment = TradingEnvironment(markets.test, continuous=True)
    observation, _ = environment.reset(seed=0)
    assert observation.dtype == np.float32
    np.testing.assert_array_equal(observation, [*markets.test.features[0], 0])
    observation, *_ = environment.step(np.array([-0.5], np.float32))
    np.testing.assert_array_equal(observation, [*markets.test.features[1], -1])
    row = int(np.searchsorted(bars.time, markets.test.time[1]))
    change = 1e4 * (bars.close[row + 1] / bars.close[row] - 1)
    assert environment.step(np.array([0.9], np.float32))[1] == pytest.approx(change - 2 * HALF_SPREAD_BP)


def test_costs_are_half_a_spread_for_each_unit_of_change() -> None:
    returns = np.array([3.0, -2.0, 5.0, 1.0, -4.0])
    positions = np.array([1, 1, -1, 0, -1])
    half = HALF_SPREAD_BP
    by_hand = [3.0 - half, -2.0, -5.0 - 2 * half, -half, 4.0 - half]
    market = Market(
        features=np.zeros((6, len(FEATURE_NAMES)), np.float32),
        next_return_bp=np.append(returns, 9.0),
        time=np.arange(6),
    )
    environment = TradingEnvironment(market, continuous=False)
    environment.reset(seed=0)
    steps = [environment.step(np.int64(position + 1)) for position in positions]
    assert [step[1] for step in steps] == pytest.approx(by_hand)
    assert [step[3] for step in steps] == [False] * 4 + [True]
    scored = score(positions, returns)
    np.testing.assert_allclose(scored.rewards_bp, by_hand)
    assert scored.total_bp == pytest.approx(sum(by_hand))
    assert scored.costs_bp == pytest.approx(5 * half)
    assert scored.trades == 4


@given(positions=st.lists(st.sampled_from([-1, 0, 1]), min_size=2, max_size=30).map(np.array))
def test_turning_every_position_round_loses_what_was_earned_and_pays_the_same(positions) -> None:
    returns = np.random.default_rng(0).normal(0, 9, len(positions))
    before = np.concatenate([[0], positions[:-1]])
    both = rewards_bp(positions, before, returns) + rewards_bp(-positions, -before, returns)
    np.testing.assert_allclose(both, -2 * HALF_SPREAD_BP * np.abs(positions - before), atol=1e-9)


def test_continuous_actions_are_cut_at_a_third() -> None:
    actions = np.array([[-1.0], [-0.34], [-0.33], [0.0], [0.33], [0.34], [1.0]], np.float32)
    assert classes_of(actions).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert classes_of(np.array([0, 2, 1])).tolist() == [0, 2, 1]


@given(REWARDS, st.floats(0.1, 10.0))
def test_drawdown_is_the_worst_stretch_and_scales(rewards, factor: float) -> None:
    sums = [rewards[i:j].sum() for i in range(len(rewards)) for j in range(i, len(rewards) + 1)]
    assert max_drawdown(rewards) == pytest.approx(-min(sums), abs=1e-6)
    assert max_drawdown(factor * rewards) == pytest.approx(factor * max_drawdown(rewards), abs=1e-6)
    assert max_drawdown(np.abs(rewards)) == 0.0


@given(REWARDS.filter(lambda rewards: rewards.std() > 1e-3), st.floats(0.1, 10.0))
def test_sharpe_ratio_knows_no_unit_turns_with_the_sign_and_grows_with_the_year(
    rewards, factor: float
) -> None:
    ratio = sharpe_ratio(rewards)
    assert ratio == pytest.approx(rewards.mean() / rewards.std(ddof=1) * HOURS_PER_YEAR**0.5)
    assert sharpe_ratio(factor * rewards) == pytest.approx(ratio)
    assert sharpe_ratio(-rewards) == pytest.approx(-ratio)


def test_sharpe_ratio_of_nothing_that_varies_is_none() -> None:
    assert sharpe_ratio(np.zeros(10)) is None


def test_a_walk_is_what_the_environment_would_have_done(
    markets: Markets, tiny_agents: tuple[TrainedAgent, ...]
) -> None:
    for agent in tiny_agents:
        market = _cut(markets.validation, 60)
        environment = TradingEnvironment(market, continuous=agent.plan.continuous)
        observation, _ = environment.reset(seed=0)
        rewards, truncated = [], False
        while not truncated:
            action, _ = agent.model.predict(agent.prepare(observation[None]), deterministic=True)
            observation, reward, _, truncated, _ = environment.step(action[0])
            rewards.append(reward)
        walked = score(walk(market, deterministic(agent)), market.next_return_bp[:-1])
        np.testing.assert_allclose(walked.rewards_bp, rewards)


def test_same_seed_gives_the_same_bytes_and_another_seed_others(
    markets: Markets, tiny_agents: tuple[TrainedAgent, ...], tmp_path: Path
) -> None:
    files = []
    for number, agents in enumerate(
        (
            tiny_agents,
            train_agents([_tiny(plan) for plan in PLANS], markets.train, seed=3),
            train_agents([_tiny(plan) for plan in PLANS], markets.train, seed=4),
        )
    ):
        path = tmp_path / f"{number}.zip"
        write_ensemble(path, agents, q_temperature=q_temperature(agents, markets.train))
        files.append(path.read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_report_is_one_section_of_its_page(
    markets: Markets, tiny_agents: tuple[TrainedAgent, ...], tmp_path: Path
) -> None:
    short = Markets(
        train=_cut(markets.train, 100),
        validation=_cut(markets.validation, 100),
        test=_cut(markets.test, 100),
    )
    evaluation = evaluate(tiny_agents, short, temperature=1.0)
    flat = evaluation.flat.test
    assert (flat.total_bp, flat.sharpe, flat.max_drawdown_bp, flat.trades) == (0.0, None, 0.0, 0)
    hold = evaluation.buy_and_hold.test
    assert hold.total_bp == pytest.approx(short.test.next_return_bp[:-1].sum() - HALF_SPREAD_BP)
    page = tmp_path / "page.md"
    replace_section(page, "other", "The other's words")
    for seed in (1, 2):
        run = Run(seed=seed, threads=1, seconds=1.0, size_bytes=1, observations=1, temperature=1.0)
        write_report(page, tiny_agents, evaluation, run)
        text = page.read_text("utf-8")
        assert f"seed {seed}" in text
        assert text.count("The ensemble of RL agents") == text.count("The other's words") == 1
    replace_section(page, "other", "New words")
    assert page.read_text("utf-8") == text.replace("The other's words", "New words")


def test_committed_ensemble_is_small_and_its_manifest_names_its_files(tmp_path: Path) -> None:
    assert ENSEMBLE.stat().st_size < 1.5e6
    with zipfile.ZipFile(ENSEMBLE) as archive:
        infos = archive.infolist()
        manifest = json.loads(archive.read("manifest.json"))
        named = {
            entry[key] for entry in manifest["agents"] for key in ("file", "normalization") if key in entry
        }
        assert {info.filename for info in infos} == named | {"manifest.json"}
        assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
        for entry in manifest["agents"]:
            with zipfile.ZipFile(io.BytesIO(archive.read(entry["file"]))) as agent:
                assert {"data", "policy.pth"} <= set(agent.namelist())
                assert "system_info.txt" not in agent.namelist()
    assert [entry["algorithm"] for entry in manifest["agents"]] == ["PPO", "A2C", "SAC", "TD3", "DQN"]
    assert manifest["observation_size"] == len(OBSERVATION_NAMES) == len(manifest["feature_names"])
    assert manifest["feature_names"][-1] == "position"


def test_committed_agents_load_and_score_as_the_page_says(markets: Markets) -> None:
    _, agents, temperature = _committed()
    page = PAGE.read_text("utf-8")
    returns = markets.test.next_return_bp[:-1]
    for name, decide in [
        *((agent.plan.name, deterministic(agent)) for agent in agents),
        ("ensemble", greedy(agents, temperature)),
    ]:
        scored = score(walk(markets.test, decide), returns)
        assert f"| {name} | {scored.total_bp:+.1f} | {scored.total_bp / 100:+.2f} |" in page


def test_committed_observations_are_the_ensembles_walk_over_the_test_part(
    markets: Markets, tmp_path: Path
) -> None:
    _, agents, temperature = _committed()
    write_test_observations(
        tmp_path / "fresh.npz", markets.test, walk(markets.test, greedy(agents, temperature))
    )
    with (
        np.load(CHECKPOINTS / "eurusd_test_observations.npz", allow_pickle=False) as committed,
        np.load(tmp_path / "fresh.npz", allow_pickle=False) as fresh,
    ):
        assert set(committed) == set(fresh)
        for name in fresh:
            np.testing.assert_array_equal(committed[name], fresh[name])
        x = committed["x"]
    assert x.shape == (TEST_OBSERVATIONS, len(OBSERVATION_NAMES))
    for agent in agents:
        probs = class_probs(agent, x, temperature)
        np.testing.assert_allclose(probs.sum(axis=1), 1.0, rtol=1e-6)
        if not agent.plan.continuous:
            np.testing.assert_array_equal(probs.argmax(axis=1), deterministic(agent)(x))
