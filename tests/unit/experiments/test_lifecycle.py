"""What experiments do by themselves."""

import numpy as np
import pytest

from control_plane.experiments.definition import Mode, Status
from control_plane.experiments.design import Guardrail
from control_plane.experiments.lifecycle import Move, end, look, promotion
from control_plane.experiments.results import evaluate
from control_plane.experiments.state import Experiment, observations_of
from control_plane.store.experiments import StoredCounts
from tests.unit.experiments.definitions import BEGIN_S, FILLED, definition, experiment

CANARY = definition(
    mode=Mode.CANARY, guardrails=(Guardrail(metric="error", max_difference=0.01),), auto_promote=True
)


def counts(requests: int, *, errors: int = 0, epoch: int = 0) -> StoredCounts:
    """So many requests of both variants, spread over the buckets; the errors are the treatment's."""
    moments = {}
    for variant in (0, 1):
        for bucket in range(256):
            n = float(requests // 256 + (bucket < requests % 256))
            failed = float(errors // 256 + (bucket < errors % 256)) if variant else 0.0
            moments[f"{epoch}|{variant}|error|{bucket}"] = (n, failed, failed, 0.0, 0.0)
    return StoredCounts(
        counts={f"{epoch}|{variant}|requests": requests for variant in (0, 1)},
        moments=moments,
        sketches={},
    )


def moved(of: Experiment, found: StoredCounts, *, now_s: float) -> Move | None:
    seen = observations_of(of, found, ended=False)
    results = evaluate(of.definition.design(units_are_requests=True), seen)
    return look(of, found, seen, results, now_s=now_s)


def after(of: Experiment, move: Move | None) -> Experiment:
    assert move is not None
    state = {f"shares:{number}": "[" + ",".join(map(str, one)) + "]" for number, one in enumerate(of.shares)}
    return experiment(
        of.definition, **(state | {"epoch": str(of.epoch), "step": str(of.step)} | move.changes)
    )


def test_experiment_completes_when_its_time_is_over() -> None:
    one = experiment(definition())
    assert end(one, now_s=BEGIN_S + 24 * 3600 - 1) is None
    move = end(one, now_s=BEGIN_S + 24 * 3600 + 5)
    assert move is not None
    assert (move.ends, move.changes["status"]) == (True, Status.COMPLETED)
    assert float(move.changes["ended_at"]) == BEGIN_S + 24 * 3600


def test_canary_steps_after_time_and_requests_and_is_promoted_at_last() -> None:
    one = experiment(CANARY)
    assert one.shares == ((0.9, 0.1),)
    assert moved(one, counts(1_000), now_s=BEGIN_S + 59) is None
    assert moved(one, counts(49), now_s=BEGIN_S + 61) is None
    second = after(one, moved(one, counts(1_000), now_s=BEGIN_S + 61))
    assert (second.epoch, second.step, second.shares[-1]) == (1, 1, (0.5, 0.5))
    assert moved(second, counts(1_000), now_s=BEGIN_S + 1_000) is None, (
        "requests of the step before don't count"
    )
    last = after(second, moved(second, counts(1_000, epoch=1), now_s=BEGIN_S + 1_000))
    assert (last.promoted, last.shares[-1]) == (True, (0.0, 1.0))
    assert end(last, now_s=BEGIN_S + 1e9) is None, "it keeps the treatment until it is stopped"


def test_canary_rolls_back_at_once_with_the_reason() -> None:
    move = moved(experiment(CANARY), counts(400, errors=60), now_s=BEGIN_S + 1)
    assert move is not None
    assert move.to == "rolled_back"
    assert "error rate" in str(move.reason)
    back = after(experiment(CANARY), move)
    assert (back.rolled_back, back.shares[-1]) == (True, (1.0, 0.0))
    assert moved(back, counts(400, errors=60), now_s=BEGIN_S + 1e6) is None
    assert end(back, now_s=BEGIN_S + 1e9) is None, "latest may name the version that did harm"


def test_bandit_divides_anew_once_an_epoch() -> None:
    bandit = experiment(definition(mode=Mode.BANDIT, metrics=(FILLED, *definition().metrics)))
    better = StoredCounts(
        counts={},
        moments={
            f"0|{variant}|filled|{bucket}": (10.0, 10.0 * rate, 10.0 * rate, 0.0, 0.0)
            for variant, rate in ((0, 0.2), (1, 0.6))
            for bucket in range(256)
        },
        sketches={},
    )
    assert moved(bandit, better, now_s=BEGIN_S + 599) is None
    after_epoch = after(bandit, moved(bandit, better, now_s=BEGIN_S + 601))
    assert after_epoch.epoch == 1
    np.testing.assert_allclose(after_epoch.shares[-1], (0.05, 0.95), atol=0.01)


def test_canary_takes_no_step_while_the_split_is_broken() -> None:
    broken = counts(1_000)
    units = {f"0|{variant}|units": 1_000 for variant in (0, 1)}  # declared: nine to one
    found = StoredCounts(counts={**broken.counts, **units}, moments=broken.moments, sketches={})
    assert moved(experiment(CANARY), found, now_s=BEGIN_S + 61) is None


def test_promotion_by_a_call_takes_all() -> None:
    promoted = after(experiment(CANARY), promotion(experiment(CANARY), now_s=BEGIN_S + 5, reason="by hand"))
    assert promoted.shares[-1] == pytest.approx((0.0, 1.0))
    assert promoted.reason == "by hand"
