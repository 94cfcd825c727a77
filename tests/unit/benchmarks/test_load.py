"""What the generators said becomes the figures that it should."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.h2load import parse_log, parse_received
from benchmarks.http_callers import Tally, distinct_number, whole_answer
from benchmarks.load import percentile, result_of, wrk_result

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nnull"
WRK = {"seconds": 2.0, "p50_ms": 1, "p90_ms": 2, "p99_ms": 3, "max_ms": 4}


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_percentile_is_least_value_that_covers_the_share(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    assert found == np.quantile(ordered, share, method="inverted_cdf")


def test_percentile_of_nothing_is_nan() -> None:
    assert math.isnan(percentile([], 0.5))


def test_result_counts_those_in_time() -> None:
    result = result_of([5, 1, 3], generator="python", connections=2, seconds=2, deadline_ms=3, offered=4)
    assert (result.answered, result.in_time, result.offered) == (3, 2, 4)
    assert (result.requests_per_s, result.p50_ms, result.max_ms) == (1.5, 3, 5)


def test_wrk_result_leaves_bad_answers_out_of_the_rate() -> None:
    result = wrk_result(WRK | {"requests": 100, "bad_status": 10, "broken": 1}, 8, 0.5)
    assert (result.answered, result.failed, result.requests_per_s) == (90, 11, 45)


def test_wrk_result_with_bad_answers_only_is_refused() -> None:
    with pytest.raises(RuntimeError, match="nothing was answered"):
        wrk_result(WRK | {"requests": 10, "bad_status": 10, "broken": 0}, 8, 0.5)


def test_h2load_log_is_read() -> None:
    assert list(parse_log(["1700000000000000\t200\t1500", "1700000000000100\t-1\t20"])) == [
        (200, 1.5),
        (-1, 0.02),
    ]


def test_h2load_bytes_of_bodies_are_read() -> None:
    line = "traffic: 1.24MB (1300000) total, 12.00KB (12288) headers (space savings 90.00%), 1.17MB (1228800) data"
    assert parse_received(f"finished in 2.00s\n{line}\n") == 1_228_800
    assert math.isnan(parse_received("no such line"))


@given(st.integers(0, len(ANSWER) - 1))
def test_answer_is_whole_only_at_its_last_byte(length: int) -> None:
    assert whole_answer(ANSWER[:length]) is None
    assert whole_answer(ANSWER) == 200


def test_answer_without_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="Content-Length"):
        whole_answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_distinct_numbers_are_as_long_as_asked_and_differ(first: int, second: int) -> None:
    a, b = distinct_number(first, 14), distinct_number(second, 14)
    assert len(a) == len(b) == 14
    assert (float(a) == float(b)) == (first == second)


def test_tally_tells_refusals_and_timeouts_apart() -> None:
    tally = Tally()
    for status in (200, 200, 503, 504, 500, 0):
        tally.add(status, 0.002)
    assert tally.latencies_ms == [2.0, 2.0]
    assert (tally.refused, tally.timed_out, tally.failed) == (1, 1, 2)
