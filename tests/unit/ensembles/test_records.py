"""What Redis keeps of decisions and rewards, and what is made of it where it isn't as it was written."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from control_plane.ensembles.evaluation import evaluate_log, log_of
from control_plane.ensembles.learning import NOTHING_LEARNED, settings_of, to_adopt, without_spent
from control_plane.ensembles.off_policy import Evaluation
from control_plane.ensembles.policies import PolicySettings
from control_plane.ensembles.records import LogEntry, ensemble_of, record_from, record_of, to_text
from control_plane.inference.decisions import Decision
from tests.unit.inference.cards import rl_card

AGENTS, ACTIONS = 2, 3
UNIFORM = {"uniform": np.full(AGENTS, 0.5)}


def log_texts(count: int = 400, *, reward: float = 1.0, **odd: Any) -> list[str]:
    """Sampled entries; `odd` changes the last one."""
    random = np.random.default_rng(2)
    texts = []
    for index in range(count):
        probs = random.dirichlet(np.ones(ACTIONS), size=AGENTS).astype("<f4")
        mixture = probs.astype(np.float64).mean(axis=0)
        action = int(random.choice(ACTIONS, p=mixture / mixture.sum()))
        fields = {
            "time_s": 1.8e9 + index,
            "agent_probs": probs.tobytes(),
            "weights": np.full(AGENTS, 0.5, "<f4").tobytes(),
            "chosen": action,
            "action": action,
            "propensity": float(mixture[action]),
            "reward": reward * float(random.normal()),
            "is_sampled": True,
        }
        texts.append(to_text(LogEntry(**(fields | odd if index == count - 1 else fields))))
    return texts


ODD: dict[str, dict[str, Any]] = {
    "probabilities that don't sum to 1": {
        "agent_probs": np.full((AGENTS, ACTIONS), 0.4, "<f4").tobytes()
    },
    "negative ones": {"agent_probs": np.tile(np.array([2, -1, 0], "<f4"), AGENTS).tobytes()},
    "NaN": {"agent_probs": np.full((AGENTS, ACTIONS), np.nan, "<f4").tobytes()},
    "huge ones": {"agent_probs": np.full((AGENTS, ACTIONS), 3e38, "<f4").tobytes()},
    "more actions": {"agent_probs": np.full((AGENTS, 4), 0.25, "<f4").tobytes()},
    "half a number": {"agent_probs": b"123"},
    "nothing": {"agent_probs": b""},
    "other weights": {"weights": np.full(3, 1 / 3, "<f4").tobytes()},
    "weights that don't sum to 1": {"weights": np.full(AGENTS, 0.6, "<f4").tobytes()},
    "no such action": {"action": ACTIONS},
    "action below 0": {"action": -1},
    "no propensity": {"propensity": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_entry_that_no_decision_gives_is_left_out_and_the_rest_evaluated(case: str) -> None:
    found, left_out = evaluate_log(log_texts(**ODD[case]), AGENTS, UNIFORM)
    assert left_out == 1
    assert isinstance(found, Evaluation)
    assert found.entries == 399


def test_entries_that_cannot_be_read_are_left_out() -> None:
    texts = log_texts()
    expected = evaluate_log(texts, AGENTS, UNIFORM)[0]
    assert evaluate_log([*texts, "[]", "{", "[1]"], AGENTS, UNIFORM) == (expected, 3)


def test_greedy_entries_need_no_propensity() -> None:
    assert len(log_of(log_texts(is_sampled=False, propensity=0.0), AGENTS).action) == 400


def test_log_that_tells_nothing_says_why() -> None:
    assert "No rewarded decision" in str(evaluate_log([], AGENTS, UNIFORM)[0])
    reason, left_out = evaluate_log(["[]"] * 3, AGENTS, UNIFORM)
    assert left_out == 3
    assert "sum to 1" in str(reason)
    assert "too large" in str(evaluate_log(log_texts(reward=1e153), AGENTS, UNIFORM)[0])


def decision(**changes: Any) -> Decision:
    fields = {
        "agent_probs": np.full((1, AGENTS, ACTIONS), 1 / ACTIONS, np.float32),
        "weights": np.full(AGENTS, 0.5, np.float32),
        "actions": np.array([1]),
        "propensity": np.array([1 / 3]),
        "is_sampled": True,
    }
    return Decision(**(fields | changes))


def test_record_survives_and_what_is_none_is_refused() -> None:
    record = record_of(rl_card(), decision(), time_s=time.time())
    assert record_from(to_text(record)) == record
    odd = [
        to_text(record_of(rl_card(), decision(propensity=np.array([np.nan])), time_s=0.0)),
        to_text(record_of(rl_card(), decision(actions=np.array([1, 2])), time_s=0.0)),
        to_text(record_of(rl_card(), decision(weights=np.ones(3)), time_s=0.0)),
        "[]",
        "",
        "[1, 2",
    ]
    for text in odd:
        with pytest.raises(ValueError, match="no decision"):
            record_from(text)


def test_ensemble_is_named_by_its_agents_where_the_card_tells_them_apart() -> None:
    config = {"agents": ["a", "b"], "agents_digest": "feedfacefeedface"}
    onnx, torchscript = (rl_card(config=config, content_digest=one) for one in ("11", "22"))
    assert ensemble_of(onnx) == ensemble_of(torchscript) == "rl_ensemble-v1.0@feedfacefeed"
    assert record_of(onnx, decision(), time_s=0.0).ensemble == ensemble_of(onnx)
    assert ensemble_of(rl_card(content_digest="11")) == "rl_ensemble-v1.0@11"


def test_policy_of_the_card_is_adopted_once_and_only_where_it_is_one() -> None:
    card = rl_card(config={"agents": ["a", "b"], "weights_policy": {"half_life_hours": 2.0}})
    text = to_adopt(card, NOTHING_LEARNED)
    assert text is not None
    state = replace(NOTHING_LEARNED, policy=text)
    assert to_adopt(card, state) is None
    assert settings_of(card, NOTHING_LEARNED)[0] == PolicySettings(half_life_hours=2.0)
    assert settings_of(None, state)[0] == PolicySettings(half_life_hours=2.0)
    wrong = rl_card(config={"agents": ["a", "b"], "weights_policy": {"half_life_hours": 1e-300}})
    assert to_adopt(wrong, NOTHING_LEARNED) is None
    assert to_adopt(rl_card(), NOTHING_LEARNED) is None


def test_periods_that_count_for_nothing_are_dropped_by_redis_time_not_by_a_fast_clock() -> None:
    settings = PolicySettings(half_life_hours=1.0)
    state = replace(NOTHING_LEARNED, sums={5: (1.0,), 8: (1.0,), 9: (1.0,)}, updated_at=9.5 * 64 * 3600)
    assert without_spent(state, settings, now_s=1e12) == {8: (1.0,), 9: (1.0,)}
    assert without_spent(state, settings, now_s=8.0 * 64 * 3600) == {8: (1.0,), 9: (1.0,)}
    assert without_spent(state, settings, now_s=7.0 * 64 * 3600) is None
    assert without_spent(state, PolicySettings(), now_s=1e12) is None
