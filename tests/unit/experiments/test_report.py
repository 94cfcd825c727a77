"""The report: a page that needs nothing else, whatever names and figures it is given."""

import html.parser
import re
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.experiments.canary import Step
from control_plane.experiments.counters import KEYED, REQUESTS, UNITS, observation
from control_plane.experiments.creation import DISAGREEMENT
from control_plane.experiments.definition import AssignmentKind, Definition, Mode, Variant
from control_plane.experiments.design import Direction, Guardrail, Metric, MetricKind
from control_plane.experiments.operations import Looked
from control_plane.experiments.report.page import render
from control_plane.experiments.report.plots import (
    About,
    Curve,
    IntervalPoint,
    Split,
    interval_plot,
    latency_plot,
    log_ticks,
    split_plot,
    ticks,
)
from control_plane.experiments.results import evaluate
from control_plane.experiments.service import TimelinePoint
from control_plane.experiments.sketch import Sketch, index_of
from control_plane.experiments.state import experiment_of, first_state, observations_of
from control_plane.store.experiments import StoredCounts, StoredExperiment

ODD = "<script>alert('x')</script>&\"{{ 7*7 }}"
LATENCY = Metric(name="latency", kind=MetricKind.LATENCY, direction=Direction.DOWN)
ERROR = Metric(name="error", kind=MetricKind.ERROR, direction=Direction.DOWN)
FILLED = Metric(name="filled", kind=MetricKind.RATE, direction=Direction.UP)
NOW_S = 1_800_000_000.0
ABOUT = About(plot_id="p", title="t", summary="s")


def defined(**changes: Any) -> Definition:
    fields: dict[str, Any] = {
        "experiment_id": "e-1",
        "model_type": "tried",
        "variants": (Variant(name="control", version="v1.0"), Variant(name="treatment", version="v1.1")),
        "shares": (0.5, 0.5),
        "mode": Mode.AB,
        "metrics": (FILLED, LATENCY, ERROR),
        "alpha": 0.05,
        "min_sample": 100,
        "planned_requests": 4000,
        "salt": None,
        "assignment": AssignmentKind.HASH,
        "block_minutes": 60.0,
        "guardrails": (
            Guardrail(metric="latency", max_ratio=1.2),
            Guardrail(metric="filled", max_difference=0.1),
        ),
        "steps": (),
        "auto_promote": False,
        "floor_share": 0.05,
        "epoch_minutes": 10.0,
        "duration_hours": 24.0,
        "created_at": NOW_S - 7200,
        "ends_at": NOW_S + 79_200,
    }
    return Definition(**(fields | changes))


def counted(
    definition: Definition, requests: int, *, slower: float = 1.3, keyed: bool = True
) -> StoredCounts:
    """Even shares in the first epoch, whatever the definition's are."""
    draw = np.random.default_rng(1)
    counts: dict[str, int] = {}
    moments: dict[str, list[float]] = {}
    sketches: dict[str, int] = {}
    for number in range(requests):
        variant, bucket = number % len(definition.variants), int(draw.integers(256))
        ms = float(draw.lognormal(2.0, 0.3)) * (slower if variant else 1.0)
        for what in (REQUESTS, UNITS, *((KEYED,) if keyed else ())):
            counts[f"0|{variant}|{what}"] = counts.get(f"0|{variant}|{what}", 0) + 1
        values = {
            MetricKind.LATENCY: np.log(ms),
            MetricKind.ERROR: 0.0,
            MetricKind.RATE: float(number % 3 == 0),
        }
        for metric in definition.metrics:
            if metric.treatment_only and not variant:
                continue
            place = f"0|{variant}|{metric.name}|{bucket}"
            seen = observation(float(values.get(metric.kind, 0.25)), None)
            moments[place] = [a + b for a, b in zip(moments.get(place, [0.0] * len(seen)), seen, strict=True)]
        sketches[f"0|{variant}|{index_of(ms)}"] = sketches.get(f"0|{variant}|{index_of(ms)}", 0) + 1
    return StoredCounts(
        counts=counts, moments={name: tuple(one) for name, one in moments.items()}, sketches=sketches
    )


