"""Intervals in characters."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from control_plane.experiments.sequential import Interval
from control_plane.experiments_cli.show import AXIS_WIDTH, TREND_WIDTH, axis, print_list, trend

UNKNOWN = Interval(lower=None, upper=None)


def test_axis_shows_where_no_difference_is() -> None:
    assert axis(Interval(lower=0.2, upper=1.0), 0.6) == " " * 10 + "│ ├───●───┤"
    assert axis(Interval(lower=-1.0, upper=-0.5), -0.7) == "├──●─┤" + " " * 4 + "│" + " " * 10
    assert axis(Interval(lower=-1.0, upper=1.0), 0.5) == "├" + "─" * 9 + "┼────●────┤"
    assert axis(UNKNOWN, 0.0) == ""


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_axis_is_as_wide_as_asked(middle: float, half: float) -> None:
    text = axis(Interval(lower=middle - half, upper=middle + half), middle)
    assert len(text) == AXIS_WIDTH
    assert text.count("●") == 1


def test_trend_shows_how_an_interval_narrowed() -> None:
    known = [Interval(lower=-1 / n, upper=1 / n) for n in (1, 2, 4, 8)]
    assert trend([UNKNOWN, UNKNOWN, *known]) == "··█▅▃▂"
    assert trend([]) == ""
    assert trend([Interval(lower=1.0, upper=1.0)]) == "▁"


@given(st.integers(0, 600))
def test_trend_is_short_and_ends_with_the_last(count: int) -> None:
    text = trend([*[UNKNOWN] * count, Interval(lower=0.0, upper=1.0)])
    assert len(text) <= TREND_WIDTH
    assert text[-1] == "█"


def test_list_prints_names_as_they_are() -> None:
    entry = {
        "experiment_id": "[red]x[/red]", "status": "active", "mode": "ab", "model_type": "t", "shares": {"a": 1.0},
        "total_requests": 1234, "end_time": None,
    }  # fmt: skip
    out = io.StringIO()
    print_list({"experiments": {"x": entry}}, Console(file=out, width=120))
    assert "[red]x[/red]" in out.getvalue()
    assert "1,234" in out.getvalue()
    assert "when stopped" in out.getvalue()
    print_list({"experiments": {}}, Console(file=out))
    assert "no experiments" in out.getvalue()
