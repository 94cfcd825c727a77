"""Ids of predictions: UUIDs that tell when they were made, by which the server knows how old feedback is."""

import os
import time
import uuid


def new_request_id() -> str:
    """A UUIDv7.

    Source: RFC 9562, section 5.7.
    """
    stamp = (time.time_ns() // 1_000_000).to_bytes(6, "big")
    random = bytearray(os.urandom(10))
    random[0] = 0x70 | random[0] & 0x0F
    random[2] = 0x80 | random[2] & 0x3F
    return str(uuid.UUID(bytes=stamp + bytes(random)))
