"""Publication: whole or not at all, whatever stops it."""

import fcntl
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from exporters import publication
from exporters.errors import ExportError, ExportFailed, NotEnoughSpace
from exporters.publication import STAGING, locked, publish, remove_dead, staged

NAME = "volatility-v1.0"


def write_version(folder: Path, content: str) -> None:
    (folder / "1" / "model.onnx").write_text(content)
    (folder / "model.json").write_text(content)


def publish_version(repository: Path, content: str) -> Path:
    with locked(repository, NAME), staged(repository, NAME) as folder:
        write_version(folder, content)
        return publish(repository, folder, NAME)


def content_of(repository: Path) -> dict[str, str]:
    folder = repository / NAME
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def staging_of(repository: Path) -> list[str]:
    return sorted(entry.name for entry in (repository / STAGING).iterdir() if entry.suffix != ".lock")


def whole(content: str) -> dict[str, str]:
    return {"1/model.onnx": content, "model.json": content}


def test_publish_puts_the_whole_folder_in_place(tmp_path):
    folder = publish_version(tmp_path / "deep" / "repository", "new")

    assert folder == tmp_path / "deep" / "repository" / NAME
    assert content_of(folder.parent) == whole("new")
    assert staging_of(folder.parent) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_publish_over_a_version_replaces_it_whole(tmp_path, monkeypatch, exchange):
    if not exchange:  # as on a file system without RENAME_EXCHANGE
        monkeypatch.setattr(publication, "_RENAME_EXCHANGE", 1 << 20)
    publish_version(tmp_path, "old")
    (tmp_path / NAME / "left.txt").write_text("x")

    publish_version(tmp_path, "new")

    assert content_of(tmp_path) == whole("new")
    assert staging_of(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, OSError])
def test_staged_whose_body_fails_leaves_the_published_version(tmp_path, error):
    publish_version(tmp_path, "old")

    def fail() -> None:
        with staged(tmp_path, NAME) as folder:
            write_version(folder, "new")
            raise error

    with pytest.raises((error, ExportFailed)):
        fail()

    assert content_of(tmp_path) == whole("old")
    assert staging_of(tmp_path) == []


def test_staged_removes_what_a_killed_exporter_left_and_nothing_else(tmp_path):
    kept = f"{NAME}.{os.getpid()}.0123abcd"  # the control plane's, while it overwrites a version
    for name in (f"{NAME}.0123abcd.new", f"{NAME}.0123abcd.old", "other-v2.0.0123abcd.new", kept, "not-ours"):
        (tmp_path / STAGING / name / "1").mkdir(parents=True)
    (tmp_path / "other-v2.0").mkdir()
    (tmp_path / NAME).mkdir()

    publish_version(tmp_path, "new")

    assert staging_of(tmp_path) == sorted([kept, "not-ours"])


def test_remove_dead_removes_a_kept_copy_of_the_control_plane_after_a_day(tmp_path, monkeypatch):
    kept = f"{NAME}.1.0123abcd"  # its process's number may be another's by now
    (tmp_path / STAGING / kept / "1").mkdir(parents=True)
    assert remove_dead(tmp_path) == ()

    now = time.time()
    monkeypatch.setattr("exporters.publication.time.time", lambda: now + 25 * 60 * 60)

    assert remove_dead(tmp_path) == (kept,)
    assert staging_of(tmp_path) == []


def test_remove_dead_restores_a_version_lost_between_two_renames(tmp_path):
    publish_version(tmp_path, "old")
    (tmp_path / NAME).rename(tmp_path / STAGING / f"{NAME}.0123abcd.old")

    remove_dead(tmp_path)

    assert content_of(tmp_path) == whole("old")


