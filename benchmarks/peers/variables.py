"""What a peer's server is told by environment variables: those whose workers take no arguments of ours need them."""

import os


def variable(name: str, default: str | None = None) -> str:
    """The variable `PEER_<NAME>`.

    Raises:
        KeyError: it isn't set and has no default.
    """
    key = f"PEER_{name.upper()}"
    environment = os.environ  # noqa: TID251  a peer is no part of the control plane
    return environment[key] if default is None else environment.get(key, default)
