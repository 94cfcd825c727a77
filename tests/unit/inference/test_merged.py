"""Work that the requests of a merged call share."""

from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from control_plane.inference.merged import MergedOutputs, OutputRows, evaluate_shared
from control_plane.inference.tensors import Array


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), min_size=1, max_size=8))
def test_each_request_gets_its_own_rows_and_one_evaluation_is_shared(
    requests: list[tuple[int, int]],
) -> None:
    total = sum(rows for rows, _ in requests)
    merged = MergedOutputs({"y": np.arange(total), "z": np.arange(total) * 10})
    evaluated: list[int] = []
    start = 0
    for rows, factor in requests:

        def evaluate(tensors: Mapping[str, Array], factor: int = factor) -> Array:
            evaluated.append(len(tensors["y"]))
            return np.asarray(tensors["y"] * factor + tensors["z"])

        outputs = OutputRows(merged, slice(start, start + rows))
        result, own = evaluate_shared(outputs, factor, evaluate)
        expected = np.arange(start, start + rows)
        np.testing.assert_array_equal(result[own], expected * factor + expected * 10)
        np.testing.assert_array_equal(outputs["y"], expected)
        start += rows
    first = requests[0][1]
    others = [rows for rows, factor in requests if factor != first]
    assert sorted(evaluated) == sorted([total, *others])


def test_output_rows_are_a_mapping_of_the_tensors() -> None:
    rows = OutputRows(MergedOutputs({"a": np.arange(6), "b": np.ones((6, 2))}), slice(2, 4))
    assert dict(rows).keys() == {"a", "b"}
    assert "a" in rows
    assert "c" not in rows
    assert rows["b"].shape == (2, 2)