def test_remove_dead_spares_a_version_whose_lock_is_held(tmp_path):
    staging = tmp_path / STAGING / f"{NAME}.0123abcd.new"
    staging.mkdir(parents=True)
    with (tmp_path / STAGING / f"{NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        assert remove_dead(tmp_path) == ()

    assert remove_dead(tmp_path) == (staging.name,)
    assert list((tmp_path / STAGING).iterdir()) == []


def test_locked_leaves_no_lock_files_however_many_versions_are_refused(tmp_path):
    repository = tmp_path / "repository"
    for index in range(20):
        with suppress(ExportFailed), locked(repository, f"volatility-v{index}"):
            raise ExportFailed("refused")

    assert not repository.exists()

    publish_version(repository, "new")
    for index in range(20):
        with suppress(ExportFailed), locked(repository, f"volatility-v{index}"):
            raise ExportFailed("refused")

    assert list((repository / STAGING).iterdir()) == []
    assert content_of(repository) == whole("new")


def test_locked_whose_body_fails_keeps_what_another_published_meanwhile(tmp_path):
    repository = tmp_path / "repository"
    with suppress(ExportFailed), locked(repository, "volatility-v9"):
        publish_version(repository, "new")
        raise ExportFailed("refused")

    assert content_of(repository) == whole("new")


def _count(repository: Path) -> None:
    counter = repository.parent / "counter"
    for _ in range(200):
        with locked(repository, NAME):
            counter.write_text(str(int(counter.read_text()) + 1))


def test_locked_by_many_at_once_lets_in_one_at_a_time_while_lock_files_come_and_go(tmp_path):
    (tmp_path / "counter").write_text("0")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count, args=(tmp_path / "repository",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert (tmp_path / "counter").read_text() == "800"
    assert list((tmp_path / "repository" / STAGING).iterdir()) == []


_EXPORTER = """
import sys, time
from pathlib import Path
from exporters.publication import locked, publish, staged
repository, name, content, stop = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
with locked(repository, name), staged(repository, name) as folder:
    (folder / "1" / "model.onnx").write_text(content)
    print("staged", flush=True)
    time.sleep(60 if stop == "staged" else 0)
    (folder / "model.json").write_text(content)
    publish(repository, folder, name)
print("published", flush=True)
"""


def _exporter(repository: Path, content: str, stop: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _EXPORTER, str(repository), NAME, content, stop],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_staged_in_a_process_killed_half_way_leaves_the_old_version_and_is_cleaned_up_later(tmp_path):
    publish_version(tmp_path, "old")
    with _exporter(tmp_path, "new", "staged") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "staged\n"
        process.send_signal(signal.SIGKILL)
    assert content_of(tmp_path) == whole("old")
    assert len(staging_of(tmp_path)) == 1

    publish_version(tmp_path, "newer")

    assert content_of(tmp_path) == whole("newer")
    assert staging_of(tmp_path) == []


def test_locked_makes_a_second_exporter_of_the_version_wait(tmp_path):
    with locked(tmp_path, NAME), staged(tmp_path, NAME) as folder, _exporter(tmp_path, "second") as process:
        assert process.stdout is not None
        time.sleep(0.5)
        assert process.poll() is None
        write_version(folder, "first")
        publish(tmp_path, folder, NAME)
        assert content_of(tmp_path) == whole("first")
        process.kill()


def _publish_many(repository: Path, content: str) -> None:
    for index in range(30):
        publish_version(repository, f"{content}{index}")


def test_publish_by_many_at_once_always_shows_one_whole_version(tmp_path):
    publish_version(tmp_path, "first")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_publish_many, args=(tmp_path, letter)) for letter in "abc"]
    for process in processes:
        process.start()
    seen = 0
    while any(process.is_alive() for process in processes):
        descriptor = os.open(tmp_path / NAME, os.O_RDONLY)  # one version's folder, whichever it is
        try:
            card = _read(descriptor, "model.json")
            artefact = _read(descriptor, "1/model.onnx")
        finally:
            os.close(descriptor)
        if card is not None and artefact is not None:  # else it was replaced and removed meanwhile
            assert card == artefact
            seen += 1
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert seen > 0
    assert staging_of(tmp_path) == []


def _read(folder: int, name: str) -> bytes | None:
    try:
        descriptor = os.open(name, os.O_RDONLY, dir_fd=folder)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read()


def _publish_with_file_limit(repository: Path, connection: object) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        publish_version(repository, "x" * 100_000)
    except ExportError as error:
        connection.send((type(error), error.remedy))


def test_staged_without_room_is_not_enough_space_and_leaves_nothing(tmp_path):
    publish_version(tmp_path, "old")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_publish_with_file_limit, args=(tmp_path, theirs))
    process.start()

    error, remedy = ours.recv()
    process.join()

    assert error is NotEnoughSpace
    assert "Free space" in remedy
    assert content_of(tmp_path) == whole("old")
    assert staging_of(tmp_path) == []


@pytest.mark.parametrize("place", ["file", "below_a_file"])
def test_locked_where_the_repository_is_no_folder_says_so(tmp_path, place):
    file = tmp_path / "file"
    file.write_text("x")

    with (
        pytest.raises(ExportFailed, match="refused"),
        locked(file if place == "file" else file / "below", NAME),
    ):
        pass
