"""What may be written into a card's `serving`, and what is said about it."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError

from control_plane.api.schemas.serving import ServingBody, serving_answer
from control_plane.errors import InvalidInput
from control_plane.models.aliases import Aliases
from control_plane.models.card import ResponseCacheOptions, ServingOptions, Tuning, read_card
from control_plane.models.registry import ModelRegistry
from control_plane.models.serving import checked_serving, state_of, users_of
from control_plane.settings import RedisSettings
from control_plane.store.redis import open_store
from tests.unit.inference.cards import card, hybrid_card, tensor
from tests.unit.inference.data_plane import register

TUNING = Tuning(
    rows_per_call=8, calls_in_flight=2, objective_p95_ms=50, p95_ms=40, rows_per_s=100,
    measured_at="2026-01-02T03:04:05Z",
)  # fmt: skip


async def registry_of(repository: Path, *cards: Any) -> ModelRegistry:
    for one in cards:
        register(repository, one)
    async with open_store(RedisSettings()) as store:
        registry = ModelRegistry(repository, Aliases(store))
        await registry.refresh()
        return registry


def falling_back(to: str) -> ServingOptions:
    return ServingOptions(fallback=to)


async def test_fallback_is_written_by_its_registered_name(tmp_path: Path) -> None:
    registry = await registry_of(tmp_path, hybrid_card("v1.0"), hybrid_card("v1.1"))
    model = registry.resolve("cnn_lstm_hybrid", "v1.1")
    assert checked_serving(falling_back("1.0"), model, registry).fallback == "v1.0"
    assert checked_serving(ServingOptions(), model, registry).fallback is None


@pytest.mark.parametrize(
    ("fallback", "fault"),
    [
        ("v9", "no registered version"),
        ("latest", "no registered version"),
        ("v2", "the version itself"),
        ("2", "the version itself"),
        ("narrow", r"x as FP32 \[3, -1\] instead of FP32 \[4, -1\]"),
        ("short", "at most 5 steps"),
        ("other", "takes the inputs x, z instead of x"),
        ("flat", r"x as FP32 \[4\]"),
        ("fixed", r"x as FP32 \[4, 6\]"),
        ("double", "x as FP64"),
        ("back", r"falls back to v2 again \(back → between → v2\)"),
    ],
)
async def test_unfit_fallback_is_refused(tmp_path: Path, fallback: str, fault: str) -> None:
    registry = await registry_of(
        tmp_path,
        hybrid_card("v2"),
        hybrid_card("narrow", inputs=(tensor("x", (3, -1)),)),
        hybrid_card("short", config={"input_dim": 4, "sequence_length": 5}),
        hybrid_card("other", inputs=(tensor("x", (4, -1)), tensor("z", (1,)))),
        hybrid_card("flat", inputs=(tensor("x", (4,)),)),
        hybrid_card("fixed", inputs=(tensor("x", (4, 6)),)),
        hybrid_card("double", inputs=(tensor("x", (4, -1), "FP64"),)),
        hybrid_card("between", serving=falling_back("v2")),
        hybrid_card("back", serving=falling_back("between")),
    )
    model = registry.resolve("cnn_lstm_hybrid", "v2")
    with pytest.raises(InvalidInput, match=fault) as raised:
        checked_serving(falling_back(fallback), model, registry)
    assert raised.value.errors[0].path == "fallback"


async def test_chain_of_fallbacks_that_others_closed_is_no_endless_one(tmp_path: Path) -> None:
    circle = [card("m", "a", serving=falling_back("b")), card("m", "b", serving=falling_back("a"))]
    registry = await registry_of(tmp_path, card("m", "c"), *circle)
    assert checked_serving(falling_back("a"), registry.resolve("m", "c"), registry).fallback == "a"


async def test_warnings_name_what_cannot_work(tmp_path: Path) -> None:
    kept, stale = ResponseCacheOptions(ttl_s=1), ResponseCacheOptions(ttl_s=1, stale_for_s=1)
    registry = await registry_of(
        tmp_path,
        card("m", "bare", serving=ServingOptions(on_overload="degrade")),
        card("m", "fresh", serving=ServingOptions(on_overload="degrade", response_cache=kept)),
        card("m", "stale", serving=ServingOptions(on_overload="degrade", response_cache=stale)),
        card("m", "lower", serving=ServingOptions(on_overload="degrade", fallback="bare")),
        card("m", "lost", serving=falling_back("gone")),
        card("m", "unlike", serving=falling_back("wide")),
        card("m", "wide", inputs=(tensor("x", (5,)),)),
    )

    def warnings(version: str) -> str:
        return " ".join(state_of(registry.resolve("m", version), registry).warnings)

    assert "neither a fallback nor a response_cache with stale_for_s" in warnings("bare")
    assert "neither" in warnings("fresh")
    assert warnings("stale") == warnings("lower") == warnings("wide") == ""
    assert "gone isn't registered any more" in warnings("lost")
    assert "wide takes x as FP32 [5] instead of FP32 [4]" in warnings("unlike")


async def test_users_are_the_versions_that_fall_back_to_it(tmp_path: Path) -> None:
    registry = await registry_of(
        tmp_path, card("m", "v1"), card("m", "v2", serving=falling_back("1")), card("other", "v1")
    )
    assert users_of(registry.resolve("m", "v1"), registry) == ("v2",)
    assert users_of(registry.resolve("m", "v2"), registry) == ()
    assert users_of(registry.resolve("other", "v1"), registry) == ()


def test_body_holds_what_the_card_holds_and_reads_back(tmp_path: Path) -> None:
    serving = ServingOptions(
        on_overload="degrade",
        fallback="v1",
        response_cache=ResponseCacheOptions(ttl_s=1.5, max_bytes=2048, stale_for_s=3),
        tuning=TUNING,
    )
    shown = serving_answer(serving).model_dump()
    body = ServingBody.model_validate(shown)
    assert msgspec.structs.replace(body.options(), tuning=body.given_tuning()) == serving
    register(tmp_path, card("m", serving=body.options()))
    assert read_card(tmp_path / "m-v1.0").serving == body.options()
    assert shown.keys() == set(ServingOptions.__struct_fields__)
    assert shown["response_cache"].keys() == set(ResponseCacheOptions.__struct_fields__)
    assert ServingBody().options() == ServingOptions()
    assert ServingBody().given_tuning() is msgspec.UNSET
    assert ServingBody(tuning=None).given_tuning() is None
    with pytest.raises(InvalidInput):
        ServingBody(tuning={"rows_per_call": 8}).given_tuning()


@pytest.mark.parametrize(
    "body",
    [
        {"cache": {}},
        {"on_overload": "queue"},
        {"fallback": ""},
        {"fallback": 1},
        {"response_cache": {}},
        {"response_cache": {"ttl_s": 0}},
        {"response_cache": {"ttl_s": float("nan")}},
        {"response_cache": {"ttl_s": 86_401}},
        {"response_cache": {"ttl_s": "5"}},
        {"response_cache": {"ttl_s": 1, "max_bytes": 1023}},
        {"response_cache": {"ttl_s": 1, "max_bytes": 2**70}},
        {"response_cache": {"ttl_s": 1, "stale_for_s": -1}},
        {"response_cache": {"ttl_s": 1, "stale_s": 1}},
        {"response_cache": True},
    ],
)
def test_wrong_body_is_refused(body: Any) -> None:
    with pytest.raises(ValidationError):
        ServingBody.model_validate(body)
