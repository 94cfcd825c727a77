"""Assignment as documented: exact positions, shares kept, units that stay."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from control_plane.experiments.assignment import (
    block_of,
    canary_shares,
    position,
    switchback_variant,
    variant_of,
)

UNITS = [f"acct-{number}" for number in range(200_000)]


@given(st.text(), st.text())
def test_position_is_the_documented_formula(salt: str, unit: str) -> None:
    try:
        text = f"{salt}:{unit}".encode()
    except UnicodeEncodeError:
        return
    assert position(salt, unit) == int(hashlib.md5(text).hexdigest(), 16) / 2**128


def test_position_of_known_units_never_changes() -> None:
    assert position("exp-1", "acct-1") == 0.8534902496729954
    assert position("exp-1", "acct-2") == 0.5305618328721724


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.33, 0.33, 0.34)])
def test_shares_of_many_units_are_as_declared(shares: tuple[float, ...]) -> None:
    variants = [variant_of(position("split", unit), shares) for unit in UNITS]
    counts = np.bincount(variants, minlength=len(shares))
    assert stats.chisquare(counts, np.array(shares) * len(UNITS)).pvalue > 0.001


def test_two_experiments_divide_the_same_units_independently() -> None:
    first, second = (np.array([position(name, unit) < 0.5 for unit in UNITS]) for name in ("one", "two"))
    table = [
        [np.sum(first & second), np.sum(first & ~second)],
        [np.sum(~first & second), np.sum(~first & ~second)],
    ]
    assert stats.chi2_contingency(table).pvalue > 0.001


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=10), st.floats(0, 1))
def test_variant_holds_the_position(raw: list[float], place: float) -> None:
    shares = [share / sum(raw) for share in raw]
    found = variant_of(place, shares)
    ends = np.cumsum(shares)
    assert place >= (ends[found - 1] if found else 0.0) - 1e-12
    assert place <= ends[found] + 1e-12


def test_variant_of_edges_belongs_to_the_next_and_one_to_the_last_with_a_share() -> None:
    assert variant_of(0.0, (0.5, 0.5)) == 0
    assert variant_of(0.5, (0.5, 0.5)) == 1
    assert variant_of(1.0, (0.5, 0.5)) == 1
    assert variant_of(1.0, (1.0, 0.0)) == 0
    assert variant_of(0.0, (0.0, 1.0)) == 1


@pytest.mark.parametrize("control", [0, 1])
def test_canary_that_grows_moves_units_to_the_treatment_only(control: int) -> None:
    positions = [position("canary", unit) for unit in UNITS[:5000]]
    before: set[int] = set()
    for share in (0.01, 0.05, 0.25, 0.5, 1.0):
        shares = canary_shares(share, control=control)
        treated = {unit for unit, place in enumerate(positions) if variant_of(place, shares) != control}
        assert before <= treated
        assert len(treated) / len(positions) == pytest.approx(share, abs=0.02)
        before = treated


def test_switchback_gives_whole_blocks_by_hash() -> None:
    assert block_of(3600.0 * 5 + 1, 30) == 10
    blocks = [switchback_variant("s", number, (0.5, 0.5)) for number in range(4000)]
    assert blocks == [variant_of(position("s", str(number)), (0.5, 0.5)) for number in range(4000)]
    assert stats.binomtest(sum(blocks), 4000).pvalue > 0.001
