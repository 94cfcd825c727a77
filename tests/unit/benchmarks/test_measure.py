"""Turns, ratios within a round, and what of them stands in the page."""

import pytest

from benchmarks import triton_statistics
from benchmarks.load import LoadResult, result_of
from benchmarks.measure import Measurement, Spread, compare, ratio, select, spread, summary
from benchmarks.report import between, figure_line
from benchmarks.results import Figure
from benchmarks.system import System


def system(name: str, log: list[tuple[str, int]], concurrencies: tuple[int, ...] | None = None) -> System:
    """A system that answers in memory: a request takes as many milliseconds as there are callers."""

    def drive(connections: int, seconds: float) -> LoadResult:
        log.append((name, connections))
        return result_of(
            [float(connections)] * 10, generator="memory", connections=connections, seconds=seconds
        )

    return System(name=name, drive=drive, processes=dict, concurrencies=concurrencies)


def measurement(name: str, repeat: int, rate: float) -> Measurement:
    """A measurement with that rate."""
    load = result_of([1.0] * round(rate), generator="memory", connections=8, seconds=1)
    return Measurement(system=name, repeat=repeat, load=load, cpu_us={"api": 5.0}, memory_bytes={"api": 7})


def test_systems_take_turns_and_the_first_changes() -> None:
    log: list[tuple[str, int]] = []
    compare([system("a", log), system("b", log)], (1, 8), repeats=2, seconds=1, warm_up_s=0)
    assert log == [
        *[("a", 1), ("b", 1), ("a", 8), ("b", 8)],
        *[("b", 1), ("a", 1), ("b", 8), ("a", 8)],
    ]


def test_system_is_asked_only_with_its_own_numbers_of_callers() -> None:
    log: list[tuple[str, int]] = []
    compare([system("a", log, (8,))], (1, 8, 32), repeats=1, seconds=1, warm_up_s=1)
    assert log == [("a", 8), ("a", 8)]


def test_ratio_is_taken_within_each_round() -> None:
    rows = [
        *[measurement("a", 0, 10), measurement("b", 0, 20)],
        *[measurement("a", 1, 100), measurement("b", 1, 50)],
    ]
    found = ratio(select(rows, "a", 8), select(rows, "b", 8), lambda load: load.requests_per_s)
    assert found == Spread(median=1.25, low=0.5, high=2.0)


def test_ratio_of_different_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="different rounds"):
        ratio([measurement("a", 0, 1)], [measurement("b", 1, 1)], lambda load: load.p50_ms)


def test_summary_has_medians_and_the_greatest_memory() -> None:
    (row,) = summary([measurement("a", repeat, rate) for repeat, rate in enumerate((10, 30, 20))])
    assert row["requests_per_s"] == {"median": 20, "low": 10, "high": 30}
    assert (row["answered"], row["windows"], row["peak_memory_bytes"]) == (60, 3, {"api": 7})


@pytest.mark.parametrize(
    ("sense", "target", "met"),
    [("<=", 1.4, True), ("<=", 1.2, False), (">=", 1.2, True), (">=", 1.4, False), (None, None, None)],
)
def test_figure_is_met_by_its_median(sense: str | None, target: float | None, met: bool | None) -> None:
    figure = Figure(key="k", text="t", value=spread([1.0, 1.3, 2.0]), sense=sense, target=target)  # type: ignore[arg-type]
    assert figure.is_met is met


def test_missed_figure_says_so_on_the_page() -> None:
    value = {"median": 1.5, "low": 1.25, "high": 2}
    figure = {"text": "share", "value": value, "unit": "", "sense": "<=", "target": 1.4, "is_met": False}
    assert figure_line(figure) == "| share | 1.5 (1.25 … 2) | ≤ 1.4, **missed** |"


def test_page_changes_between_its_markers_only() -> None:
    page = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n"
    assert between(page, "x", "new\n") == page.replace("old", "new")
    with pytest.raises(ValueError, match="no section y"):
        between(page, "y", "new\n")


def test_triton_statistics_count_executions_once() -> None:
    def said(times: int) -> dict[str, object]:
        part = {"count": times, "ns": times * 2_000_000}
        return {
            "inference_count": 8 * times,
            "execution_count": times,
            "inference_stats": {"success": {"count": 2 * times, "ns": 2 * times * 10_000_000}},
            "batch_stats": [
                {"batch_size": 8, "compute_input": part, "compute_infer": part, "compute_output": part}
            ],
        }

    found = triton_statistics.parse(said(5)).since(triton_statistics.parse(said(2)))
    assert (found.requests, found.rows, found.executions) == (6, 24, 3)
    assert found.busy_s == pytest.approx(0.018)
    assert found.request_s == pytest.approx(0.06)
