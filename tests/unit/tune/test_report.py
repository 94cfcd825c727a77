"""The report: table, JSON document and picture."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from control_plane.__main__ import app
from control_plane.models.tuning.choice import CallSize, Point, choose
from control_plane.models.tuning.configurations import Configuration, Trial
from control_plane.models.tuning.measurement import Curve
from control_plane.tune.plot import can_plot, ending_fault, write_plot
from control_plane.tune.report import Report, print_report


def curve(objective_p95_ms: float = 50) -> Curve:
    points = tuple(
        Point(
            size=CallSize(rows=rows, calls_in_flight=2),
            p50_ms=rows,
            p95_ms=1.5 * rows,
            rows_per_s=4000 * rows / (rows + 4),
            rows_per_s_error=10,
            calls=100,
        )
        for rows in (1, 2, 4, 8, 16, 32)
    )
    chosen = choose(points, objective_p95_ms=objective_p95_ms)
    return Curve(objective_p95_ms=objective_p95_ms, points=points, chosen=chosen, skipped_rows=(64,))


def printed(report: Report) -> str:
    text = io.StringIO()
    print_report(report, Console(file=text, width=100))
    return text.getvalue()


def test_report_marks_the_chosen_row_and_says_what_was_stored() -> None:
    text = printed(Report(model="tiny-v1", curve=curve(), is_stored=True, plot=Path("tiny.svg")))
    (marked,) = [line for line in text.splitlines() if "→" in line]
    assert [part.strip() for part in marked.split("│")[2:4]] == ["16", "2"]
    assert "Stored in the card of tiny-v1" in text
    assert "64 rows" in text
    assert "tiny.svg" in text


def test_report_without_a_choice_says_that_nothing_changed() -> None:
    report = Report(model="tiny-v1", curve=curve(1), is_stored=False)
    assert "nothing was stored" in printed(report)
    assert "→" not in printed(report)
    assert report.document()["chosen"] is None


def test_report_of_a_search_lists_what_was_tried() -> None:
    trials = [
        Trial(configuration=Configuration(instance_count=1, intra_op_threads=1), curve=curve(1)),
        Trial(configuration=Configuration(instance_count=2, intra_op_threads=1), curve=curve()),
        Trial(
            configuration=Configuration(instance_count=9, intra_op_threads=None),
            curve=None,
            failure="no room",
        ),
    ]
    report = Report(model="tiny-v1", curve=curve(1), is_stored=False, trials=trials, best=trials[1])
    text = printed(report)
    assert "no size meets the objective" in text
    assert "no room" in text
    document = json.loads(json.dumps(report.document()))
    assert document["best_configuration"] == {"instance_count": 2, "intra_op_threads": 1}
    assert [one["failure"] for one in document["configurations"]] == [None, None, "no room"]


@pytest.mark.skipif(not can_plot(), reason="the extra `plots` isn't installed")
@pytest.mark.parametrize("objective_p95_ms", [50, 1])
def test_plot_of_the_same_curve_is_the_same_file(tmp_path: Path, objective_p95_ms: float) -> None:
    for name in ("first", "second"):
        write_plot(tmp_path / "new" / f"{name}.svg", "tiny-v1", curve(objective_p95_ms))
    first, second = ((tmp_path / "new" / f"{name}.svg").read_text() for name in ("first", "second"))
    assert first == second
    assert "tiny-v1" in first
    assert "rows a second" in first


@pytest.mark.parametrize(
    ("name", "is_fine"), [("a.svg", True), ("a.PNG", True), ("a.xyz", False), ("a", False), (".svg", False)]
)
def test_picture_of_another_ending_is_refused_before_the_measurement(name: str, *, is_fine: bool) -> None:
    assert (ending_fault(Path(name)) is None) is is_fine
    if not is_fine:
        answer = CliRunner().invoke(app, ["tune", "m", "--plot", name])
        assert answer.exit_code == 2
