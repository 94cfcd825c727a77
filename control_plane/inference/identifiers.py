"""UUIDv7: identifiers that sort by time, and tell it.

Source: RFC 9562, section 5.7.
"""

import os
import time
import uuid

_VERSION = 0x7 << 76
_VARIANT = 0b10 << 62
_RANDOM_A = ((1 << 12) - 1) << 64
_RANDOM_B = (1 << 62) - 1


def uuid7(*, time_s: float | None = None) -> str:
    """A new UUIDv7.

    Args:
        time_s: Wall time in seconds since the epoch; now when None.
    """
    ms = time.time_ns() // 1_000_000 if time_s is None else int(time_s * 1000)
    random = int.from_bytes(os.urandom(10), "big")
    value = (ms & ((1 << 48) - 1)) << 80 | _VERSION | _VARIANT | (random & (_RANDOM_A | _RANDOM_B))
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def time_of(identifier: str) -> float | None:
    """Wall time in seconds since the epoch at which a UUIDv7 was made; None for anything else."""
    try:
        value = uuid.UUID(identifier)
    except ValueError:
        return None
    return (value.int >> 80) / 1000 if value.version == 7 else None
