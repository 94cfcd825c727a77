"""The state file."""

from pathlib import Path

from control_plane.embedded.state import ProcessState, ServerState, read_state, write_state


def test_read_state_without_a_file_is_none(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None


def test_write_state_then_read_gives_it_back(tmp_path: Path) -> None:
    state = ServerState(
        supervisor_pid=1,
        ready=True,
        processes={"redis": ProcessState(pid=2, state="running", restarts=3)},
        ports={"redis": 4},
    )
    write_state(tmp_path, ServerState(supervisor_pid=9))
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
