"""What importing the API brings with it."""

import subprocess
import sys

HEAVY = ("torch", "onnx", "onnxruntime", "scipy", "exporters", "pandas", "matplotlib")


def test_importing_the_application_brings_nothing_heavy() -> None:
    code = f"import sys, control_plane.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
