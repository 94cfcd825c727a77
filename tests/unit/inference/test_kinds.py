"""What each kind of model asks of Triton, and what it makes of the outputs."""

from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from scipy.special import softmax

from control_plane.errors import InvalidInput
from control_plane.inference.answers import to_json
from control_plane.inference.hybrid import HybridModel
from control_plane.inference.plans import Interpretation, Plan
from control_plane.inference.ready_made import ReadyMadeModel
from control_plane.inference.requests import PredictRequest
from control_plane.inference.rl_ensemble import RLEnsembleModel
from control_plane.models.card import ModelCard
from tests.unit.inference.cards import (
    CHANNELS,
    CLASSES,
    LENGTH,
    MEMBERS,
    SAMPLES,
    TARGETS,
    card,
    hybrid_card,
    rl_card,
    tensor,
)

ROWS = 2
NO_PLAN = Plan(inputs={}, outputs=(), rows=ROWS, lane=None, warnings=())
RANDOM = np.random.default_rng(7)


def floats(*shape: int) -> Any:
    return RANDOM.normal(size=shape).astype(np.float32)


def hybrid_outputs(rows: int = ROWS, length: int = LENGTH) -> dict[str, Any]:
    named = {
        "classification_probs": softmax(floats(rows, CLASSES), axis=-1),
        "regression_pred": floats(rows, TARGETS),
        "mc_regression": floats(rows, SAMPLES, TARGETS),
        "mc_probs": softmax(floats(rows, SAMPLES, CLASSES), axis=-1),
        "member_probs": softmax(floats(rows, MEMBERS, CLASSES), axis=-1),
        "member_regression": floats(rows, MEMBERS, TARGETS),
        "ensemble_weights": np.full((rows, MEMBERS), 1 / MEMBERS, dtype=np.float32),
        "attention_weights": floats(rows, length),
    }
    return {f"{name}__{index}": array for index, (name, array) in enumerate(named.items())}


def request(
    model_type: str = "cnn_lstm_hybrid", *, rows: int = ROWS, length: int = LENGTH, **options: Any
) -> Any:
    fields = {"model_type": model_type, "data": floats(rows, CHANNELS, length).tolist()} | options
    return PredictRequest(**fields)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"return_uncertainty": False, "use_ensemble": False}, {0, 1}),
        ({"return_uncertainty": True, "use_ensemble": False}, {0, 1, 2, 3}),
        ({"return_uncertainty": False}, {0, 1, 4, 5, 6}),
        ({}, {0, 1, 2, 3, 4, 5, 6}),
        ({"return_attention": True}, {0, 1, 2, 3, 4, 5, 6, 7}),
    ],
)
def test_hybrid_asks_for_the_needed_outputs_only(options: dict[str, bool], asked: set[int]) -> None:
    plan = HybridModel(hybrid_card()).plan(request(**options), max_rows=10)
    assert {int(name.rpartition("__")[2]) for name in plan.outputs} == asked
    assert list(plan.inputs) == ["x__0"]
    assert plan.rows == ROWS


def test_hybrid_merges_only_equal_lengths_and_outputs() -> None:
    model = HybridModel(hybrid_card())
    lanes = [
        model.plan(request(**options), max_rows=10).lane
        for options in ({}, {"rows": 1}, {"priority": 1}, {"length": 3}, {"use_ensemble": False})
    ]
    assert lanes[0] == lanes[1] == lanes[2]
    assert len({lanes[0], lanes[3], lanes[4]}) == 3


