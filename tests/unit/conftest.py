"""Unit tests open no sockets."""

import pytest
import pytest_socket


@pytest.fixture(autouse=True)
def _no_sockets() -> object:
    # Unix sockets stay allowed: asyncio's event loop wakes itself up through a pair of them.
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield
    pytest_socket.enable_socket()
