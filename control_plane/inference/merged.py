"""A merged call: the inputs of several requests as one, and its outputs as each of them sees them: its own rows, and
work that all can share.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

import numpy as np

from control_plane.errors import InferenceFailed
from control_plane.inference.tensors import Array

Result = TypeVar("Result")


def merge_inputs(members: list[Mapping[str, Array]]) -> Mapping[str, Array]:
    """One call's inputs: the members' rows one after the other."""
    if len(members) == 1:
        return members[0]
    return {name: np.concatenate([member[name] for member in members]) for name in members[0]}


class MergedOutputs:
    """One call's outputs, for all its requests."""

    __slots__ = ("_key", "_result", "tensors")

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self.tensors = tensors
        self._key: Hashable | None = None
        self._result: object = None

    def shared(self, key: Hashable, evaluate: Callable[[Mapping[str, Array]], Result]) -> Result | None:
        """`evaluate` of all rows, computed for the first caller and those who ask with an equal key; None for others.

        So at most one evaluation of a call is over more rows than its caller's own.
        """
        if self._key is None:
            self._key, self._result = key, evaluate(self.tensors)
        return self._result if self._key == key else None  # type: ignore[return-value]  # one key, one type


class OutputRows(Mapping[str, Array]):
    """The rows of one request: views by Triton tensor name."""

    __slots__ = ("merged", "rows")

    def __init__(self, merged: MergedOutputs, rows: slice) -> None:
        self.merged = merged
        self.rows = rows

    def __getitem__(self, name: str) -> Array:
        return self.merged.tensors[name][self.rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self.merged.tensors)

    def __len__(self) -> int:
        return len(self.merged.tensors)


def split_outputs(outputs: Mapping[str, Array], rows: Sequence[int]) -> Sequence[Mapping[str, Array]]:
    """One call's outputs as views of each member's rows.

    Args:
        outputs: By Triton tensor name, with a leading batch axis.
        rows: How many each member has.

    Raises:
        InferenceFailed: an output lacks rows.
    """
    total = sum(rows)
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != total:
            raise InferenceFailed(
                f"The output {name} doesn't have one row for each of the input.",
                expected=f"{total} rows",
                got=f"shape {array.shape}",
            )
    if len(rows) == 1:
        return (outputs,)
    merged = MergedOutputs(outputs)
    ends = list(accumulate(rows))
    return [OutputRows(merged, slice(end - count, end)) for end, count in zip(ends, rows, strict=True)]


def evaluate_shared(
    outputs: Mapping[str, Array], key: Hashable, evaluate: Callable[[Mapping[str, Array]], Result]
) -> tuple[Result, slice]:
    """Evaluates outputs, together with others of the same call where that is possible.

    Args:
        outputs: A request's outputs.
        key: Equal for requests of one model whose evaluations are equal but for the rows.
        evaluate: Pure, and row by row.

    Returns:
        The result, and which of its rows are the request's.
    """
    if isinstance(outputs, OutputRows):
        result = outputs.merged.shared(key, evaluate)
        if result is not None:
            return result, outputs.rows
    return evaluate(outputs), slice(None)
