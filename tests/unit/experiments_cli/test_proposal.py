"""A new experiment from a file and from options."""

from pathlib import Path
from typing import Any

import pytest

from control_plane.api.schemas.experiments import ExperimentBody
from control_plane.experiments_cli.proposal import ProposalError, ProposalOptions, body_of, read_document

OPTIONS = ProposalOptions(
    experiment_id="e-1",
    model_type="tried",
    variants=("control=v1.0", "new=v1.1"),
    metrics=("filled:rate:up",),
    guardrails=("latency:max_ratio:1.2", "error:max_difference:0.01"),
    fields=(("mode", "canary"), ("duration_hours", 2.0), ("alpha", None)),
)


def test_options_make_what_the_api_takes() -> None:
    body = body_of({}, OPTIONS)
    assert body == {
        "experiment_id": "e-1",
        "model_variants": {
            "control": {"model_type": "tried", "version": "v1.0"},
            "new": {"model_type": "tried", "version": "v1.1"},
        },
        "traffic_split": {"control": 0.5, "new": 0.5},
        "metrics": [{"name": "filled", "kind": "rate", "direction": "up"}],
        "guardrails": [
            {"metric": "latency", "max_ratio": 1.2},
            {"metric": "error", "max_difference": 0.01},
        ],
        "mode": "canary",
        "duration_hours": 2.0,
    }
    ExperimentBody.model_validate(body)


def test_options_go_before_the_file() -> None:
    document = body_of({}, OPTIONS)
    body = body_of(document, ProposalOptions(experiment_id="e-2", shares=("control=0.9", "new=0.1")))
    assert body == document | {"experiment_id": "e-2", "traffic_split": {"control": 0.9, "new": 0.1}}
    assert body_of(document, ProposalOptions()) == document


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"experiment_id": "e"},
        {"experiment_id": "e", "variants": ("a=v1",)},
        {"experiment_id": "e", "variants": ("a",), "model_type": "t"},
        {"experiment_id": "e", "variants": ("a=",), "model_type": "t"},
        {"experiment_id": "e", "variants": ("a=1", "b=2"), "model_type": "t", "shares": ("a=x",)},
        {"experiment_id": "e", "variants": ("a=1", "b=2"), "model_type": "t", "metrics": ("a:rate",)},
        {"experiment_id": "e", "variants": ("a=1", "b=2"), "model_type": "t", "guardrails": ("a:most:1",)},
    ],
)
def test_what_is_missing_or_unreadable_is_told(options: dict[str, Any]) -> None:
    with pytest.raises(ProposalError):
        body_of({}, ProposalOptions(**options))


@pytest.mark.parametrize("text", [None, "{", "[]", "[" * 100_000])
def test_file_that_holds_no_object_is_told(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "experiment.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ProposalError, match=r"experiment\.json"):
        read_document(path)
