"""Triton's errors in our words, alike for its gRPC and its HTTP service."""

from control_plane.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    ModelNotReady,
    ServingError,
    TritonUnavailable,
)

_NOT_READY_PHRASES = (
    "is not ready",
    "is not found",
    "is not available",
    "no version is available",
    "has no available versions",
    "unloaded",
    "is unavailable",
    "stub process",
)


def refusal(subject: str, text: str, *, is_invalid: bool) -> ServingError:
    """The error that Triton answered about `subject`.

    Args:
        subject: A model's name, or what else was asked about.
        text: Triton's message.
        is_invalid: Whether Triton calls the request itself wrong.
    """
    if is_not_ready(text):
        return ModelNotReady(
            f"Triton doesn't hold {subject}: {text}", remedy="Load it, or try again shortly."
        )
    if is_invalid:
        return InvalidInput(f"Triton refused the request for {subject}: {text}")
    return InferenceFailed(f"Triton failed on {subject}: {text}")


def is_not_ready(text: str) -> bool:
    """Whether Triton's message says that it doesn't hold the model, or that the model's process died."""
    lowered = text.lower()
    return any(phrase in lowered for phrase in _NOT_READY_PHRASES)


def unreachable() -> TritonUnavailable:
    """The error when Triton doesn't answer at all."""
    return TritonUnavailable(
        "Triton is not reachable.", remedy="Try again after Retry-After; /api/v1/health shows its state."
    )


def late(subject: str) -> DeadlineExceeded:
    """The error when Triton didn't answer in time."""
    return DeadlineExceeded(f"Triton did not answer for {subject} in time.")
