"""The state file `<data_dir>/state.json`: which processes run, and where they listen, for operators and tests."""

import json
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

STATE_FILE = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """One child."""

    pid: int | None
    """None while it is down."""
    state: str
    """starting, running, backing_off or stopped."""
    restarts: int
    """How often it was started again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """The content of the state file."""

    supervisor_pid: int
    ready: bool = False
    """Whether all children were ready once, and no stop has begun."""
    processes: dict[str, ProcessState] = field(default_factory=dict)
    """By name: redis, triton, worker-0, …"""
    ports: dict[str, int] = field(default_factory=dict)
    """By service: api, redis, triton_http, triton_grpc, triton_metrics."""


def write_state(data_dir: Path, state: ServerState) -> None:
    """Replaces the state file; readers see the old content or the new, never a part."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=data_dir, prefix=".state-", delete=False
    ) as file:
        json.dump(asdict(state), file, indent=2)
        file.write("\n")
    try:
        os.replace(file.name, data_dir / STATE_FILE)  # noqa: PTH105  both names are at hand
    except OSError:
        with suppress(OSError):
            os.unlink(file.name)  # noqa: PTH108
        raise


def read_state(data_dir: Path) -> ServerState | None:
    """The state of the server that uses, or last used, a data directory; None where none was."""
    try:
        content = json.loads((data_dir / STATE_FILE).read_text("utf-8"))
    except FileNotFoundError:
        return None
    processes = {name: ProcessState(**entry) for name, entry in content.pop("processes").items()}
    return ServerState(processes=processes, **content)
