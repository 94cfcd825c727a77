"""An event loop whose clock jumps to the next timer: scenarios of minutes run in milliseconds, always the same way."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

_THREAD_S = 5.0


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:  # no timer: only a thread can go on
            if not (ready := super().select(_THREAD_S)):
                raise RuntimeError("nothing left to run, and no timer: something waits for ever")
            return ready
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """For scenarios without I/O. Its `time` is the clock to pass on."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def pass_time(self, seconds: float) -> None:
        self._jumping.now += seconds


def run(scenario: Coroutine[Any, Any, Result]) -> Result:
    """Runs a scenario in virtual time; fails when it waits for ever."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(scenario)


def work(seconds: float) -> None:
    """Keeps the processor busy: nothing else runs in the loop, and all timers are late."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.pass_time(seconds)


def now() -> float:
    """The running loop's time."""
    return asyncio.get_running_loop().time()
