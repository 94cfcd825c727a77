"""The page docs/demo_models.md, of which each demonstration writes a section of its own."""

import platform
from pathlib import Path


def replace_section(path: Path, name: str, text: str) -> None:
    """Replaces one section between its two markers, or appends it; the rest of the page stays as it is."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    page = path.read_text("utf-8") if path.is_file() else ""
    before, found, rest = page.partition(begin)
    if not found:
        before = page + "\n" if page else ""
    after = rest.partition(end)[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{begin}{text.strip()}\n{end}{after}", "utf-8")


def processor_name() -> str:
    """The processor as Linux names it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
