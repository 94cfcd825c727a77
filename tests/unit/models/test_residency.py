"""Which version leaves, and how Triton and Redis are brought together."""

from hypothesis import given
from hypothesis import strategies as st

from control_plane.models.residency import (
    IN_TRANSIT,
    READY,
    Action,
    Mend,
    choose_victim,
    idle_models,
    plan_mending,
)
from control_plane.store.residency import Slot, SlotState, Snapshot

_MODELS = [f"m-{number}" for number in range(6)]


def slot(state: SlotState = SlotState.READY, *, held: bool = False) -> Slot:
    return Slot(state=state, fence=1, lock="m-0", held=held)


def snapshot(
    slots: dict[str, Slot], last_used: dict[str, float] | None = None, *, pinned: str = "", leased: str = ""
) -> Snapshot:
    return Snapshot(
        generation=1,
        epoch="e",
        slots=slots,
        last_used=last_used or dict.fromkeys(slots, 0.0),
        pinned=frozenset(pinned.split()),
        leased=frozenset(leased.split()),
    )


def plan(
    index: dict[str, str], state: Snapshot, *, remembered: dict[str, float] | None = None, most: int = 3
) -> list[Action]:
    return plan_mending(
        index, state, registered=frozenset(_MODELS), remembered=remembered or {}, max_models=most
    )


def test_victim_is_least_recently_used() -> None:
    state = snapshot({"m-1": slot(), "m-2": slot(), "m-3": slot()}, {"m-1": 3.0, "m-2": 1.0, "m-3": 2.0})
    assert choose_victim(state) == "m-2"


def test_victim_is_neither_pinned_nor_in_use_nor_changing() -> None:
    slots = {"m-1": slot(), "m-2": slot(), "m-3": slot(SlotState.LOADING, held=True), "m-4": slot()}
    used = {"m-1": 1.0, "m-2": 2.0, "m-3": 0.0, "m-4": 3.0}
    assert choose_victim(snapshot(slots, used, pinned="m-1", leased="m-2")) == "m-4"
    assert choose_victim(snapshot(slots, used, pinned="m-1 m-4", leased="m-2")) is None


def test_idle_models_spare_what_is_in_use() -> None:
    slots = {"m-1": slot(), "m-2": slot(), "m-3": slot(), "m-4": slot()}
    used = {"m-1": 1.0, "m-2": 1.0, "m-3": 1.0, "m-4": 9.0}
    assert idle_models(snapshot(slots, used, pinned="m-2", leased="m-3"), idle_since=5.0) == ["m-1"]


def test_agreement_needs_nothing() -> None:
    assert plan({"m-1": READY, "m-2": "UNAVAILABLE", "m-3": ""}, snapshot({"m-1": slot()})) == []


def test_restarted_triton_gets_back_what_was_loaded_most_recent_first() -> None:
    state = snapshot({"m-1": slot(), "m-2": slot()}, {"m-1": 1.0, "m-2": 2.0})
    assert plan({"m-1": "", "m-2": ""}, state) == [
        Action(mend=Mend.RELOAD, model="m-2"),
        Action(mend=Mend.RELOAD, model="m-1"),
    ]


def test_emptied_redis_is_rebuilt_from_triton_and_memory() -> None:
    actions = plan({"m-1": READY, "m-2": ""}, snapshot({}), remembered={"m-1": 1.0, "m-2": 2.0})
    assert actions == [Action(mend=Mend.RELOAD, model="m-2"), Action(mend=Mend.ADOPT, model="m-1")]


def test_stranger_over_capacity_or_unregistered_is_unloaded() -> None:
    index = {"m-1": READY, "m-2": READY, "other": READY}
    assert plan(index, snapshot({"m-1": slot()}), most=1) == [
        Action(mend=Mend.UNLOAD, model="other"),
        Action(mend=Mend.UNLOAD, model="m-2"),
    ]


def test_slots_of_dead_operations_are_settled_or_freed() -> None:
    slots = {
        "m-1": slot(SlotState.LOADING),
        "m-2": slot(SlotState.LOADING),
        "m-3": slot(SlotState.UNLOADING),
        "m-4": slot(SlotState.LOADING, held=True),
    }
    index = {"m-1": READY, "m-2": "UNAVAILABLE", "m-3": "UNLOADING", "m-4": ""}
    assert plan(index, snapshot(slots), most=4) == [
        Action(mend=Mend.FREE, model="m-2"),
        Action(mend=Mend.SETTLE, model="m-1"),
    ]


def test_lowered_capacity_retires_the_least_recently_used() -> None:
    slots = {"m-1": slot(), "m-2": slot(), "m-3": slot()}
    state = snapshot(slots, {"m-1": 3.0, "m-2": 1.0, "m-3": 2.0}, leased="m-2")
    index = dict.fromkeys(slots, READY)
    assert plan(index, state, most=1) == [
        Action(mend=Mend.RETIRE, model="m-3"),
        Action(mend=Mend.RETIRE, model="m-1"),
    ]


_slots = st.dictionaries(
    st.sampled_from(_MODELS),
    st.one_of(
        st.just(slot()),  # a ready slot belongs to nobody
        st.builds(slot, st.sampled_from([SlotState.LOADING, SlotState.UNLOADING]), held=st.booleans()),
    ),
    max_size=6,
)
_index = st.dictionaries(
    st.sampled_from([*_MODELS, "stranger"]),
    st.sampled_from([READY, "LOADING", "UNLOADING", "UNAVAILABLE", ""]),
)
_times = st.dictionaries(st.sampled_from(_MODELS), st.floats(min_value=0, max_value=100))


@given(_slots, _index, _times, st.sets(st.sampled_from(_MODELS)), st.integers(min_value=1, max_value=6))
def test_plan_never_goes_over_capacity_nor_touches_the_living(
    slots: dict[str, Slot], index: dict[str, str], used: dict[str, float], leased: set[str], most: int
) -> None:
    state = snapshot(slots, used, leased=" ".join(leased))
    actions = plan(index, state, most=most)
    touched = [action.model for action in actions]
    assert len(touched) == len(set(touched))
    for action in actions:
        before = slots.get(action.model)
        assert index.get(action.model, "") not in IN_TRANSIT or action.mend is Mend.FREE
        assert before is None or not before.held
        assert action.mend is not Mend.RETIRE or action.model not in leased
        assert action.mend is not Mend.ADOPT or (before is None and index[action.model] == READY)
    freed = {action.model for action in actions if action.mend in (Mend.FREE, Mend.RETIRE)}
    added = {
        action.model for action in actions if action.model not in slots and action.mend is not Mend.UNLOAD
    }
    assert len(set(slots) - freed) + len(added) <= max(most, len(set(slots) - freed))


@given(_slots, _index, _times)
def test_carried_out_plan_leaves_nothing_to_do(
    slots: dict[str, Slot], index: dict[str, str], used: dict[str, float]
) -> None:
    index = {model: "" if state in IN_TRANSIT else state for model, state in index.items()}
    slots = {model: Slot(state=one.state, fence=1, lock="", held=False) for model, one in slots.items()}
    for action in plan(index, snapshot(slots, used)):
        match action.mend:
            case Mend.ADOPT | Mend.SETTLE | Mend.RELOAD:
                slots[action.model] = slot()
                index[action.model] = READY
            case Mend.FREE:
                del slots[action.model]
            case Mend.UNLOAD:
                index[action.model] = ""
            case Mend.RETIRE:
                del slots[action.model]
                index[action.model] = ""
    assert plan(index, snapshot(slots, used)) == []
    assert len(slots) <= 3
