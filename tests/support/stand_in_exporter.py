"""A process that speaks the exporters' protocol and publishes what Triton will refuse, hangs, or dies.

python -m tests.support.stand_in_exporter broken|hang|crash|fine
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.support.repository import write_identity_like_model


def main() -> None:
    """Acts as the argument says."""
    request = json.loads(sys.stdin.read())
    act = sys.argv[1]
    _say({"event": "stage", "stage": "reading", "progress": 0.0})
    if act == "crash":
        sys.stderr.write("the last words\n")
        sys.exit(3)
    if act == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(request["file_path"]).with_suffix(".pid").write_text(str(child.pid))
        time.sleep(600)
    write_identity_like_model(
        Path(request["repository"]),
        request["model_type"],
        request["version"],
        revision=7,
        broken=act == "broken",
    )
    _say({"event": "stage", "stage": "publishing", "progress": 0.95})
    _say({"event": "result", "status": "published", "triton_model": "", "card": {}})


def _say(event: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
