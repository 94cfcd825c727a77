"""What the embedded servers have in common: a process that is kept running, for as long as a context lasts."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from control_plane.embedded.process import Child


class EmbeddedServer(ABC):
    """A server of ours, as an async context manager.

    Args:
        name: Its name in messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._child: Child | None = None

    @property
    def has_child(self) -> bool:
        """Whether its process was started."""
        return self._child is not None

    @property
    def child(self) -> Child:
        """Its process."""
        if self._child is None:
            raise RuntimeError(f"The {self._name} server wasn't started.")
        return self._child

    @abstractmethod
    async def start(self) -> None:
        """Starts it and waits until it is ready."""

    @abstractmethod
    async def stop(self, *, force: bool = False) -> None:
        """Stops it: by SIGTERM, or by SIGKILL at once with `force`."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
