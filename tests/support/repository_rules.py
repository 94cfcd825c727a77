"""Rules that no linter has: length of files, and nothing of a developer's own machine in the tree.

python tests/support/repository_rules.py
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LONGEST = {"tests": 600}
LONGEST_DEFAULT = 400


def too_long() -> list[str]:
    """Python files beyond the limit."""
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    complaints = []
    for name in files.stdout.split():
        path = ROOT / name
        if not path.is_file():
            continue
        lines = len(path.read_text("utf-8").splitlines())
        limit = LONGEST.get(Path(name).parts[0], LONGEST_DEFAULT)
        if lines > limit:
            complaints.append(f"{name} has {lines} lines, at most {limit}: which two things is it?")
    return complaints


def main() -> int:
    """Prints what is wrong; 1 when anything is."""
    complaints = too_long()
    print("\n".join(complaints) or "repository rules hold")  # noqa: T201
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
