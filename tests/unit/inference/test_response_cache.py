"""The response cache: what it keeps, for how long, in how much memory, and what it never mixes up."""

import asyncio
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from control_plane.errors import InferenceFailed, UnknownModel
from control_plane.inference.open_inference import InferRequest, WireTensor
from control_plane.inference.open_inference_answers import encode_infer
from control_plane.inference.plans import Plan
from control_plane.inference.requests import PredictRequest
from control_plane.inference.response_cache import ResponseCache
from control_plane.models.card import ResponseCacheOptions, ServingOptions
from tests.unit.inference.cards import CHANNELS, LENGTH, card, hybrid_card, rl_card
from tests.unit.inference.data_plane import DataPlane, data_plane, register
from tests.unit.inference.virtual_time import now, run

SECRET = bytes(range(32))
KEPT = ServingOptions(response_cache=ResponseCacheOptions(ttl_s=10, stale_for_s=20))


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def cache(
    clock: Callable[[], float] | None = None, *, secret: bytes = SECRET, **options: Any
) -> ResponseCache:
    bounds = ResponseCacheOptions(**({"ttl_s": 10.0, "stale_for_s": 20.0} | options))
    return ResponseCache(bounds, model="m-v1", secret=secret, clock=clock or Clock())


def plan(outputs: tuple[str, ...] = ("y",), **inputs: Any) -> Plan:
    rows = len(next(iter(inputs.values())))
    return Plan(inputs=inputs, outputs=outputs, rows=rows, lane=0, warnings=())


def key(of: ResponseCache, call: Plan) -> bytes:
    return asyncio.run(of.key_of(call))


def named(number: int) -> bytes:
    return number.to_bytes(24, "little")


def numbers(size: int, fill: float = 0.0) -> Any:
    return np.full(size, fill, np.float32)


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "stale", "wait", "sweep"]),
        st.integers(0, 5),
        st.sampled_from([1, 40, 200, 900]),
        st.floats(0, 15),
    ),
    max_size=60,
)


@given(steps=steps, max_bytes=st.sampled_from([1024, 3000, 8000]))
def test_bytes_and_times_hold_whatever_comes(
    steps: Sequence[tuple[str, int, int, float]], max_bytes: int
) -> None:
    clock = Clock()
    kept = cache(clock, max_bytes=max_bytes)
    model: dict[int, tuple[float, float]] = {}  # when it was put, and what
    for number, (action, name, size, wait_s) in enumerate(steps):
        if action == "put":
            kept.put(named(name), {"y": numbers(size, number)})
            model[name] = (clock.now_s, number)
        elif action == "wait":
            clock.now_s += wait_s
        elif action == "sweep":
            kept.sweep()
        else:
            found = kept.get(named(name)) if action == "get" else kept.get_stale(named(name))
            if found is not None:
                put_at, fill = model[name]
                assert found.age_s == clock.now_s - put_at < (10 if action == "get" else 30)
                assert (found.arrays["y"] == fill).all()  # the last that was put, or nothing
        assert kept.size_bytes <= max_bytes


def test_kept_outputs_are_fresh_then_stale_then_gone() -> None:
    clock = Clock()
    kept = cache(clock)
    kept.put(b"k", {"y": numbers(3)})
    clock.now_s += 9.999
    assert kept.get(b"k") is not None
    clock.now_s += 0.001
    assert kept.get(b"k") is None
    stale = kept.get_stale(b"k")
    assert stale is not None
    assert stale.age_s == pytest.approx(10.0)
    clock.now_s += 20
    assert kept.get_stale(b"k") is None
    kept.sweep()
    assert kept.size_bytes == 0


def test_least_recently_used_leave_first_and_too_large_ones_never_enter() -> None:
    kept = cache(max_bytes=5000)
    for number in range(3):
        kept.put(named(number), {"y": numbers(100)})
    assert kept.get(named(0)) is not None
    kept.put(named(3), {"y": numbers(100)})
    assert [kept.get(named(number)) is not None for number in range(4)] == [True, False, True, True]
    kept.put(named(4), {"y": numbers(2000)})
    assert kept.get(named(4)) is None
    assert kept.get(named(0)) is not None


