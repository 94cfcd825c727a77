"""Which variant a unit gets: the same on every replica and after restarts, from nothing but names. Pure."""

import hashlib
from collections.abc import Sequence
from itertools import accumulate


def position(salt_or_id: str, unit: str) -> float:
    """Where a unit lies on the line from 0 to 1 that the shares divide.

    Args:
        salt_or_id: The experiment's salt, otherwise its id.
        unit: Routing key, otherwise request id.
    """
    digest = hashlib.md5(f"{salt_or_id}:{unit}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest, "big") / 2**128


def variant_of(position: float, shares: Sequence[float]) -> int:
    """The variant whose interval [sum of the shares before, with its own) holds the position.

    With two variants a share that grows only takes units from the other: the boundary moves one way.

    Args:
        position: 0 to 1; 1 itself, to which the largest hashes round, belongs to the last interval.
        shares: Of the variants in declared order; they sum to 1, give or take rounding.

    Returns:
        Its place in the declared order.
    """
    for variant, end in enumerate(accumulate(shares)):
        if position < end:
            return variant
    return max(variant for variant, share in enumerate(shares) if share > 0.0)


def canary_shares(share: float, *, control: int) -> tuple[float, float]:
    """The shares of a canary's two variants in declared order, with `share` for the one that isn't the control."""
    return (1.0 - share, share) if control == 0 else (share, 1.0 - share)


def block_of(now_s: float, block_minutes: float) -> int:
    """The number of the time block of a switchback experiment.

    Args:
        now_s: Wall time since the epoch, so that all replicas are in the same block.
        block_minutes: Its length.
    """
    return int(now_s // (block_minutes * 60.0))


def switchback_variant(experiment_id: str, block_number: int, shares: Sequence[float]) -> int:
    """The variant that a whole time block gets; the block's number, as text, is the unit of the analysis too."""
    return variant_of(position(experiment_id, str(block_number)), shares)
