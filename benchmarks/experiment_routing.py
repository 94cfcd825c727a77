"""What 50 active experiments over 50 types cost a prediction: CPU microseconds of routing and counting one request.

    python -m benchmarks.experiment_routing

The real code, without network or Redis; CPU time of the thread, the least of several runs.
"""

import itertools
from collections.abc import Callable
from typing import Any

import structlog

from benchmarks.arguments import no_options
from benchmarks.measure import spread, thread_us
from benchmarks.results import Figure, write
from control_plane.experiments.active import ActiveExperiments, Running
from control_plane.experiments.counters import Counters
from control_plane.experiments.definition import AssignmentKind, Definition, Mode, Variant
from control_plane.experiments.design import Direction, Metric, MetricKind

EXPERIMENTS = 50
NOW_S = 1_800_000_000.0


def main() -> None:
    """Measures, prints and writes results/experiment_routing.json."""
    no_options(__doc__)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(20), logger_factory=_Silent)
    active = ActiveExperiments(Counters())
    active.replace([_running(number) for number in range(EXPERIMENTS)])
    ids = itertools.count()

    def route() -> Any:
        number = next(ids)
        return active.assign(
            model_type=f"type{number % EXPERIMENTS}",
            version="latest",
            experiment_id=None,
            routing_key=None,
            request_id=f"0198c0de-{number}",
            now_s=NOW_S,
        )

    place = route()
    stages: dict[str, tuple[str, Callable[[], Any]]] = {
        "route": ("routing: which experiment, which variant", route),
        "none": (
            "routing a type that no experiment is about",
            lambda: active.assign(
                model_type="another",
                version="latest",
                experiment_id=None,
                routing_key=None,
                request_id="r",
                now_s=NOW_S,
            ),
        ),
        "count": (
            "counting the answer",
            lambda: active.answered(place, request_id="r", latency_ms=3.2, covariate=None),
        ),
    }
    figures = [
        Figure(
            key=key,
            text=text,
            value=spread(thread_us(stage)),
            sense="<=" if key == "route" else None,
            target=20.0 if key == "route" else None,
            unit="µs",
        )
        for key, (text, stage) in stages.items()
    ]
    write("experiment_routing", what="CPU of one request with 50 experiments over 50 types", figures=figures)


def _running(number: int) -> Running:
    definition = Definition(
        experiment_id=f"experiment-{number}",
        model_type=f"type{number}",
        variants=(Variant(name="control", version="v1.0"), Variant(name="treatment", version="v1.1")),
        shares=(0.5, 0.5),
        mode=Mode.AB,
        metrics=(
            Metric(name="error", kind=MetricKind.ERROR, direction=Direction.DOWN),
            Metric(name="latency", kind=MetricKind.LATENCY, direction=Direction.DOWN),
        ),
        alpha=0.05,
        min_sample=100,
        planned_requests=10_000,
        salt=None,
        assignment=AssignmentKind.HASH,
        block_minutes=60.0,
        guardrails=(),
        steps=(),
        auto_promote=False,
        floor_share=0.05,
        epoch_minutes=10.0,
        duration_hours=24.0,
        created_at=NOW_S,
        ends_at=NOW_S + 86_400,
    )
    return Running(definition=definition, epoch=0, shares=definition.shares, ends_at=definition.ends_at)


class _Silent:
    def __init__(self, *_: object) -> None:
        self.info = self.debug = self.warning = self.msg = lambda *_, **__: None


if __name__ == "__main__":
    main()
