"""The pages of the simulations: what a script puts between its markers."""

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.machine import processor

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs/ensembles_validation.md"
EXPERIMENTS_PAGE = ROOT / "docs/experiments_validation.md"
IMAGES = ROOT / "docs/images"


def write(name: str, content: str, *, path: Path = PAGE) -> None:
    """Replaces what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.

    Raises:
        ValueError: the page has no such markers.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    head, found, rest = path.read_text().partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path.name} has no section {name}")
    path.write_text(f"{head}{begin}{content.rstrip()}\n{end}{tail}")


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def machine() -> str:
    """Where and with what it ran, for the section's last line."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "scipy"))
    return f"{processor()}, one core; Python {platform.python_version()}, {packages}."
