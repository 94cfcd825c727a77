"""How long the client waits, and when it gives up."""

import pytest

from control_plane.client import (
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    NotFound,
    RetryPolicy,
    ServerFailed,
    ServiceUnavailable,
    TooManyRequests,
)
from control_plane.client.retries import Attempts


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def attempts(clock: Clock, *, chance: float = 1.0, is_idempotent: bool = True, **policy: float) -> Attempts:
    return Attempts(
        RetryPolicy(**policy),  # type: ignore[arg-type]
        timeout_s=10.0,
        is_idempotent=is_idempotent,
        clock=clock,
        chance=lambda: chance,
    )


def test_pauses_double_up_to_their_bound() -> None:
    one = attempts(Clock(), max_attempts=6, first_pause_s=0.1, longest_pause_s=0.5)
    pauses = []
    for _ in range(5):
        one.begin()
        pauses.append(one.pause_after(ServiceUnavailable("busy")))
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])
    one.begin()
    with pytest.raises(ServiceUnavailable):
        one.pause_after(ServiceUnavailable("busy"))


@pytest.mark.parametrize(("chance", "pause_s"), [(0.0, 2.0), (0.5, 2.05), (1.0, 2.1)])
@pytest.mark.parametrize("kind", [ServiceUnavailable, TooManyRequests])
def test_retry_after_is_the_least_pause(kind: type[ClientError], chance: float, pause_s: float) -> None:
    one = attempts(Clock(), chance=chance)
    one.begin()
    assert one.pause_after(kind("busy", retry_after_s=2.0)) == pytest.approx(pause_s)


def test_pause_past_the_deadline_is_not_waited_for() -> None:
    clock = Clock()
    one = attempts(clock)
    assert one.begin() == 10.0
    clock.now += 8.5
    with pytest.raises(ServiceUnavailable):
        one.pause_after(ServiceUnavailable("busy", retry_after_s=2.0))
    clock.now += 2.0
    with pytest.raises(DeadlineExceeded):
        one.begin()


@pytest.mark.parametrize(
    ("error", "is_idempotent", "was_sent", "retried"),
    [
        (ConnectionFailed("gone"), True, True, True),
        (ConnectionFailed("gone"), False, True, False),
        (ConnectionFailed("refused"), False, False, True),
        (ServiceUnavailable("busy"), False, True, True),
        (NotFound("no"), True, True, False),
        (ServerFailed("broken"), True, True, False),
        (DeadlineExceeded("late"), True, True, False),
    ],
)
def test_what_is_tried_again(error: ClientError, is_idempotent: bool, was_sent: bool, retried: bool) -> None:
    one = attempts(Clock(), is_idempotent=is_idempotent)
    one.begin()
    if retried:
        assert one.pause_after(error, was_sent=was_sent) > 0
    else:
        with pytest.raises(type(error)):
            one.pause_after(error, was_sent=was_sent)
