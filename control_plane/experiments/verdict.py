"""What a comparison says, in one word and in one sentence that needs no statistics to read. Pure."""

import math
from enum import StrEnum

from control_plane.experiments.design import Direction, Metric, MetricKind
from control_plane.experiments.sequential import Interval


class Verdict(StrEnum):
    """The state of a comparison, resting on always-valid figures."""

    NO_DIFFERENCE_YET = "no_difference_yet"
    TREATMENT_BETTER = "treatment_better"
    TREATMENT_WORSE = "treatment_worse"
    INCONCLUSIVE_AT_END = "inconclusive_at_end"


def verdict(
    difference: float, p_always_valid: float | None, direction: Direction, *, alpha: float, ended: bool
) -> Verdict:
    """The verdict on one metric of one pair.

    Args:
        difference: Treatment - control.
        p_always_valid: After Holm's correction; with a single comparison at most alpha exactly when the always-valid
            interval excludes 0. None: before the first valid look.
        direction: Which way is better.
        alpha: Of the experiment.
        ended: Nothing more will come in.
    """
    if p_always_valid is not None and p_always_valid <= alpha and difference != 0.0:
        better = (difference > 0.0) == (direction is Direction.UP)
        return Verdict.TREATMENT_BETTER if better else Verdict.TREATMENT_WORSE
    return Verdict.INCONCLUSIVE_AT_END if ended else Verdict.NO_DIFFERENCE_YET


def sentence(
    found: Verdict,
    metric: Metric,
    *,
    treatment: str,
    control: str,
    difference: float,
    interval: Interval,
    alpha: float,
) -> str:
    """The verdict in words.

    Args:
        found: The verdict.
        metric: Which.
        treatment: Name of the variant.
        control: Name of the other.
        difference: Treatment - control; of latency, on the scale of its logarithm.
        interval: Always-valid, likewise.
        alpha: Of the interval.
    """
    level = f"{100.0 * (1.0 - alpha):g} %"
    if interval.lower is None or interval.upper is None:
        return (
            f"Too early to compare the {metric.name} of {treatment} and {control}: "
            "there are not yet enough requests, or units, of both."
        )
    span = f"between {_change(metric, interval.lower)} and {_change(metric, interval.upper)}"
    match found:
        case Verdict.TREATMENT_BETTER | Verdict.TREATMENT_WORSE:
            word = "better" if found is Verdict.TREATMENT_BETTER else "worse"
            return (
                f"{treatment} is {word} than {control}: its {metric.name} is {_change(metric, difference)} "
                f"({span} with {level} confidence, however often one looks)."
            )
        case Verdict.INCONCLUSIVE_AT_END:
            return (
                f"The experiment ended without an answer: the {metric.name} of {treatment} may be anything {span} "
                f"than that of {control} ({level} confidence)."
            )
        case Verdict.NO_DIFFERENCE_YET:
            return (
                f"No difference in {metric.name} between {treatment} and {control} is shown yet: it may be anything "
                f"{span} ({level} confidence)."
            )


def _change(metric: Metric, difference: float) -> str:
    """ "3.1 % lower" for a latency, "0.4 percentage points higher" for a rate, "0.012 higher" for a mean."""
    way = "higher" if difference > 0.0 else "lower"
    match metric.kind:
        case MetricKind.LATENCY:
            return f"{abs(100.0 * math.expm1(difference)):.3g} % {way}"
        case MetricKind.ERROR | MetricKind.RATE:
            return f"{abs(100.0 * difference):.3g} percentage points {way}"
        case MetricKind.MEAN:
            return f"{abs(difference):.3g} {way}"
