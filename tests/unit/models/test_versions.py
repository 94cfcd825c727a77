"""The order of versions: examples, and the laws of a total order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.models.versions import latest_of, newest_first, order_of, spellings_of

_number = st.integers(min_value=0, max_value=30).map(str)
_release = st.lists(_number, min_size=1, max_size=4).map(".".join)
_suffix = st.sampled_from(
    [
        "",
        "",
        "",
        "rc1",
        "a2",
        ".dev3",
        ".post1",
        "-rc.1",
        "-beta",
        "-nightly.3",
        "-nightly.10",
        "+build.5",
        "-x.y",
    ]
)
_versions = st.one_of(
    st.builds(lambda v, release, suffix: v + release + suffix, st.sampled_from(["", "v"]), _release, _suffix),
    st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._+-]{0,12}\Z"),
)
_orders = st.builds(order_of, _versions, st.floats(min_value=0, max_value=10, allow_nan=False))


@pytest.mark.parametrize(
    "ascending",
    [
        ["v1.0", "v1.1", "v1.2"],
        ["1.9", "1.10"],
        ["v1.0", "2.0"],
        ["1.0.dev1", "1.0a1", "1.0rc1", "1.0", "1.0.post1"],
        ["1.0.0-nightly.3", "1.0.0-nightly.10", "1.0.0"],
        ["1.0.0-nightly.10", "1.0.0-rc.1", "1.0.0"],
        ["0.9", "1.0.0-nightly.3"],
        ["stable", "0.0.1"],
    ],
)
def test_versions_sort_by_pep_440_then_semver(ascending: list[str]) -> None:
    orders = [order_of(version, 0.0) for version in ascending]
    assert [order.text for order in newest_first(orders)] == ascending[::-1]


def test_versions_that_do_not_parse_sort_by_registration() -> None:
    orders = [order_of("zebra", 1.0), order_of("apple", 2.0), order_of("0.1", 0.0)]
    assert [order.text for order in newest_first(orders)] == ["0.1", "apple", "zebra"]


@pytest.mark.parametrize(
    ("versions", "latest"),
    [
        (["v1.0", "v1.1", "v2.0rc1"], "v1.1"),
        (["v2.0rc1", "v2.0.dev4"], "v2.0rc1"),
        (["1.0.0", "1.0.1-nightly.1"], "1.0.0"),
        (["prod", "v0.1"], "v0.1"),
        (["v1.0"], "v1.0"),
    ],
)
def test_latest_passes_over_pre_releases_unless_there_is_nothing_else(
    versions: list[str], latest: str
) -> None:
    found = latest_of(order_of(version, 0.0) for version in versions)
    assert found is not None
    assert found.text == latest


def test_latest_of_nothing_is_none() -> None:
    assert latest_of([]) is None


@given(_orders, _orders, _orders)
def test_order_is_total(one: object, two: object, three: object) -> None:
    assert (one < two) + (two < one) + (one == two) == 1  # type: ignore[operator]
    if one <= two <= three:  # type: ignore[operator]
        assert one <= three  # type: ignore[operator]


@given(st.lists(_orders, min_size=1))
def test_latest_is_the_greatest_of_its_kind(orders: list) -> None:  # type: ignore[type-arg]
    found = latest_of(orders)
    assert found in orders
    finals = [order for order in orders if not order.is_pre_release]
    assert found == max(finals or orders)


@given(_versions)
def test_spellings_find_each_other(version: str) -> None:
    given_first, other = spellings_of(version)
    assert given_first == version
    if version[0] not in "vV":
        assert spellings_of(other)[1] == version
