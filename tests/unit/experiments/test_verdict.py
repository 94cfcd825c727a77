"""Verdicts and their sentences."""

import math

import pytest

from control_plane.experiments.design import Direction, Metric, MetricKind
from control_plane.experiments.sequential import Interval
from control_plane.experiments.verdict import Verdict, sentence, verdict

LATENCY = Metric(name="latency", kind=MetricKind.LATENCY, direction=Direction.DOWN)
ERROR = Metric(name="error", kind=MetricKind.ERROR, direction=Direction.DOWN)
PROFIT = Metric(name="profit", kind=MetricKind.MEAN, direction=Direction.UP)


@pytest.mark.parametrize(
    ("difference", "p", "direction", "ended", "expected"),
    [
        (0.1, 0.01, Direction.UP, False, Verdict.TREATMENT_BETTER),
        (0.1, 0.01, Direction.DOWN, True, Verdict.TREATMENT_WORSE),
        (-0.1, 0.05, Direction.DOWN, False, Verdict.TREATMENT_BETTER),
        (-0.1, 0.051, Direction.DOWN, False, Verdict.NO_DIFFERENCE_YET),
        (-0.1, 0.051, Direction.DOWN, True, Verdict.INCONCLUSIVE_AT_END),
        (5.0, None, Direction.UP, False, Verdict.NO_DIFFERENCE_YET),
    ],
)
def test_verdict_rests_on_the_always_valid_p(
    difference: float, p: float | None, direction: Direction, ended: bool, expected: Verdict
) -> None:
    assert verdict(difference, p, direction, alpha=0.05, ended=ended) is expected


def told(found: Verdict, metric: Metric, difference: float, lower: float | None, upper: float | None) -> str:
    return sentence(
        found,
        metric,
        treatment="new",
        control="old",
        difference=difference,
        interval=Interval(lower=lower, upper=upper),
        alpha=0.05,
    )


def test_sentence_says_what_a_reader_needs() -> None:
    assert told(Verdict.TREATMENT_WORSE, LATENCY, math.log(1.3), math.log(1.2), math.log(1.4)) == (
        "new is worse than old: its latency is 30 % higher (between 20 % higher and 40 % higher with 95 % confidence, "
        "however often one looks)."
    )
    assert told(Verdict.NO_DIFFERENCE_YET, ERROR, 0.001, -0.01, 0.012) == (
        "No difference in error between new and old is shown yet: it may be anything between 1 percentage points lower "
        "and 1.2 percentage points higher (95 % confidence)."
    )
    assert told(Verdict.INCONCLUSIVE_AT_END, PROFIT, 0.1, -0.5, 0.7) == (
        "The experiment ended without an answer: the profit of new may be anything between 0.5 lower and 0.7 higher "
        "than that of old (95 % confidence)."
    )
    assert told(Verdict.NO_DIFFERENCE_YET, PROFIT, 0.0, None, None).startswith(
        "Too early to compare the profit"
    )