def test_hybrid_answers_with_the_ensemble_and_its_uncertainty() -> None:
    outputs = hybrid_outputs()
    meaning = HybridModel(hybrid_card()).interpret(request(interval=0.8), NO_PLAN, outputs)
    predictions, uncertainty = meaning.predictions, meaning.uncertainty
    assert uncertainty is not None
    np.testing.assert_array_equal(
        predictions["base_classification_probs"], outputs["classification_probs__0"]
    )
    np.testing.assert_array_equal(predictions["base_regression_pred"], outputs["regression_pred__1"])
    np.testing.assert_array_equal(
        predictions["classification_probs"], predictions["ensemble_classification_probs"]
    )
    np.testing.assert_allclose(
        predictions["regression_pred"], outputs["member_regression__5"].mean(axis=1), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(
        predictions["classification_pred"], predictions["classification_probs"].argmax(axis=1)
    )
    np.testing.assert_array_equal(meaning.confidence_scores, predictions["classification_probs"].max(axis=1))
    assert set(uncertainty) == {
        "regression_uncertainty", "ensemble_weights", "interval", "entropy", "aleatoric", "epistemic",
    }  # fmt: skip
    assert uncertainty["ensemble_weights"].shape == (MEMBERS,)
    interval = uncertainty["interval"]
    assert (interval["level"], interval["method"], interval["calibrated"]) == (0.8, "mc", False)
    shift = predictions["regression_pred"] - outputs["mc_regression__2"].mean(axis=1)
    np.testing.assert_allclose(
        interval["upper"], np.quantile(outputs["mc_regression__2"], 0.9, axis=1) + shift, rtol=1e-4, atol=1e-5
    )
    assert (interval["lower"] < interval["upper"]).all()


def test_hybrid_answers_with_the_base_heads_without_ensemble() -> None:
    outputs = hybrid_outputs()
    options = {"use_ensemble": False, "return_attention": True}
    meaning = HybridModel(hybrid_card()).interpret(request(**options), NO_PLAN, outputs)
    assert set(meaning.predictions) == {
        "classification_probs", "classification_pred", "regression_pred", "attention_weights",
    }  # fmt: skip
    np.testing.assert_array_equal(meaning.predictions["regression_pred"], outputs["regression_pred__1"])
    assert meaning.uncertainty is not None
    assert meaning.uncertainty["ensemble_weights"] is None


def test_hybrid_uncertainty_is_null_when_not_asked() -> None:
    assert (
        HybridModel(hybrid_card())
        .interpret(request(return_uncertainty=False), NO_PLAN, hybrid_outputs())
        .uncertainty
        is None
    )


def test_hybrid_without_further_outputs_serves_the_base_and_says_so() -> None:
    reduced = hybrid_card(outputs=hybrid_card().outputs[:2])
    model = HybridModel(reduced)
    asked = request(return_attention=True, seed=1)
    plan = model.plan(asked, max_rows=10)
    assert len(plan.outputs) == 2
    assert len(plan.warnings) == 4
    meaning = model.interpret(asked, NO_PLAN, hybrid_outputs())
    assert meaning.uncertainty is None
    assert "base_regression_pred" not in meaning.predictions


def test_hybrid_warns_of_numbers_that_json_cannot_hold() -> None:
    outputs = hybrid_outputs()
    outputs["member_regression__5"] = np.full((ROWS, MEMBERS, TARGETS), np.nan, dtype=np.float32)
    meaning = HybridModel(hybrid_card()).interpret(request(), NO_PLAN, outputs)
    assert any("regression_pred" in warning for warning in meaning.warnings)


def rl_outputs(rows: int = ROWS) -> dict[str, Any]:
    return {
        "action_probs": np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=np.float32)[:rows],
        "value": floats(rows, 1),
        "agent_action_probs": np.array(
            [[[0.6, 0.2, 0.2], [0.2, 0.7, 0.1]], [[0, 0, 1], [0, 0, 1]]], np.float32
        )[:rows],
        "agent_values": floats(rows, 2),
    }


def interpret_rl(asked: Any, outputs: Any, card: ModelCard | None = None) -> Interpretation:
    model = RLEnsembleModel(card or rl_card())
    return model.interpret(asked, model.plan(asked, max_rows=20_000), outputs)


def rl_request(**options: Any) -> Any:
    return PredictRequest(model_type="rl_ensemble", data=floats(ROWS, CHANNELS).tolist(), **options)


@pytest.mark.parametrize(
    ("weights", "sent"),
    [
        (None, [0.5, 0.5]),
        ([0.75, 0.25], [0.75, 0.25]),
        ({"dqn": 1.0, "ppo": 0.0}, [0.0, 1.0]),
        ([0.3333, 0.666], [0.333533, 0.666467]),
    ],
)
def test_rl_sends_normalised_weights_with_every_row(weights: Any, sent: list[float]) -> None:
    plan = RLEnsembleModel(rl_card()).plan(rl_request(weights=weights), max_rows=10)
    np.testing.assert_allclose(plan.inputs["weights"], [sent] * ROWS, rtol=1e-5)
    assert plan.inputs["weights"].dtype == np.float32
    assert "agent_actions" not in plan.outputs


@pytest.mark.parametrize(
    "weights", [[], [1.0], [0.0, 0.0], [3.0, 1.0], [1e308, 1e308], {"ppo": 1.0}, {"ppo": 0.5, "sac": 0.5}]
)
def test_rl_refuses_weights_that_fit_no_agents(weights: Any) -> None:
    with pytest.raises(InvalidInput, match="weights"):
        RLEnsembleModel(rl_card()).plan(rl_request(weights=weights), max_rows=10)


