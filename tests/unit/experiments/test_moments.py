"""Sums by bucket against sums done one by one; buckets of units."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from control_plane.experiments.assignment import position
from control_plane.experiments.moments import BUCKETS, MOMENTS, XN, YY, N, X, Y, add, bucket_of, empty

OBSERVATION = st.tuples(
    st.integers(0, BUCKETS - 1), st.floats(-1e6, 1e6), st.one_of(st.none(), st.floats(-1e6, 1e6))
)


@given(st.lists(OBSERVATION, max_size=40), st.integers(0, 40))
def test_add_in_parts_equals_sums_one_by_one(observations: list, cut: int) -> None:
    expected = empty()
    for bucket, y, x in observations:
        expected[bucket, [N, Y, YY]] += [1.0, y, y * y]
        if x is not None:
            expected[bucket, [XN, X]] += [1.0, x]
    found = empty()
    for part in (observations[:cut], observations[cut:]):
        add(
            found,
            np.array([b for b, _, _ in part], dtype=np.int64),
            np.array([y for _, y, _ in part]),
            np.array([np.nan if x is None else x for _, _, x in part], dtype=np.float64),
        )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-3)


def test_add_of_one_observation_counts_it() -> None:
    found = empty()
    add(found, 7, 2.0)
    add(found, 7, 3.0, 5.0)
    assert found[7].tolist() == [2.0, 5.0, 13.0, 1.0, 5.0]
    assert found.sum() == found[7].sum()
    assert found.shape == (BUCKETS, len(MOMENTS))


def test_add_with_leading_axes_counts_where_told() -> None:
    draw = np.random.default_rng(1)
    buckets, y, where = (
        draw.integers(0, BUCKETS, (3, 20)),
        draw.normal(size=(3, 20)),
        draw.random((3, 20)) < 0.5,
    )
    found = empty(3)
    add(found, buckets, y, where=where)
    for row in range(3):
        alone = empty()
        add(alone, buckets[row][where[row]], y[row][where[row]])
        np.testing.assert_allclose(found[row], alone)


def test_add_to_a_view_that_would_be_copied_fails() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        add(empty(2, 3)[:, 0], np.zeros((2, 1), dtype=np.int64), 1.0)


def test_bucket_is_the_last_byte_and_independent_of_the_position() -> None:
    assert bucket_of("e", "acct-1") == hashlib.md5(b"e:acct-1").digest()[-1]
    units = [f"acct-{n}" for n in range(50_000)]
    buckets = np.array([bucket_of("e", unit) for unit in units])
    halves = np.array([position("e", unit) < 0.5 for unit in units])
    assert stats.chisquare(np.bincount(buckets, minlength=BUCKETS)).pvalue > 0.001
    table = [np.bincount(buckets[half], minlength=BUCKETS) for half in (halves, ~halves)]
    assert stats.chi2_contingency(table).pvalue > 0.001
