"""Bodies of feedback: what is wrong is told by entry."""

import pytest

from control_plane.api.schemas.feedback import decode_feedback
from control_plane.errors import InvalidInput


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ('{"request_id": "b", "rewrd": 1}', "[1].rewrd"),
        ('{"reward": 1}', "[1].request_id"),
        ('{"request_id": "b", "reward": "1"}', "[1].reward"),
        ('{"request_id": "b", "reward": NaN}', "[1].reward"),
        ('{"request_id": "b", "reward": 1, "row": -1}', "[1].row"),
        ("1", "[1]"),
    ],
)
def test_fault_in_a_list_is_told_with_its_index(entry: str, path: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        decode_feedback(f'[{{"request_id": "a", "reward": 1}}, {entry}]'.encode())
    assert path in raised.value.detail
    assert [error.path for error in raised.value.errors] == [path]
