"""UUIDv7."""

import uuid

import pytest

from control_plane.inference.identifiers import time_of, uuid7


def test_uuid7_is_one_and_tells_its_time() -> None:
    made = uuid7(time_s=1_700_000_000.123)
    parsed = uuid.UUID(made)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert time_of(made) == pytest.approx(1_700_000_000.123, abs=0.001)
    assert str(parsed) == made


def test_uuid7_sorts_by_time_and_is_unique() -> None:
    assert uuid7(time_s=1.0) < uuid7(time_s=2.0) < uuid7()
    assert len({uuid7(time_s=1.0) for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize("text", ["", "abc", "3f2b9c1e-8a57-4d0c-9b1e-2f6a7c5d4e3b"])
def test_time_of_anything_else_is_none(text: str) -> None:
    assert time_of(text) is None
