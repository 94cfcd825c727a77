"""Definitions for tests."""

from typing import Any

import msgspec

from control_plane.experiments.active import Running
from control_plane.experiments.canary import Step
from control_plane.experiments.definition import AssignmentKind, Definition, Mode, Variant
from control_plane.experiments.design import Direction, Metric, MetricKind
from control_plane.experiments.state import Experiment, experiment_of, first_state
from control_plane.store.experiments import StoredExperiment

LATENCY = Metric(name="latency", kind=MetricKind.LATENCY, direction=Direction.DOWN)
ERROR = Metric(name="error", kind=MetricKind.ERROR, direction=Direction.DOWN)
FILLED = Metric(name="filled", kind=MetricKind.RATE, direction=Direction.UP)
STEPS = (Step(share=0.1, duration_s=60, requests=50), Step(share=0.5, duration_s=60, requests=50))
BEGIN_S = 1_800_000_000.0


def definition(**replaced: Any) -> Definition:
    fields: dict[str, Any] = {
        "experiment_id": "e",
        "model_type": "tried",
        "variants": (Variant(name="control", version="v1.0"), Variant(name="treatment", version="v1.1")),
        "shares": (0.7, 0.3),
        "mode": Mode.AB,
        "metrics": (ERROR, LATENCY),
        "alpha": 0.05,
        "min_sample": 100,
        "planned_requests": 10_000,
        "salt": None,
        "assignment": AssignmentKind.HASH,
        "block_minutes": 60.0,
        "guardrails": (),
        "steps": STEPS if replaced.get("mode") is Mode.CANARY else (),
        "auto_promote": False,
        "floor_share": 0.05,
        "epoch_minutes": 10.0,
        "duration_hours": 24.0,
        "created_at": BEGIN_S,
        "ends_at": BEGIN_S + 24 * 3600,
    }
    return Definition(**(fields | replaced))


def stored(of: Definition, **state: str) -> StoredExperiment:
    return StoredExperiment(
        experiment_id=of.experiment_id,
        definition=msgspec.json.encode(of).decode(),
        state={**first_state(of), "revision": "1", **state},
    )


def experiment(of: Definition, **state: str) -> Experiment:
    return experiment_of(stored(of, **state))


def running(of: Definition, **state: str) -> Running:
    return experiment(of, **state).running
