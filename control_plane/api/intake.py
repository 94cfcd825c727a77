"""How many requests a worker has received and not begun, and what that means for one more.

When more comes in than the worker's processor can decode, the wait is in the event loop, before any queue of ours: each
request that is read is work, also where it is refused in the end. So those that would begin too late are refused
before they are decoded. Pure: times are arguments.
"""

from dataclasses import dataclass

RECEIVED = "control_plane.received"
"""Key of the connection's scope: when the request's last byte came, in monotonic seconds."""
ARRIVAL = "control_plane.arrival"
"""Key of the connection's scope: the request's `Arrival`."""

_SMOOTHING = 0.05
_FIRST_GUESS_S = 0.0003
_CROWD = 8
_MARGIN = 6.0


class Intake:
    """The requests that one worker has received and not begun.

    Args:
        max_waiting: Most of them.
    """

    __slots__ = ("_max_waiting", "_turn_s", "waiting")

    def __init__(self, *, max_waiting: int) -> None:
        self.waiting = 0
        self._max_waiting = max_waiting
        self._turn_s = _FIRST_GUESS_S

    @property
    def is_crowded(self) -> bool:
        """Whether it pays to look at a request's deadline before it is decoded."""
        return self.waiting >= _CROWD

    @property
    def wait_s(self) -> float:
        """How long a request that comes now waits for its turn, in seconds."""
        return self.waiting * self._turn_s

    def arrived(self) -> int:
        """One more request was received; returns its place, from 1, for `started`."""
        self.waiting += 1
        return self.waiting

    def started(self, *, place: int, delay_s: float) -> None:
        """A request is begun, `delay_s` seconds after it was received at that place."""
        self.waiting -= 1
        if place >= _CROWD:
            self._turn_s += _SMOOTHING * (delay_s / place - self._turn_s)

    def refuses(self, timeout_s: float) -> bool:
        """Whether a request that comes now has to be refused.

        Args:
            timeout_s: From now to its deadline, in seconds. After its turn a request waits some more times for the
                same event loop: for its call, for the call's answer, for its own. Measured under overload, they take
                about six turns in all.
        """
        return self.waiting >= self._max_waiting or self.wait_s * _MARGIN > timeout_s


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request's place in the intake, and when it was taken there, in monotonic seconds."""

    intake: Intake
    place: int
    at: float
