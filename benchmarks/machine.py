"""What the figures were measured on: the machine and the versions."""

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = (
    *(
        "model-serving",
        "nvidia-pytriton",
        "onnxruntime-gpu",
        "tritonclient",
        "grpcio",
        "fastapi",
        "uvicorn",
        "uvloop",
    ),
    *("numpy", "msgspec", "pysimdjson"),
)


def describe() -> dict[str, Any]:
    """Processor, cores, memory, system, load, and versions of what takes part."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _package(name)) is not None},
        "generators": {name: version for name in ("wrk", "h2load") if (version := _tool(name)) is not None},
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _package(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _tool(name: str) -> str | None:
    path = shutil.which(name)
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", said.stdout + said.stderr)
    return found[0] if found else "unknown"
