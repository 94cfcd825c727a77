"""Compressed bodies of the protocol: inflated within their bound, or refused."""

import gzip
import zlib

import pytest

from control_plane.api.v2_body import inflate
from control_plane.errors import MalformedRequest, PayloadTooLarge

TEXT = b'{"inputs": []}' * 100
PACK = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("encoding", PACK)
def test_body_is_inflated_up_to_its_bound(encoding: str) -> None:
    packed = PACK[encoding](TEXT)
    assert inflate(packed, encoding, max_bytes=len(TEXT)) == TEXT
    with pytest.raises(PayloadTooLarge):
        inflate(packed, encoding, max_bytes=len(TEXT) - 1)


@pytest.mark.parametrize("encoding", PACK)
def test_bomb_is_refused_at_its_bound(encoding: str) -> None:
    packed = PACK[encoding](b"\0" * 20_000_000)
    assert len(packed) < 30_000
    with pytest.raises(PayloadTooLarge):
        inflate(packed, encoding, max_bytes=1000)


@pytest.mark.parametrize("encoding", PACK)
def test_what_is_no_whole_stream_is_malformed(encoding: str) -> None:
    packed = PACK[encoding](TEXT)
    for body in (b"", b"plain text", packed[:-5], packed + b"more", packed + packed):
        with pytest.raises(MalformedRequest):
            inflate(body, encoding, max_bytes=1_000_000)
