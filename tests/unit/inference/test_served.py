"""The dispatcher's bounds of a version: settings, model and tuning together."""

from typing import Any

import pytest

from control_plane.inference.served import limits_of
from control_plane.models.card import ModelCard, ServingOptions, Tuning
from control_plane.settings import Settings
from tests.unit.inference.cards import card


def tuned(rows_per_call: int, calls_in_flight: int, **fields: Any) -> ModelCard:
    tuning = Tuning(
        rows_per_call=rows_per_call,
        calls_in_flight=calls_in_flight,
        objective_p95_ms=50,
        p95_ms=30,
        rows_per_s=1000,
        measured_at="2026-01-02T03:04:05Z",
    )
    return card("tiny", serving=ServingOptions(tuning=tuning), **fields)


def settings(**batching: Any) -> Settings:
    return Settings.model_validate({"batch_processing": batching})


@pytest.mark.parametrize(
    ("of", "batching", "expected"),
    [
        (card("tiny", max_batch_size=32), {}, (32, 2)),
        (card("tiny", max_batch_size=32, instance_count=3), {"max_batch_size": 16}, (16, 6)),
        (card("tiny", max_batch_size=0, instance_count=40), {}, (1, 64)),
        (tuned(8, 3), {}, (8, 3)),
        (tuned(8, 3), {"calls_in_flight": 5}, (8, 5)),
        (tuned(48, 1, max_batch_size=32), {}, (32, 1)),
        (tuned(48, 1), {"max_batch_size": 16}, (16, 1)),
    ],
)
def test_limits_follow_the_tuning_within_settings_and_model(
    of: ModelCard, batching: dict[str, Any], expected: tuple[int, int]
) -> None:
    limits = limits_of(of, settings(**batching))
    assert (limits.max_rows, limits.calls_in_flight) == expected