def looked_at(definition: Definition, counts: StoredCounts, **state: str) -> Looked:
    text = msgspec.json.encode(definition).decode()
    stored = StoredExperiment(
        experiment_id=definition.experiment_id, definition=text, state=first_state(definition) | state
    )
    experiment = experiment_of(stored)
    design = definition.design(units_are_requests=False)
    results = evaluate(design, observations_of(experiment, counts, ended=False))
    return Looked(experiment=experiment, counts=counts, results=results)


def timeline_of(looked: Looked, points: int = 20) -> list[TimelinePoint]:
    return [
        TimelinePoint(
            time_s=NOW_S - 7200 + 360 * number,
            requests=100 * number,
            comparisons=[
                {
                    "variant": one.variant,
                    "metric": one.metric,
                    "difference": one.difference,
                    "lower": None if number < 3 else one.difference - 1 / number,
                    "upper": None if number < 3 else one.difference + 1 / number,
                }
                for one in looked.results.comparisons
            ],
        )
        for number in range(points)
    ]


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and whether each was closed in order."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def check_page(page: str) -> Page:
    """Well-formed, self-contained, and no script."""
    found = Page(page)
    assert found.open == []
    for tag, attributes in found.seen:
        assert tag not in {"script", "link", "img", "iframe", "object", "base", "form"}, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in {"src", "href", "xlink:href", "srcset", "action", "style"}, (tag, name, value)
    assert "url(" not in page
    assert "@import" not in page
    assert "http:" not in page
    assert "https:" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        names = {one.get("id") for one in root.iter() if one.get("id")}
        assert set(str(root.get("aria-labelledby")).split()) == names
    ids = [attributes["id"] for _, attributes in found.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    return found


def test_report_says_what_the_results_say() -> None:
    definition = defined()
    looked = looked_at(definition, counted(definition, 4000))
    page = check_page(render(looked, timeline_of(looked), now_s=NOW_S))
    assert "The treatment is worse" in page.text
    for sentence in looked.results.sentences:
        assert sentence in page.text
    for heading in ("Verdict", "Variants", "Latency", "Split", "Guardrails", "Settings"):
        assert heading in page.text
    tags = [tag for tag, _ in page.seen]
    assert tags.count("svg") == 3 + 2
    assert tags.count("h1") == 1
    assert all(attributes.get("scope") for tag, attributes in page.seen if tag == "th")
    assert "latency at most 1.2 times the control's" in page.text
    assert "filled at most 0.1 below the control's" in page.text


def test_report_escapes_what_it_is_given() -> None:
    definition = defined(
        experiment_id=ODD,
        model_type=ODD,
        salt=ODD,
        variants=(Variant(name="control", version=ODD), Variant(name=ODD, version="v1.1")),
        metrics=(Metric(name=ODD, kind=MetricKind.RATE, direction=Direction.UP), LATENCY, ERROR),
        guardrails=(Guardrail(metric=ODD, max_ratio=2.0),),
    )
    looked = looked_at(
        definition,
        counted(definition, 600),
        reason=ODD,
        certificate='{"warnings": ["<b>x</b>"], "power": "<i>"}',
    )
    text = render(looked, timeline_of(looked), now_s=NOW_S)
    page = check_page(text)
    assert "<script" not in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert ODD in page.text
    assert f"Why shares changed last: {ODD}." in page.text


@pytest.mark.parametrize("requests", [0, 1, 2, 150])
def test_report_of_a_new_experiment_has_no_figures_yet(requests: int) -> None:
    definition = defined()
    looked = looked_at(definition, counted(definition, requests, keyed=False))
    page = check_page(render(looked, [], now_s=NOW_S))
    assert "Not compared yet" in page.text
    assert "nan" not in page.text.lower()
    assert ("No request was answered yet" in page.text) == (requests == 0)
    assert ("No request carried a routing key" in page.text) == (requests > 0)


def test_report_of_a_broken_split_withholds_the_verdict() -> None:
    definition = defined(shares=(0.8, 0.2))
    looked = looked_at(definition, counted(definition, 4000))
    page = check_page(render(looked, timeline_of(looked), now_s=NOW_S))
    assert "No verdict: the split is broken" in page.text
    assert "treatment is worse" not in page.text


def test_report_of_a_shadow_has_disagreement_and_no_split() -> None:
    definition = defined(mode=Mode.SHADOW, metrics=(LATENCY, ERROR, *DISAGREEMENT), guardrails=())
    looked = looked_at(definition, counted(definition, 1000))
    page = check_page(render(looked, timeline_of(looked), now_s=NOW_S))
    assert "A shadow divides nothing" in page.text
    assert "shed are shadow calls left out under load" in page.text
    assert "class_flips" in page.text
    assert "There are none." in page.text


def test_report_of_a_canary_says_why_it_went_back() -> None:
    steps = tuple(Step(share=share, duration_s=60.0, requests=10) for share in (0.1, 0.5))
    definition = defined(mode=Mode.CANARY, steps=steps)
    looked = looked_at(
        definition, counted(definition, 400), epoch="1", rolled_back="1", reason="latency is too long",
        **{"shares:1": "[1.0, 0.0]"},
    )  # fmt: skip
    page = check_page(render(looked, timeline_of(looked), now_s=NOW_S))
    assert "rolled back" in page.text
    assert "Why shares changed last: latency is too long." in page.text
    assert "until it is stopped" in page.text


def test_report_of_many_variants_and_points_stays_small() -> None:
    variants = tuple(Variant(name=f"v{place}", version="v1.0") for place in range(10))
    metrics = tuple(Metric(name=f"m{n}", kind=MetricKind.MEAN, direction=Direction.UP) for n in range(10))
    definition = defined(
        variants=variants, shares=(0.1,) * 10, metrics=(*metrics, LATENCY, ERROR), guardrails=()
    )
    looked = looked_at(definition, counted(definition, 3000))
    page = render(looked, timeline_of(looked, 500), now_s=NOW_S)
    check_page(page)
    assert len(page) < 2_000_000
    assert "further plots are left out" in page


finite = st.floats(-1e6, 1e6)
bound = st.none() | finite


@given(st.lists(st.builds(IntervalPoint, at_s=st.floats(0, 1e7), middle=finite, lower=bound, upper=bound)))
@settings(max_examples=50)
def test_interval_plot_is_well_formed_for_any_points(points: list[IntervalPoint]) -> None:
    svg = interval_plot(ABOUT, points, "{:g}".format)
    ET.fromstring(svg)
    assert "nan" not in svg
    assert "inf" not in svg


@given(st.lists(st.lists(st.floats(0, 1e8), max_size=20), max_size=4))
@settings(max_examples=50)
def test_latency_plot_is_well_formed_for_any_latencies(values: list[list[float]]) -> None:
    curves = []
    for place, given_ms in enumerate(values):
        curves.append(Curve(colour=place, sketch=Sketch()))
        curves[-1].sketch.add(given_ms)
    ET.fromstring(latency_plot(ABOUT, curves))


def test_split_plot_draws_a_bar_for_each_variant() -> None:
    splits = [
        Split(label="epoch 1", counts=(70, 30), declared=(0.5, 0.5)),
        Split(label="<2>", counts=(0, 0), declared=(1.0, 0.0)),
    ]
    root = ET.fromstring(split_plot(ABOUT, splits))
    widths = [float(str(bar.get("width"))) for bar in root.iter("rect")]
    assert widths[0] / (widths[0] + widths[1]) == pytest.approx(0.7, abs=1e-3)
    assert widths[2:] == [0.0, 0.0]


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_and_inside(low: float, width: float) -> None:
    high = low + width
    found = ticks(low, high)
    assert len(found) <= 11
    assert all(
        low - 1e-6 * abs(low) - width / 100 <= one <= high + 1e-6 * abs(high) + width / 100 for one in found
    )


@given(st.floats(1e-3, 1e6), st.floats(1.05, 1e6))
def test_log_ticks_are_few_and_inside(low: float, ratio: float) -> None:
    found = log_ticks(low, low * ratio)
    assert len(found) <= 11
    assert found == sorted(found)
