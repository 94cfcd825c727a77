"""The split, the assignment and the sketches: does each do what it promises?"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.simulate.experiments_sequences import NEVER
from control_plane.experiments.assignment import position, variant_of
from control_plane.experiments.moments import BUCKETS, Floats, bucket_of
from control_plane.experiments.ratio_mismatch import ALARM, chi_square_p, log_bayes_factor
from control_plane.experiments.sketch import Sketch

SPLITS = {"50/50": (0.5, 0.5), "90/10": (0.9, 0.1), "33/33/34": (0.33, 0.33, 0.34)}
BROKEN = (0.52, 0.48)
RATIO_UNITS, RATIO_EVERY = 20_000, 100
CHI_SQUARE = 0.001
"""Below which a chi-square test that is looked at all the time would have alarmed."""
QUANTILES = (0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
Draw = np.random.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioOutcome:
    """After how many units each alarmed for the first time, float64 [runs]; `NEVER`: not at all."""

    alarmed: Floats
    chi_square: Floats


def ratio_check(
    declared: tuple[float, ...], real: tuple[float, ...], *, runs: int, seed: int
) -> RatioOutcome:
    """Units that are divided by `real` shares behind `declared` ones, looked at again and again."""
    draw = np.random.default_rng(seed)
    alarmed, chi_square = np.full(runs, NEVER), np.full(runs, NEVER)
    counts = np.zeros((runs, len(real)), dtype=np.int64)
    for units in range(RATIO_EVERY, RATIO_UNITS + 1, RATIO_EVERY):
        counts += draw.multinomial(RATIO_EVERY, real, size=runs)
        for first, alarm in (
            (alarmed, log_bayes_factor(counts, declared) >= np.log(ALARM)),
            (chi_square, chi_square_p(counts, declared) < CHI_SQUARE),
        ):
            first[alarm & (first == NEVER)] = units
    return RatioOutcome(alarmed=alarmed, chi_square=chi_square)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """What became of the units.

    Attributes:
        counts: By split, of each variant.
        p: By split, chi-square p-value of the declared shares.
        other_p: By split, chi-square p-value of independence of the variant in another experiment.
        correlation: Between the places of the units in both.
        bucket_p: Chi-square p-value of independence of a unit's bucket and its variant at 50/50.
    """

    counts: dict[str, tuple[int, ...]]
    p: dict[str, float]
    other_p: dict[str, float]
    correlation: float
    bucket_p: float


def assign(units: int) -> Assigned:
    """Divides numbered accounts by the code that serves, in two experiments."""
    from scipy import stats  # noqa: PLC0415

    names = [f"account-{number}" for number in range(units)]
    one, other = ([position(name, unit) for unit in names] for name in ("momentum-1", "momentum-2"))
    counts, p, other_p = {}, {}, {}
    for text, shares in SPLITS.items():
        ours, theirs = (np.array([variant_of(place, shares) for place in places]) for places in (one, other))
        found = np.bincount(ours, minlength=len(shares))
        counts[text], p[text] = tuple(found.tolist()), float(chi_square_p(found, shares))
        both = np.bincount(ours * len(shares) + theirs, minlength=len(shares) ** 2)
        table = both.reshape(len(shares), len(shares))
        other_p[text] = float(stats.chi2_contingency(table, correction=False).pvalue)
    buckets = np.array([bucket_of("momentum-1", unit) for unit in names])
    halves = np.array(one) < 0.5
    table = np.bincount(halves * BUCKETS + buckets, minlength=2 * BUCKETS).reshape(2, BUCKETS)
    return Assigned(
        counts=counts,
        p=p,
        other_p=other_p,
        correlation=float(np.corrcoef(one, other)[0, 1]),
        bucket_p=float(stats.chi2_contingency(table).pvalue),
    )


LATENCIES: dict[str, Callable[[Draw, int], Floats]] = {
    "lognormal, sd 1": lambda draw, n: draw.lognormal(2.0, 1.0, n),
    "exponential": lambda draw, n: draw.exponential(20.0, n),
    "Pareto, index 1.5": lambda draw, n: 1.0 + draw.pareto(1.5, n),
    "uniform": lambda draw, n: draw.uniform(1.0, 50.0, n),
    "gamma, shape 9": lambda draw, n: draw.gamma(9.0, 2.0, n),
    "two modes, 5 and 80 ms": lambda draw, n: np.where(
        draw.random(n) < 0.9, draw.normal(5.0, 0.5, n), draw.normal(80.0, 8.0, n)
    ),
}


def sketch_errors(draw_one: Callable[[Draw, int], Floats], *, values: int, seed: int) -> tuple[float, float]:
    """The largest relative error of `QUANTILES`, of one sketch and of 16 that were merged; unequal parts."""
    draw = np.random.default_rng(seed)
    sample = draw_one(draw, values)
    whole, merged = Sketch(), Sketch()
    whole.add(sample)
    for part in np.split(sample, np.sort(draw.integers(0, values, 15))):
        one = Sketch()
        one.add(part)
        merged.merge(one)
    exact = np.quantile(sample, QUANTILES)
    return tuple(  # type: ignore[return-value]
        float(
            max(
                abs((sketch.quantile(q) or 0.0) / value - 1.0)
                for q, value in zip(QUANTILES, exact, strict=True)
            )
        )
        for sketch in (whole, merged)
    )
