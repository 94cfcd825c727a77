"""Which models have dead processes, a pure function."""

from control_plane.embedded.model_processes import ModelProcess, dead_models


def _process(pid: int, model: str, *, alive: bool) -> ModelProcess:
    return ModelProcess(pid=pid, model=model, alive=alive)


def test_dead_models_of_living_processes_are_none() -> None:
    assert dead_models([_process(1, "a", alive=True), _process(2, "b", alive=True)]) == {}


def test_dead_models_lists_the_dead_of_each() -> None:
    processes = [
        _process(1, "a", alive=False),
        _process(2, "a", alive=True),
        _process(3, "b", alive=False),
        _process(4, "b", alive=False),
    ]
    assert dead_models(processes) == {"a": frozenset({1}), "b": frozenset({3, 4})}
