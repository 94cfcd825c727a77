"""Has an experiment's certificate made in a process of its own, at the lowest priority, and keeps it.

An experiment runs meanwhile; its certificate comes within `experiments.certificate_s` of processor time that nothing
else wants. One is made at a time in each worker.
"""

import asyncio
import sys
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
import structlog

from control_plane.errors import NotFound, RedisUnavailable
from control_plane.experiments.assignment import canary_shares
from control_plane.experiments.definition import Definition, Mode
from control_plane.experiments.outcomes import REWARD
from control_plane.experiments.state import experiment_of
from control_plane.inference.requests import RL_ENSEMBLE
from control_plane.store.experiments import ExperimentStore

log = structlog.get_logger()

_GRACE_S = 30.0
_ATTEMPTS = 20
_MODULE = "control_plane.experiments.certify"


class Certifier:
    """Makes certificates in the background.

    Args:
        store: Where they are kept.
        rewards: The logged rewards of a version, by Triton's name: what its simulations draw from.
        seconds: Bound of the simulations' time; 0: none are made.
    """

    def __init__(
        self,
        store: ExperimentStore,
        *,
        rewards: Callable[[str], Awaitable[list[float]]],
        seconds: float,
    ) -> None:
        self._store = store
        self._rewards = rewards
        self._seconds = seconds
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, definition: Definition) -> None:
        """Has one made."""
        if self._seconds <= 0:
            return
        task = asyncio.get_running_loop().create_task(self._make(definition))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Gives up those that aren't done."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _make(self, definition: Definition) -> None:
        try:
            async with self._one_at_a_time:
                text = await self._simulate(definition, await self._logged(definition))
            if text is not None:
                await self._keep(definition.experiment_id, text)
        except (OSError, TimeoutError, RedisUnavailable) as error:
            log.warning(
                "certificate_failed", experiment_id=definition.experiment_id, reason=repr(error)[:500]
            )

    async def _logged(self, definition: Definition) -> list[float]:
        """The control's rewards, where the experiment is about them and there are some."""
        if definition.model_type != RL_ENSEMBLE or all(one.name != REWARD for one in definition.metrics):
            return []
        try:
            return await self._rewards(
                f"{definition.model_type}-{definition.variants[definition.control].version}"
            )
        except NotFound:
            return []

    async def _simulate(self, definition: Definition, rewards: list[float]) -> str | None:
        process = await asyncio.create_subprocess_exec(
            "nice",
            "-n",
            "19",
            sys.executable,
            "-m",
            _MODULE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(self._seconds + _GRACE_S):
                out, errors = await process.communicate(
                    request_of(definition, rewards, seconds=self._seconds)
                )
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode == 0:
            return out.decode().strip()
        log.warning(
            "certificate_failed",
            experiment_id=definition.experiment_id,
            reason=errors[-500:].decode("utf-8", "replace"),
        )
        return None

    async def _keep(self, experiment_id: str, text: str) -> None:
        for _ in range(_ATTEMPTS):
            stored = await self._store.get(experiment_id)
            if stored is None or await self._store.move(
                experiment_id, revision=experiment_of(stored).revision, changes={"certificate": text}
            ):
                return


def request_of(definition: Definition, rewards: list[float], *, seconds: float) -> bytes:
    """What the simulating process reads: the experiment's own settings, its logged rewards, and laws of the kinds of
    its other metrics.
    """
    shares = [definition.initial_shares if definition.mode is not Mode.SHADOW else definition.shares]
    if definition.mode is Mode.CANARY:
        shares = [canary_shares(step.share, control=definition.control) for step in definition.steps]
    return msgspec.json.encode(
        {
            "design": definition.design(units_are_requests=True),
            "shares": shares,
            "seed": zlib.crc32(definition.experiment_id.encode()),
            "seconds": seconds,
            "logged": {"values": {REWARD: rewards}} if rewards else None,
        }
    )
