"""Sentinel URLs."""

import pytest

from control_plane.store.redis import parse_sentinel_url


def test_sentinel_url_is_read() -> None:
    address = parse_sentinel_url("redis+sentinel://me:p%40ss@one:26379,two:26380/main/3")
    assert address.nodes == (("one", 26379), ("two", 26380))
    assert (address.service, address.db, address.username, address.password) == ("main", 3, "me", "p@ss")


def test_sentinel_url_has_defaults() -> None:
    address = parse_sentinel_url("redis+sentinel://one/main")
    assert address.nodes == (("one", 26379),)
    assert (address.db, address.username, address.password) == (0, None, None)


@pytest.mark.parametrize(
    "url",
    ["redis+sentinel://one:26379", "redis+sentinel:///main", "redis+sentinel://one:x/main",
     "redis+sentinel://one/main/x", "redis+sentinel://one/main/0/more"],
)  # fmt: skip
def test_malformed_sentinel_url_says_the_right_form(url: str) -> None:
    with pytest.raises(ValueError, match="redis\\+sentinel://"):
        parse_sentinel_url(url)
