"""What the simulations of experiments found, and the figures that are asked for."""

from dataclasses import dataclass

import numpy as np

from benchmarks.simulate.experiments_canaries import WITHIN
from benchmarks.simulate.experiments_checks import Assigned, RatioOutcome
from benchmarks.simulate.experiments_laws import ALIKE, LAWS, Law
from benchmarks.simulate.experiments_sequences import ALPHA, Outcome, share_of, upper_bound
from control_plane.experiments.moments import Floats

ASKED = LAWS[:5]
"""The laws of which figures are asked; the others are shown beside them."""
VARIANTS = ((1.1, 500), (1.1, 200), (1.2, 200))
"""Limits of the latency, and least requests of a step, with which harmful canaries are watched; first the default."""
Key = tuple[Law, bool]
"""Law and whether accounts are the units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is simulated."""

    experiments: int
    ratio_runs: int
    units: int
    harmless: int
    harmful: int
    sketched: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All outcomes.

    Attributes:
        same: A/A experiments.
        different: With an effect that a fixed-horizon test finds in 80 %.
        drifting: A/A, with canary steps and a level that changes in time.
        splits: As declared, by split.
        broken: 52/48 behind 50/50.
        assigned: What became of a million units.
        harmless: When canaries were rolled back, by text, and how many of their requests were simulated.
        harmful: Likewise, by limit and least requests of a step, and then text.
        sketches: Largest relative errors by distribution: of one sketch, of merged ones.
    """

    same: dict[Key, Outcome]
    different: dict[Key, Outcome]
    drifting: dict[Key, Outcome]
    splits: dict[str, RatioOutcome]
    broken: RatioOutcome
    assigned: Assigned
    harmless: dict[str, Floats]
    harmful: dict[tuple[float, int], dict[str, Floats]]
    sketches: dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A figure that is asked for."""

    text: str
    measured: str
    asked: str
    holds: bool


def goals_of(found: Found, size: Size, *, quick: bool) -> list[Goal]:
    """What is asked, and whether it holds. Upper bounds are of the full size only."""
    wrong = [share_of(found.same[law, keyed].found) for law in ASKED for keyed in (True, False)]
    missed = [
        share_of(outcomes[law, keyed].missed)
        for outcomes in (found.same, found.different)
        for law in ASKED
        for keyed in (True, False)
    ]
    naive = share_of(found.different[ALIKE, True].naive_missed)
    bound = upper_bound(max(wrong), size.experiments)
    power = {key: share_of(found.different[key].found) for key in found.different if finite_information(key)}
    drift = [share_of(outcome.found) for outcome in found.drifting.values()]
    splits = [share_of(outcome.alarmed) for outcome in found.splits.values()]
    broken = share_of(found.broken.alarmed)
    one = found.assigned
    least_p = min(*one.p.values(), *one.other_p.values(), one.bucket_p)
    limit = 4.0 / np.sqrt(size.units)
    harmless = [share_of(at) for at in found.harmless.values()]
    harmful = [share_of(at, by=WITHIN) for at in found.harmful[VARIANTS[0]].values()]
    sketch = max(max(errors) for errors in found.sketches.values())
    return [
        Goal(
            text="A/A: always-valid verdict ever wrong, the worst of ten settings",
            measured=f"{max(wrong):.1%}, upper 95 % bound {bound:.1%}",
            asked="≤ 5 %, bound ≤ 6 %",
            holds=max(wrong) <= ALPHA and (quick or bound <= 0.06),
        ),
        Goal(
            text="Intervals that hold the truth at all looks jointly, the least of twenty settings",
            measured=f"{1 - max(missed):.1%}",
            asked="≥ 95 %",
            holds=max(missed) <= ALPHA,
        ),
        Goal(
            text="The same with the standard error of independent requests, accounts with an effect",
            measured=f"{1 - naive:.1%}",
            asked="fails, so that the simulation can tell",
            holds=naive > 3 * ALPHA,
        ),
        Goal(
            text="Power: always-valid verdict finds by 2n what a fixed-horizon test finds in 80 % at n, "
            "the least of twelve settings",
            measured=f"{min(power.values()):.1%}",
            asked="≥ 80 %",
            holds=min(power.values()) >= 0.8,
        ),
        Goal(
            text="Canary steps while the level drifts: ever wrong, the worst of six settings",
            measured=f"{max(drift):.1%}",
            asked="≤ 5 %",
            holds=max(drift) <= ALPHA,
        ),
        Goal(
            text="Ratio check: sound splits that ever alarmed, the worst of three",
            measured=f"{max(splits):.2%}",
            asked="≤ 1 %",
            holds=max(splits) <= 0.01,
        ),
        Goal(
            text="Ratio check: 52/48 behind a declared 50/50 found within 20,000 units",
            measured=f"{broken:.1%}",
            asked="≥ 95 %",
            holds=broken >= 0.95,
        ),
        Goal(
            text=f"Assignment of {size.units:,} units: least p-value of shares, and of independence",
            measured=f"{least_p:.3f}",
            asked="> 0.001",
            holds=least_p > 0.001,
        ),
        Goal(
            text="Correlation of the units' places in two experiments",
            measured=f"{one.correlation:+.4f}",
            asked=f"within ±{limit:.4f}",
            holds=bool(abs(one.correlation) <= limit),
        ),
        Goal(
            text=f"Harmless canaries of {size.harmless:,} ever rolled back, the worst of three settings",
            measured=f"{max(harmless):.1%}",
            asked=f"≤ {ALPHA:.0%}",
            holds=max(harmless) <= ALPHA,
        ),
        Goal(
            text=f"Canaries that fail in 5 %, or are 30 % slower, rolled back within {WITHIN} of the treatment's "
            "requests, the least of four settings",
            measured=f"{min(harmful):.1%}",
            asked="≥ 90 %",
            holds=min(harmful) >= 0.9,
        ),
        Goal(
            text="Sketches: largest relative error of a quantile, six distributions, merged or not",
            measured=f"{sketch:.2%}",
            asked="≤ 1 %",
            holds=sketch <= 0.01,
        ),
    ]


def finite_information(key: Key) -> bool:
    """Whether twice the requests say about twice as much: not where the same accounts ask again and again."""
    law, routing_keys = key
    return not (routing_keys and law.effect and not law.stay)
