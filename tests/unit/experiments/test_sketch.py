"""Quantiles of sketches against numpy's on six distributions, merged or not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.experiments.sketch import (
    ACCURACY,
    NOT_POSITIVE,
    Sketch,
    index_of,
    upper_edge,
    value_of,
)

SIZE = 20_000
QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
ROUNDING = 1e-9
LAWS = {
    "lognormal": lambda draw: draw.lognormal(2.0, 0.6, SIZE),
    "exponential": lambda draw: draw.exponential(12.0, SIZE),
    "uniform": lambda draw: draw.uniform(1.0, 500.0, SIZE),
    "pareto": lambda draw: 5.0 * (1.0 + draw.pareto(1.2, SIZE)),
    "two_humps": lambda draw: np.where(
        draw.random(SIZE) < 0.9, draw.normal(8, 1, SIZE), draw.normal(900, 40, SIZE)
    ),
    "constant": lambda _draw: np.full(SIZE, 3.7),
}
POSITIVE = st.floats(1e-300, 1e300)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("parts", [1, 7])
def test_quantile_is_within_one_percent_of_numpys(law: str, parts: int) -> None:
    values = np.abs(LAWS[law](np.random.default_rng(5)))
    merged = Sketch()
    for part in np.array_split(values, parts):
        own = Sketch()
        own.add(part)
        merged.merge(own)
    assert merged.count == SIZE
    assert merged.mean() == pytest.approx(values.mean(), rel=ACCURACY)
    for q in QUANTILES:
        assert merged.quantile(q) == pytest.approx(np.quantile(values, q), rel=ACCURACY + ROUNDING)


@given(st.lists(st.lists(POSITIVE, max_size=20), max_size=5))
def test_merge_equals_the_sketch_of_all(groups: list[list[float]]) -> None:
    together, merged = Sketch(), Sketch()
    together.add([value for group in groups for value in group])
    for group in groups:
        own = Sketch()
        own.add(group)
        merged.merge(own)
    assert merged.counts == together.counts


@given(POSITIVE)
def test_value_of_its_bucket_is_within_one_percent(value: float) -> None:
    index = index_of(value)
    assert value_of(index) == pytest.approx(value, rel=ACCURACY + ROUNDING)
    assert upper_edge(index - 1) * (1 - ROUNDING) <= value <= upper_edge(index) * (1 + ROUNDING)


@given(st.lists(POSITIVE, min_size=1, max_size=50), st.floats(0, 1))
def test_quantile_of_few_values_is_numpys(values: list[float], q: float) -> None:
    found = Sketch()
    found.add(values)
    ordered = np.sort(values)
    rank = q * (len(values) - 1)
    low, high = ordered[int(np.floor(rank))], ordered[int(np.ceil(rank))]
    quantile = found.quantile(q)
    assert quantile is not None
    assert low * (1 - ACCURACY - ROUNDING) <= quantile <= high * (1 + ACCURACY + ROUNDING)


def test_add_of_zero_and_negative_values_fills_their_own_bucket() -> None:
    found = Sketch()
    found.add([0.0, -3.0, 5.0])
    assert found.counts == {NOT_POSITIVE: 2, index_of(5.0): 1}
    assert index_of(0.0) == index_of(-1.0) == NOT_POSITIVE
    assert found.quantile(0.0) == 0.0
    assert index_of(5e-324) > NOT_POSITIVE


def test_sketch_without_values_has_no_quantiles() -> None:
    assert Sketch().quantile(0.5) is None
    assert Sketch({3: 0}).quantile(0.5) is None
    assert Sketch().mean() is None
    with pytest.raises(ValueError, match="from 0 to 1"):
        Sketch({1: 1}).quantile(1.5)
