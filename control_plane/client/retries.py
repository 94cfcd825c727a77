"""When to try again, and until when. Pure: the clients wait, this says how long."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from control_plane.client.errors import (
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    ServiceUnavailable,
    TooManyRequests,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how patiently a call is tried again, always within its deadline.

    503 and 429 are tried again after Retry-After; a connection that failed, too, where the call may be sent twice
    without harm, or was never sent.
    """

    max_attempts: int = 5
    """Of one call, the first included; 1 turns retries off."""
    first_pause_s: float = 0.1
    """Longest first pause; it doubles each time."""
    longest_pause_s: float = 5.0
    """Bound of the doubling; Retry-After may ask for more."""


class Attempts:
    """The attempts of one call.

    Args:
        policy: How often.
        timeout_s: The call's deadline, from now.
        is_idempotent: Whether it may be sent twice.
        clock: Monotonic time in seconds.
        chance: Uniform in [0, 1).
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        timeout_s: float,
        is_idempotent: bool,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._is_idempotent = is_idempotent
        self._clock = clock
        self._chance = chance
        self._deadline = clock() + timeout_s
        self._made = 0

    def begin(self) -> float:
        """Begins an attempt; returns the seconds that are left for it.

        Raises:
            DeadlineExceeded: none are.
        """
        self._made += 1
        left_s = self._deadline - self._clock()
        if left_s <= 0:
            raise DeadlineExceeded("The deadline passed before the request was sent.")
        return left_s

    def pause_after(self, error: ClientError, *, was_sent: bool = True) -> float:
        """Seconds to wait before the next attempt.

        Args:
            error: Why the last one failed.
            was_sent: Whether the request may have reached the server.

        Raises:
            ClientError: `error` itself, when there is to be no other attempt.
        """
        if self._made >= self._policy.max_attempts or not self._may_retry(error, was_sent=was_sent):
            raise error
        # Full jitter, so that those who were refused together don't come back together.
        longest = min(self._policy.first_pause_s * 2.0 ** (self._made - 1), self._policy.longest_pause_s)
        pause_s = (error.retry_after_s or 0.0) + longest * self._chance()
        if self._clock() + pause_s >= self._deadline:
            raise error
        return pause_s

    def _may_retry(self, error: ClientError, *, was_sent: bool) -> bool:
        if isinstance(error, ConnectionFailed):
            return self._is_idempotent or not was_sent
        return isinstance(error, (ServiceUnavailable, TooManyRequests))
