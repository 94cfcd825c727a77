"""The peers answer what we answer, and the check that says so sees a difference."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers import answer as peers_answer
from benchmarks.peers.catalog import IN_PROCESS, PEERS
from benchmarks.peers.environments import versions
from benchmarks.peers.running import differences
from control_plane.inference.answers import PredictAnswer, timestamp_now, to_json
from control_plane.inference.hybrid import HybridModel
from control_plane.inference.plans import Plan
from control_plane.inference.requests import decode_predict
from tests.unit.inference.cards import hybrid_card

CARD = hybrid_card()


def outputs_of(rows: int, seed: int) -> dict[str, Any]:
    """Outputs by their names in the card."""
    random = np.random.default_rng(seed)
    arrays = {}
    for tensor in CARD.outputs:
        array = random.random((rows, *(abs(length) for length in tensor.shape))) + 0.01
        if "probs" in tensor.name or "weights" in tensor.name:
            array /= array.sum(axis=-1, keepdims=True)
        arrays[tensor.name] = array.astype(np.float32)
    return arrays


def our_answer(outputs: dict[str, Any]) -> dict[str, Any]:
    request = decode_predict(orjson.dumps({"model_type": "cnn_lstm_hybrid", "data": [[[0.0]]]}))
    plan = Plan(inputs={}, outputs=(), rows=1, lane=None, warnings=())
    by_triton_name = {tensor.triton_name: outputs[tensor.name] for tensor in CARD.outputs}
    read = HybridModel(CARD).interpret(request, plan, by_triton_name)
    return orjson.loads(
        to_json(
            PredictAnswer(
                request_id="a",
                model_type="cnn_lstm_hybrid",
                model_version="v1.0",
                predictions=read.predictions,
                uncertainty=read.uncertainty,
                confidence_scores=read.confidence_scores,
                processing_time_ms=1.0,
                timestamp=timestamp_now(),
                ab_test_group=None,
                warnings=read.warnings,
            )
        )
    )


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_peers_answer_from_a_merged_call_is_ours_for_each_request(sizes: list[int], seed: int) -> None:
    outputs = outputs_of(sum(sizes), seed)
    merged = list(peers_answer.rows_of(peers_answer.fields_of(outputs), sizes))
    start = 0
    for size, fields in zip(sizes, merged, strict=True):
        ours = our_answer({name: value[start : start + size] for name, value in outputs.items()})
        start += size
        theirs = orjson.loads(
            orjson.dumps(peers_answer.answer(fields, 0.0), option=orjson.OPT_SERIALIZE_NUMPY)
        )
        assert differences(ours, theirs) == []
        theirs = orjson.loads(orjson.dumps(peers_answer.answer(peers_answer.lists(fields), 0.0)))
        assert differences(ours, theirs) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "where"),
    [
        ({"a": [1.0]}, {"a": [1.001]}, "answer.a[0]"),
        ({"a": [1.0]}, {"a": [1.0, 2.0]}, "answer.a"),
        ({"a": 1}, {}, "answer.a"),
        ({}, {"a": None}, "answer.a"),
        ({"a": False}, {"a": 0}, "answer.a"),
        ({"a": None}, {"a": 0.0}, "answer.a"),
        ({"a": {"b": "x"}}, {"a": {"b": "y"}}, "answer.a.b"),
    ],
)
def test_differences_names_the_field_that_differs(ours: Any, theirs: Any, where: str) -> None:
    assert [text.partition(":")[0] for text in differences(ours, theirs)] == [where]


def test_differences_passes_over_identifiers_and_rounding() -> None:
    ours = {"request_id": "a", "timestamp": "b", "processing_time_ms": 1.0, "x": [0.1, 2]}
    theirs = {"request_id": "c", "timestamp": "d", "processing_time_ms": 9.0, "x": [0.1000004, 2.0]}
    assert differences(ours, theirs) == []


def test_all_peers_run_the_same_onnx_runtime_and_pin_everything_they_name() -> None:
    runtimes = set()
    for peer in (IN_PROCESS, *PEERS):
        lines = [line for line in peer.requirements.read_text().splitlines() if line.strip()]
        assert len(versions(peer)) == len(lines)
        runtimes.add(next(line for line in versions(peer) if line.startswith("onnxruntime==")))
    assert len(runtimes) == 1
