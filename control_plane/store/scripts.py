"""The Lua scripts, read from the files beside this module. Each can be repeated without harm."""

import hashlib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A script's text and the SHA-1 by which Redis knows it."""

    text: str
    digest: str


def read_script(name: str, *, prelude: str | None = None) -> Script:
    """Reads `name`.lua, after `prelude`.lua where one is given."""
    parts = [part for part in (prelude, name) if part is not None]
    folder = resources.files("control_plane.store")
    text = "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in parts)
    # Redis names scripts by SHA-1; nothing secret hangs on it.
    return Script(text=text, digest=hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
