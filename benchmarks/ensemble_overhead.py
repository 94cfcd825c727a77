"""What learning costs a prediction of an `rl_ensemble` in the API process: CPU microseconds for one request.

    python -m benchmarks.ensemble_overhead

Choosing the weights, drawing the action and noting the decision happen before the answer; encoding what is noted
happens after it, in batches. CPU time of the thread, the least of several runs; no network, no Redis.
"""

import argparse
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np

from benchmarks.measure import spread as spread_of
from benchmarks.measure import thread_us
from benchmarks.results import Figure, write
from control_plane.ensembles.recorder import DecisionRecorder
from control_plane.ensembles.records import record_of, to_text
from control_plane.ensembles.weights import LearnedWeights
from control_plane.inference.decisions import Decision
from control_plane.inference.rl_ensemble import greedy, sample
from control_plane.models.card import ModelCard
from control_plane.settings import EnsemblesSettings, FeedbackSettings

AGENTS, ACTIONS = 5, 3


def main() -> None:
    """Measures, prints and writes results/ensemble_overhead.json."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    card = ensemble_card()
    store = SimpleNamespace(is_up=True, on_learned=lambda _: None)
    weights = LearnedWeights(cast("Any", store), cast("Any", None), EnsemblesSettings())
    recorder = DecisionRecorder(cast("Any", store), FeedbackSettings(max_waiting=10_000_000))
    random = np.random.default_rng(1)
    probs = random.dirichlet(np.ones(ACTIONS), size=(1, AGENTS)).astype(np.float32)
    current = weights.current(card).weights
    mixture = np.einsum("a,bak->bk", current, probs)
    actions, propensity = sample(mixture, None)
    decision = Decision(
        agent_probs=probs, weights=current, actions=actions, propensity=propensity, is_sampled=True
    )
    record = record_of(card, decision, time_s=time.time())
    stages: dict[str, tuple[str, Callable[[], Any]]] = {
        "choose": (
            "choosing the weights, as a tensor of one row",
            lambda: weights.current(card).weights[None],
        ),
        "greedy": ("the most probable action", lambda: greedy(mixture)),
        "sample": ("an action drawn, with its propensity", lambda: sample(mixture, None)),
        "note": ("noting the decision", lambda: recorder.note("0198c0de-id", card, decision)),
        "encode": ("after the answer: encoding what was noted", lambda: to_text(record)),
    }
    spread = {key: thread_us(stage) for key, (_, stage) in stages.items()}
    before = [
        sum(parts) for parts in zip(*(spread[key] for key in ("choose", "sample", "note")), strict=True)
    ]
    figures = [
        Figure(
            key="before_answer",
            text="choosing weights, drawing and noting, before the answer",
            value=spread_of(before),
            sense="<=",
            target=30.0,
            unit="µs",
        ),
        *(
            Figure(key=key, text=text, value=spread_of(spread[key]), unit="µs")
            for key, (text, _) in stages.items()
        ),
    ]
    write("ensemble_overhead", what="CPU of learning for one request of five agents", figures=figures)


def ensemble_card() -> ModelCard:
    """The card of an ensemble of five agents."""
    names = ("ppo", "a2c", "sac", "td3", "dqn")
    return msgspec.convert(
        {
            "schema_version": 1, "model_type": "rl_ensemble", "version": "v1.0",
            "triton_model": "rl_ensemble-v1.0", "description": "", "format": "onnx",
            "created_at": "2026-01-02T03:04:05Z", "source": {"file_name": "a", "sha256": "", "size_bytes": 1},
            "content_digest": "00", "inputs": [], "outputs": [], "max_batch_size": 64, "device": "cpu",
            "instance_count": 1, "config": {"agents": [{"name": name} for name in names]},
            "normalization": None, "mc_dropout": None, "class_names": ("sell", "hold", "buy"),
            "feature_names": None, "metrics": {}, "calibration": None, "checksums": {}, "size_bytes": 1,
            "verification": {}, "versions": {}, "warnings": [],
        },
        ModelCard,
    )  # fmt: skip


if __name__ == "__main__":
    main()