def test_rl_answers_with_action_agents_and_agreement() -> None:
    outputs = rl_outputs()
    meaning = interpret_rl(rl_request(weights=[0.75, 0.25]), outputs)
    predictions = meaning.predictions
    assert predictions["action"].tolist() == [0, 2]
    assert predictions["propensity"].tolist() == [1.0, 1.0]
    assert list(predictions["agents"]) == ["ppo", "dqn"]
    np.testing.assert_array_equal(predictions["agents"]["dqn"]["value"], outputs["agent_values"][:, 1])
    np.testing.assert_allclose(
        predictions["agents"]["dqn"]["action_probs"], outputs["agent_action_probs"][:, 1]
    )
    np.testing.assert_array_equal(predictions["values"], outputs["value"])
    assert meaning.uncertainty is not None
    np.testing.assert_allclose(meaning.uncertainty["ensemble_weights"], [0.75, 0.25])
    np.testing.assert_allclose(meaning.uncertainty["agreement"], [0.75, 1.0])
    entropies = -(outputs["action_probs"] * np.log(outputs["action_probs"])).sum(axis=1) / np.log(3)
    np.testing.assert_allclose(meaning.confidence_scores, (1 - entropies) * [0.75, 1.0], rtol=1e-5)
    without = interpret_rl(rl_request(return_uncertainty=False), outputs)
    assert without.uncertainty is None


def test_rl_sampling_follows_the_mixture_and_the_seed() -> None:
    rows = 20_000
    probs = np.tile(np.array([[0.5, 0.3, 0.2]], dtype=np.float32), (rows, 1))
    outputs = {
        "action_probs": probs,
        "value": floats(rows, 1),
        "agent_action_probs": np.stack([probs, probs], axis=1),
        "agent_values": floats(rows, 2),
    }
    once, again = (interpret_rl(rl_request(action_selection="sample", seed=3), outputs) for _ in range(2))
    actions, propensity = once.predictions["action"], once.predictions["propensity"]
    np.testing.assert_array_equal(actions, again.predictions["action"])
    np.testing.assert_allclose(np.bincount(actions) / rows, [0.5, 0.3, 0.2], atol=0.015)
    np.testing.assert_allclose(propensity, probs[np.arange(rows), actions], rtol=1e-6)


def test_rl_agents_without_names_are_numbered() -> None:
    meaning = interpret_rl(rl_request(), rl_outputs(), rl_card(config={}))
    assert list(meaning.predictions["agents"]) == ["agent_0", "agent_1"]


def test_ready_made_gives_outputs_by_name() -> None:
    outputs = (tensor("a", (2,), triton_name="a__0"), tensor("b", (1,), "INT64", triton_name="b__1"))
    model = ReadyMadeModel(card("mine", outputs=outputs))
    asked = PredictRequest(model_type="mine", data=msgspec.Raw(b"[[1, 2, 3, 4]]"), weights=[1.0])
    plan = model.plan(asked, max_rows=10)
    assert plan.outputs == ("a__0", "b__1")
    assert "weights" in plan.warnings[0]
    meaning = model.interpret(
        asked, NO_PLAN, {"a__0": np.array([[1, np.inf]], np.float32), "b__1": np.array([[7]])}
    )
    assert meaning.predictions["b"].tolist() == [[7]]
    assert meaning.uncertainty is None
    assert meaning.confidence_scores is None
    assert "a holds NaN" in meaning.warnings[0]


@pytest.mark.parametrize("name", ["mc_regression", "mc_probs", "member_probs", "classification_probs"])
def test_hybrid_row_without_finite_probabilities_has_no_class(name: str) -> None:
    outputs = hybrid_outputs()
    (key,) = (key for key in outputs if key.startswith(name))
    outputs[key][0] = np.nan
    ensemble = HybridModel(hybrid_card()).interpret(request(), NO_PLAN, outputs).predictions
    base = HybridModel(hybrid_card()).interpret(request(use_ensemble=False), NO_PLAN, outputs).predictions
    for predictions, spoiled in ((ensemble, "member_probs"), (base, "classification_probs")):
        answered = orjson.loads(to_json(predictions))
        expected = predictions["classification_probs"].argmax(axis=1).tolist()
        assert answered["classification_pred"] == ([None, expected[1]] if name == spoiled else expected)


@pytest.mark.parametrize("selection", ["greedy", "sample"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rl_row_without_finite_probabilities_has_no_action(selection: str, value: float) -> None:
    outputs = rl_outputs()
    asked = rl_request(action_selection=selection, seed=5)
    usual = interpret_rl(asked, outputs).predictions
    outputs["action_probs"][0, 1] = value
    outputs["agent_action_probs"][0, 0, 1] = value
    meaning = interpret_rl(asked, outputs)
    answered = orjson.loads(to_json(meaning.predictions))
    assert answered["action"] == [None, int(usual["action"][1])]
    assert answered["propensity"] == [None, pytest.approx(usual["propensity"][1])]
    assert meaning.uncertainty is not None
    assert np.isnan(meaning.uncertainty["agreement"]).tolist() == [True, False]
    assert meaning.confidence_scores is not None
    assert np.isnan(meaning.confidence_scores).tolist() == [True, False]
    assert any("action_probs" in warning for warning in meaning.warnings)
    assert meaning.decision is not None
    assert meaning.decision.actions.dtype.kind == "i"
