"""Finds models whose process died, and loads them again.

With the Python backend each model instance is a process of its own. When one is killed (out of memory, say), Triton
2.51 notices nothing: the model stays READY in its index, a load is a no-op, and each request waits a second for
`Stub process '…' is not healthy`. Only an unload and a load mend it.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import orjson
import structlog

from control_plane.embedded import probes

log = structlog.get_logger()

_PROC = Path("/proc")
_STUB = "triton_python_backend_stub"
_LOAD_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProcess:
    """One process of a model instance."""

    pid: int
    model: str
    alive: bool
    """False for a zombie: it died, and Triton hasn't noticed."""


def dead_models(processes: Iterable[ModelProcess]) -> dict[str, frozenset[int]]:
    """Models with dead processes, by name; an unload in progress can look like this for a moment."""
    found: dict[str, frozenset[int]] = {}
    for process in processes:
        if not process.alive:
            found[process.model] = found.get(process.model, frozenset()) | {process.pid}
    return found


class ModelProcessWatch:
    """Looks at the processes of a Triton's models again and again.

    Args:
        triton_pid: Gives Triton's process id, None while it is down.
        model_repository: Its repository.
        host: Where its HTTP service is.
        port: Where its HTTP service is.
        interval_s: Time between two looks, in seconds.
    """

    def __init__(
        self,
        triton_pid: Callable[[], int | None],
        *,
        model_repository: Path,
        host: str,
        port: int,
        interval_s: float,
    ) -> None:
        self._triton_pid = triton_pid
        self._repository = model_repository.absolute()
        self._host = host
        self._port = port
        self._interval_s = interval_s
        self._models: dict[int, str] = {}

    async def run(self) -> None:
        """Watches until it is cancelled."""
        before: dict[str, frozenset[int]] = {}
        while True:
            await asyncio.sleep(self._interval_s)
            now = dead_models(self._look())
            # Twice in a row, since an ordinary unload leaves a zombie for a moment.
            for model, pids in now.items():
                if pids & before.get(model, frozenset()) and await self._is_loaded(model):
                    await self._reload(model, pids)
            before = now

    def _look(self) -> list[ModelProcess]:
        triton = self._triton_pid()
        if triton is None:
            self._models.clear()
            return []
        children = _children(triton)
        self._models = {pid: model for pid, model in self._models.items() if pid in children}
        found = []
        for pid in children:
            if pid not in self._models:
                model = self._model_of(pid)
                if model is None:
                    continue
                self._models[pid] = model  # a zombie's command line is gone, so it is remembered
            found.append(ModelProcess(pid=pid, model=self._models[pid], alive=_is_alive(pid)))
        return found

    def _model_of(self, pid: int) -> str | None:
        try:
            words = (_PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            return None
        if len(words) < 2 or not words[0].endswith(_STUB):
            return None
        try:
            return Path(words[1]).relative_to(self._repository).parts[0]
        except (ValueError, IndexError):
            return None

    async def _is_loaded(self, model: str) -> bool:
        answer = await probes.http_post(self._host, self._port, "/v2/repository/index", b'{"ready":true}')
        if answer is None:
            return False
        try:
            return any(row["name"] == model for row in orjson.loads(answer))
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return False

    async def _reload(self, model: str, pids: frozenset[int]) -> None:
        log.warning("model_process_died", triton_model=model, pids=sorted(pids))
        for action in ("unload", "load"):
            path = f"/v2/repository/models/{model}/{action}"
            if await probes.http_post(self._host, self._port, path, b"{}", timeout_s=_LOAD_TIMEOUT_S) is None:
                log.error("model_not_reloaded", triton_model=model, failed=action)
                return
        log.info("model_reloaded", triton_model=model)


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    for path in (_PROC / str(pid) / "task").glob("*/children"):
        try:
            found.update(int(word) for word in path.read_text("ascii").split())
        except OSError:
            continue  # the thread ended meanwhile
    return found


def _is_alive(pid: int) -> bool:
    try:
        # The name is in parentheses and may hold anything; the state follows it.
        return (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True  # reaped: no zombie, so nothing that Triton overlooked