arrays = hnp.arrays(
    dtype=st.sampled_from(["<f4", "<f8", "<f2", "<i4", "<i8", "|u1", "|b1"]),
    shape=hnp.array_shapes(min_dims=1, max_dims=3, max_side=3),
    elements=st.integers(0, 1),
)
plans = st.builds(
    lambda inputs, outputs: plan(tuple(outputs), **inputs),
    st.dictionaries(st.sampled_from(["x", "w", "x_w"]), arrays, min_size=1, max_size=2),
    st.lists(st.sampled_from(["y", "z", "y,z"]), min_size=1, max_size=2, unique=True),
)


def described(call: Plan) -> Any:
    return call.outputs, [
        (name, array.dtype.str, array.shape, array.tobytes()) for name, array in call.inputs.items()
    ]


@given(plans, plans)
def test_keys_are_equal_only_for_the_same_names_datatypes_shapes_and_bytes(one: Plan, other: Plan) -> None:
    kept = cache()
    assert (key(kept, one) == key(kept, other)) is (described(one) == described(other))


def test_key_is_of_the_numbers_and_not_of_where_they_lie() -> None:
    kept = cache()
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert key(kept, plan(x=array[:, :, ::2])) == key(kept, plan(x=np.ascontiguousarray(array[:, :, ::2])))
    assert key(kept, plan(x=array.T)) == key(kept, plan(x=array.T.copy()))
    assert key(kept, plan(x=array)) != key(cache(secret=bytes(32)), plan(x=array))
    long = np.zeros((3, 50_000), dtype=np.float32)  # hashed in a thread
    assert key(kept, plan(x=long)) == key(kept, plan(x=long.copy()))
    assert key(kept, plan(x=long)) != key(kept, plan(x=long.T))


def test_kept_outputs_are_copies_that_nobody_can_change() -> None:
    merged = bytes(np.arange(1_000_000, dtype=np.float32).data)
    view = np.frombuffer(merged, np.float32)[10:13]
    kept = cache()
    kept.put(b"k", {"y": view})
    found = kept.get(b"k")
    assert found is not None
    array = found.arrays["y"]
    assert array.tobytes() == view.tobytes()
    assert array.base is None
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_size_is_no_less_than_what_is_taken() -> None:
    outputs = {name: numbers(3) for name in ("a", "b", "c", "d")}
    kept = cache(max_bytes=2**30)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(2000):
            kept.put(named(number), outputs)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken <= kept.size_bytes <= 2.5 * taken


def test_closed_cache_keeps_nothing() -> None:
    kept = cache()
    kept.put(b"k", {"y": numbers(3)})
    kept.close()
    kept.put(b"k", {"y": numbers(3)})
    assert kept.get_stale(b"k") is None
    assert kept.size_bytes == 0


def hybrid_request(seed: int = 0, **options: Any) -> Any:
    data = np.random.default_rng(seed).normal(size=(2, CHANNELS, LENGTH)).tolist()
    return PredictRequest(model_type="cnn_lstm_hybrid", data=data, **options)


async def ask(plane: DataPlane, request: Any) -> Any:
    return await plane.predictor.predict(request, received=now())


