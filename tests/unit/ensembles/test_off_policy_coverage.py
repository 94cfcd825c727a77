"""A smaller form of `python -m benchmarks.simulate off_policy`: how often intervals hold the truth."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.simulate.off_policy import FIXED, LEARNING, TARGETS, Outcomes, Setting, simulate

LOGS = 100


def coverages(outcomes: dict[str, Outcomes], kind: str = "") -> np.ndarray:
    return np.array([outcomes[name].coverage(kind) for name in TARGETS])


@pytest.mark.parametrize("setting", [FIXED, LEARNING], ids=["fixed", "learning"])
def test_interval_of_every_target_holds_the_truth(setting: Setting) -> None:
    outcomes = simulate(replace(setting, entries=800), runs=LOGS, seed=1)
    assert not any(outcomes[name].refused for name in TARGETS)
    # 93 %, less three standard errors of what so few logs can tell.
    assert coverages(outcomes).min() >= 0.93 - 3 * (0.93 * 0.07 / LOGS) ** 0.5
    assert coverages(outcomes).mean() >= 0.93
    for name in TARGETS:
        assert abs(outcomes[name].bias()) < outcomes[name].width() / 8
        assert outcomes[name].width() < 1.25 * outcomes[name].width("dr")


def test_naive_intervals_fail_where_agents_were_given_up_and_the_interval_does_not() -> None:
    outcomes = simulate(replace(LEARNING, entries=1500, gap=0.5), runs=80, seed=2)
    targets = [outcomes[name] for name in ("dqn", "uniform", "given")]
    assert all(one.answered > 70 for one in targets)
    assert np.mean([one.coverage() for one in targets]) >= 0.93
    for kind in ("ips", "snips"):
        assert np.mean([one.coverage(kind) for one in targets]) < 0.9


def test_evaluating_more_of_the_same_log_narrows_the_interval() -> None:
    widths = [simulate(replace(FIXED, entries=n), runs=10, seed=3)["uniform"].width() for n in (500, 2000)]
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.15)
