"""States that are imported: what an export gave is taken, what no rewards give is refused by field."""

from typing import Any

import msgspec
import numpy as np
import pytest

from control_plane.ensembles.credit import Decay, contribution
from control_plane.ensembles.exported import ExportedState, checked_sums
from control_plane.ensembles.policies import PolicySettings
from control_plane.errors import InvalidInput

AGENTS = ("ppo", "dqn")
NOW_S = 1.8e9
HALF_LIFE_HOURS = 1.0
PERIOD = Decay(half_life_s=3600).period(NOW_S)


def exported(count: int = 40, *, half_life_hours: float | None = None, **changes: Any) -> ExportedState:
    """Of rewards over the last three days."""
    random = np.random.default_rng(1)
    decay = Decay(half_life_s=None if half_life_hours is None else 3600 * half_life_hours)
    sums: dict[int, np.ndarray] = {}
    for time_s in NOW_S - random.uniform(0, 259_200, count):
        added = contribution(random.uniform(0, 10, 2), random.normal(), decay.factor(time_s))
        sums[decay.period(time_s)] = sums.get(decay.period(time_s), np.zeros((2, 4))) + added
    fields = {
        "model": "rl_ensemble-v1.0",
        "agents": list(AGENTS),
        "policy": PolicySettings(half_life_hours=half_life_hours),
        "sums": {str(period): numbers.tolist() for period, numbers in sums.items()},
        "rewards": count,
        "exported_at": NOW_S,
    }
    return ExportedState(**(fields | changes))


@pytest.mark.parametrize("half_life_hours", [None, HALF_LIFE_HOURS])
@pytest.mark.parametrize("later_s", [0.0, 1e7])
def test_what_was_exported_is_taken(half_life_hours: float | None, later_s: float) -> None:
    state = exported(half_life_hours=half_life_hours)
    periods = checked_sums(state, AGENTS, now_s=NOW_S + later_s)
    assert {str(period): sums.tolist() for period, sums in periods.items()} == state.sums


def test_equal_credits_count_as_many_rewards_as_there_were() -> None:
    sums = {"0": [[3.0, 3.0, 0.0, 0.0]] * 2}
    assert checked_sums(exported(rewards=3, sums=sums), AGENTS, now_s=NOW_S)


ROWS = exported().sums["0"]
ODD: dict[str, tuple[dict[str, Any], str]] = {
    "another format": ({"format": 2}, "format"),
    "other agents": ({"agents": ["dqn", "ppo"]}, "agents"),
    "from the future": ({"exported_at": NOW_S + 100}, "exported_at"),
    "fewer rewards than the sums are of": ({"rewards": 20}, "rewards"),
    "no rewards at all": ({"rewards": 0}, "rewards"),
    "credit without its square": ({"sums": {"0": [[1.0, 0.0, 0.0, 0.0]] * 2}}, "rewards"),
    "a key with zeros": ({"sums": {"00": ROWS}}, "sums.00"),
    "a key that is no number": ({"sums": {"now": ROWS}}, "sums.now"),
    "a period without a half-life": ({"sums": {"1": ROWS}}, "sums.1"),
    "many periods": (
        {"half_life_hours": 1.0, "sums": {str(PERIOD - back): ROWS for back in range(9)}}, "sums",
    ),
    "a period to come": ({"half_life_hours": 1.0, "sums": {str(PERIOD + 1): ROWS}}, f"sums.{PERIOD + 1}"),
    "another shape": ({"sums": {"0": [row[:3] for row in ROWS]}}, "sums.0"),
    "negative credit": ({"sums": {"0": [[-1.0, 1.0, 0.0, 0.0]] * 2}}, "sums.0"),
    "a mean beyond its square": ({"sums": {"0": [[1.0, 1.0, 2.0, 1.0]] * 2}}, "sums.0"),
    "overflow": ({"sums": {"0": [[1e300, 1e300, 1e300, float("inf")]] * 2}}, "sums.0"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_what_no_rewards_give_is_refused(case: str) -> None:
    changes, path = ODD[case]
    with pytest.raises(InvalidInput) as raised:
        checked_sums(exported(**changes), AGENTS, now_s=NOW_S)
    assert [error.path for error in raised.value.errors] == [path]


def test_state_survives_json() -> None:
    state = exported(half_life_hours=HALF_LIFE_HOURS)
    assert msgspec.json.decode(msgspec.json.encode(state), type=ExportedState) == state
