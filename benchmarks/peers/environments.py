"""An environment for each peer under .bench/, made once and made anew when its requirements change.

    python -m benchmarks.peers.environments

A peer that can't be installed is reported and left out; the others are compared all the same.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks.arguments import no_options
from benchmarks.peers.catalog import ENVIRONMENTS, IN_PROCESS, PEERS, Peer

_TIMEOUT_S = 1200


def prepare(peers: Sequence[Peer], console: Console) -> tuple[list[Peer], dict[str, str]]:
    """Installs what is missing.

    Returns:
        The peers that can be started, and why the others can't, by name.
    """
    ready, skipped = [], {}
    for peer in peers:
        if is_ready(peer):
            ready.append(peer)
            continue
        with console.status(f"installing {peer.name} (once)"):
            problem = install(peer)
        if problem is None:
            console.print(f"installed {peer.name}")
            ready.append(peer)
        else:
            console.print(f"[red]{peer.name} is left out: it couldn't be installed[/red]\n{problem}")
            skipped[peer.name] = problem
    return ready, skipped


def is_ready(peer: Peer) -> bool:
    """Whether the environment holds what the requirements say now."""
    stamp = ENVIRONMENTS / peer.folder / ".installed"
    return stamp.exists() and stamp.read_text() == fingerprint(peer)


def fingerprint(peer: Peer) -> str:
    """Of the requirements and of Python."""
    return hashlib.sha256(peer.requirements.read_bytes() + sys.version.encode()).hexdigest()


def install(peer: Peer) -> str | None:
    """Makes the environment; returns the end of what pip said when that failed."""
    folder = ENVIRONMENTS / peer.folder
    shutil.rmtree(folder, ignore_errors=True)
    ENVIRONMENTS.mkdir(exist_ok=True)
    pip = [str(peer.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "-r", str(peer.requirements)],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode != 0:
            return (done.stderr or done.stdout)[-2000:]
    (folder / ".installed").write_text(fingerprint(peer))
    return None


def versions(peer: Peer) -> list[str]:
    """What its requirements pin, as name==version."""
    lines = (line.partition("#")[0].strip() for line in peer.requirements.read_text().splitlines())
    return [line for line in lines if "==" in line]


def main() -> int:
    """Installs all; 1 when one is missing."""
    _, skipped = prepare([IN_PROCESS, *PEERS], Console())
    return 1 if skipped else 0


if __name__ == "__main__":
    no_options(__doc__)
    raise SystemExit(main())
