"""Who takes part, and what is counted of it, in one worker's memory."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from control_plane.errors import InferenceFailed, InvalidInput, UnknownExperiment, UnknownVersion
from control_plane.experiments.active import ActiveExperiments
from control_plane.experiments.assignment import position, variant_of
from control_plane.experiments.counters import Counters
from control_plane.experiments.definition import AssignmentKind, Mode
from control_plane.experiments.moments import bucket_of
from control_plane.inference.disagreement import Disagreement
from control_plane.inference.routing import Assignment
from tests.unit.experiments.definitions import BEGIN_S, FILLED, definition, running


def active(*definitions: Any) -> ActiveExperiments:
    found = ActiveExperiments(Counters())
    found.replace([running(one) for one in definitions])
    return found


def assign(experiments: ActiveExperiments, **fields: Any) -> Assignment | None:
    options: dict[str, Any] = {
        "model_type": "tried",
        "version": "latest",
        "experiment_id": None,
        "routing_key": None,
        "request_id": "r",
        "now_s": BEGIN_S + 1,
    }
    return experiments.assign(**(options | fields))


def test_variant_is_the_hashes_and_the_same_in_every_worker() -> None:
    one, other = active(definition()), active(definition())
    seen = Counter()
    for number in range(2_000):
        place = assign(one, routing_key=f"k{number}", request_id=f"r{number}")
        assert place is not None
        assert place == assign(other, routing_key=f"k{number}", request_id=f"r{number}")
        assert place.variant == variant_of(position("e", f"k{number}"), (0.7, 0.3))
        assert place.group == f"e:{('control', 'treatment')[place.variant]}"
        assert place.version == ("v1.0", "v1.1")[place.variant]
        seen[place.variant] += 1
    assert seen[0] / 2_000 == pytest.approx(0.7, abs=0.05)


def test_request_id_is_the_unit_without_a_routing_key_and_the_salt_stands_for_the_id() -> None:
    place = assign(active(definition(salt="other")), request_id="r7")
    assert place is not None
    assert (place.unit, place.is_keyed) == ("r7", False)
    assert place.variant == variant_of(position("other", "r7"), (0.7, 0.3))


def test_only_the_oldest_experiment_of_the_type_takes_requests_that_ask_for_none() -> None:
    experiments = active(definition(), definition(experiment_id="later"))
    place = assign(experiments)
    assert place is not None
    assert place.experiment_id == "e"
    assert assign(experiments, model_type="other") is None
    assert assign(experiments, version="v1.0") is None
    assert assign(experiments, experiment_id="none") is None
    named = assign(experiments, version="v1.0", experiment_id="later")
    assert named is not None
    assert named.experiment_id == "later"
    for fields in ({"experiment_id": "never"}, {"experiment_id": "later", "model_type": "other"}):
        with pytest.raises(UnknownExperiment):
            assign(experiments, **fields)


def test_nobody_takes_part_after_the_end_even_before_the_end_is_written() -> None:
    experiments = active(definition())
    assert assign(experiments, now_s=BEGIN_S + 24 * 3600 - 1) is not None
    assert assign(experiments, now_s=BEGIN_S + 24 * 3600) is None
    with pytest.raises(UnknownExperiment):
        assign(experiments, experiment_id="e", now_s=BEGIN_S + 24 * 3600)


def test_switchback_gives_whole_blocks_to_a_variant() -> None:
    experiments = active(definition(assignment=AssignmentKind.SWITCHBACK, shares=(0.5, 0.5)))
    blocks = {}
    for minute in range(0, 24 * 60, 7):
        place = assign(experiments, request_id=f"r{minute}", now_s=BEGIN_S + minute * 60)
        assert place is not None
        assert blocks.setdefault(place.unit, place.variant) == place.variant
    assert len(blocks) >= 24
    assert set(blocks.values()) == {0, 1}


def test_answers_and_server_faults_count_and_callers_faults_do_not() -> None:
    experiments = active(definition(metrics=(FILLED, *definition().metrics)))
    place = assign(experiments, routing_key="k", request_id="r1")
    assert place is not None
    experiments.answered(place, request_id="r1", latency_ms=5.0, covariate=2.0)
    experiments.failed(place, InferenceFailed("no"), covariate=None)
    experiments.failed(place, InvalidInput("no"), covariate=None)
    taken = experiments.counters.take("e")
    assert taken is not None
    number, batch = taken
    where, bucket = f"0|{place.variant}", bucket_of("e", "k")
    assert batch.counts == {f"{where}|requests": 2, f"{where}|errors": 1, f"{where}|keyed": 2}
    assert batch.moments[f"{where}|error|{bucket}"] == [2.0, 1.0, 1.0, 1.0, 2.0]
    assert batch.moments[f"{where}|latency|{bucket}"][0] == 1.0
    assert sum(batch.sketches.values()) == 1
    assert [len(hashes) for hashes in batch.units.values()] == [1]
    assert experiments.participants["r1"].bucket == bucket
    assert experiments.counters.take("e") == (number, batch), "the same batch until it is confirmed"
    experiments.answered(place, request_id="r2", latency_ms=5.0, covariate=None)
    assert experiments.counters.take("e") == (number, batch)
    experiments.counters.confirm("e")
    again = experiments.counters.take("e")
    assert again is not None
    assert again[0] > number
    assert again[1].counts[f"{where}|requests"] == 1


def test_answer_on_its_way_when_the_experiment_ends_is_counted() -> None:
    experiments = active(definition())
    place = assign(experiments)
    assert place is not None
    experiments.replace([])
    experiments.answered(place, request_id="r", latency_ms=1.0, covariate=None)
    assert experiments.counters.events == 1


def test_shadow_answers_with_the_control_and_counts_what_lies_between() -> None:
    experiments = active(definition(mode=Mode.SHADOW))
    for number in range(50):
        place = assign(experiments, routing_key=f"k{number}")
        assert place is not None
        assert place.variant == 0
    shadow = experiments.shadow_of(place)
    assert shadow is not None
    assert (shadow.variant, shadow.version) == (1, "v1.1")
    found = Disagreement(class_flips=1.0, total_variation=0.25, regression_difference=None)
    experiments.compared(shadow, found, latency_ms=3.0, covariate=None)
    experiments.shed(shadow)
    taken = experiments.counters.take("e")
    assert taken is not None
    bucket = bucket_of("e", "k49")
    assert taken[1].moments[f"0|1|total_variation|{bucket}"] == [1.0, 0.25, 0.0625, 0.0, 0.0]
    assert f"0|1|regression_difference|{bucket}" not in taken[1].moments
    assert taken[1].counts["0|1|shed"] == 1


def test_missing_versions_and_callers_who_leave_count_against_the_variant() -> None:
    experiments = active(definition())
    place = assign(experiments)
    assert place is not None
    experiments.failed(place, UnknownVersion("gone"), covariate=None)
    experiments.failed(place, asyncio.CancelledError(), covariate=None)
    taken = experiments.counters.take("e")
    assert taken is not None
    assert taken[1].counts[f"0|{place.variant}|errors"] == 2


def test_observations_that_overflow_are_none() -> None:
    experiments = active(definition(mode=Mode.SHADOW))
    place = assign(experiments)
    assert place is not None
    shadow = experiments.shadow_of(place)
    assert shadow is not None
    found = Disagreement(class_flips=None, total_variation=None, regression_difference=1e200)
    experiments.compared(shadow, found, latency_ms=1.0, covariate=None)
    taken = experiments.counters.take("e")
    assert taken is not None
    assert not [name for name in taken[1].moments if "regression_difference" in name]