def test_hit_answers_the_same_without_triton_and_without_a_loaded_version(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with data_plane(tmp_path, cards=[hybrid_card(serving=KEPT)]) as plane:
            first = await ask(plane, hybrid_request())
            plane.cache.loaded.clear()
            again = await ask(plane, hybrid_request())
            assert (first.cached, again.cached) == (False, True)
            assert len(plane.triton.calls) == len(plane.cache.loads) == 1
            for name, array in first.predictions.items():
                assert again.predictions[name].tobytes() == array.tobytes()
            wide = await ask(plane, hybrid_request(interval=0.5, batch_size=1, timeout_ms=1.0))
            assert wide.cached
            assert wide.uncertainty["interval"]["level"] == 0.5
            assert (wide.uncertainty["interval"]["lower"] >= first.uncertainty["interval"]["lower"]).all()
            for other in (hybrid_request(seed=1), hybrid_request(return_attention=True)):
                assert not (await ask(plane, other)).cached
            await asyncio.sleep(10)
            assert not (await ask(plane, hybrid_request())).cached

    run(scenario())


def test_weights_have_entries_of_their_own_and_draws_stay_random(tmp_path: Path) -> None:
    def request(**options: Any) -> Any:
        return PredictRequest(model_type="rl_ensemble", data=[[0.1] * CHANNELS] * 64, **options)

    async def scenario() -> None:
        async with data_plane(tmp_path, cards=[rl_card(serving=KEPT)]) as plane:
            await ask(plane, request())
            assert (await ask(plane, request(weights=[0.5, 0.5]))).cached
            assert not (await ask(plane, request(weights=[0.25, 0.75]))).cached
            draws = [await ask(plane, request(action_selection="sample")) for _ in range(3)]
            assert all(draw.cached for draw in draws)
            assert len({draw.predictions["action"].tobytes() for draw in draws}) > 1

    run(scenario())


def test_tensors_and_predictions_share_entries(tmp_path: Path) -> None:
    def tensors() -> InferRequest:
        wire = WireTensor(name="x", datatype="FP32", shape=(1, 4), json=b"[1,2,3,4]", binary=None)
        return InferRequest(
            name="mine", version=None, inputs=(wire,), outputs=(), is_binary_output=False, id=None,
            routing_key=None, covariate=None, experiment_id=None, priority=3, timeout_s=None,
            on_overload=None,
        )  # fmt: skip

    async def scenario() -> None:
        async with data_plane(tmp_path, cards=[card("mine", serving=KEPT)]) as plane:
            first = await plane.predictor.infer(tensors(), received=now(), request_id="r")
            again = await plane.predictor.infer(tensors(), received=now(), request_id="r")
            bodies = [msgspec.json.decode(encode_infer(tensors(), one).body) for one in (first, again)]
            assert "parameters" not in bodies[0]
            assert bodies[1].pop("parameters") == {"cached": True}
            assert bodies[0] == bodies[1]
            answer = await ask(plane, PredictRequest(model_type="mine", data=[[1, 2, 3, 4]]))
            assert answer.cached
            assert len(plane.triton.calls) == 1

    run(scenario())


def test_versions_without_the_option_failures_and_partial_results_keep_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        cards = [hybrid_card("v1"), hybrid_card("v2", serving=KEPT)]
        async with data_plane(tmp_path, cards=cards) as plane:
            for _ in range(2):
                assert not (await ask(plane, hybrid_request(model_version="v1"))).cached
            sliced = hybrid_request(batch_size=1)
            plane.triton.errors += [InferenceFailed("once"), InferenceFailed("and again")]
            with pytest.raises(InferenceFailed):
                await ask(plane, sliced)
            leaver = asyncio.create_task(ask(plane, sliced))
            await asyncio.sleep(0.001)
            leaver.cancel()
            await asyncio.gather(leaver, return_exceptions=True)
            assert not (await ask(plane, sliced)).cached
            assert (await ask(plane, hybrid_request())).cached

    run(scenario())


@pytest.mark.parametrize("change", ["content", "options", "off", "gone"])
def test_cache_goes_with_its_card(tmp_path: Path, change: str) -> None:
    shorter = ServingOptions(response_cache=ResponseCacheOptions(ttl_s=5))
    replaced = {
        "content": hybrid_card(serving=KEPT, content_digest="01"),
        "options": hybrid_card(serving=shorter),
        "off": hybrid_card(),
    }

    async def scenario() -> None:
        async with data_plane(tmp_path, cards=[hybrid_card(serving=KEPT)]) as plane:
            await ask(plane, hybrid_request())
            responses = plane.predictor._served._served["cnn_lstm_hybrid-v1.0"].responses
            assert responses is not None
            assert responses.size_bytes > 0
            late = asyncio.create_task(ask(plane, hybrid_request(seed=1)))
            await asyncio.sleep(0)
            if change == "gone":
                (tmp_path / "cnn_lstm_hybrid-v1.0" / "model.json").unlink()
            else:
                register(tmp_path, replaced[change])
            await plane.registry.refresh()
            plane.predictor.forget_unregistered()
            assert responses.size_bytes == 0
            await late
            assert responses.size_bytes == 0
            if change == "gone":
                with pytest.raises(UnknownModel):
                    await ask(plane, hybrid_request(model_version="v1.0"))
                return
            for seed in (0, 1):
                assert not (await ask(plane, hybrid_request(seed))).cached
            assert (await ask(plane, hybrid_request())).cached is (change != "off")

    run(scenario())
