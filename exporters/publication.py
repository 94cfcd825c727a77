"""Publishes a version's folder atomically: staged beside, synced, renamed into place.

Whatever kills the process, the repository holds either the old version or the new one, whole. What a killed export
left in staging is removed by the next export. One export at a time publishes a version: it holds a lock file by
flock, and removes that file as it ends.

Source: renameat2(2), rename(2), flock(2).
"""

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from exporters.errors import ExportFailed, NotEnoughSpace

STAGING = ".staging"
_NEW, _REPLACED = "new", "old"
_KEPT = re.compile(r".+\.\d+\.[0-9a-f]{8}")
_KEPT_S = 24 * 60 * 60
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def translated_os_errors(action: str) -> Iterator[None]:
    """Turns the file system's errors into ours.

    Raises:
        NotEnoughSpace: no room, beyond the quota, or beyond the process's limit on file sizes.
        ExportFailed: any other.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise NotEnoughSpace(
                f"There is no room for {action}.",
                got=error.strerror,
                remedy="Free space in the model repository's file system; unused versions can be removed.",
            ) from error
        raise ExportFailed(
            f"The file system refused {action}.",
            got=f"{error.strerror}: {error.filename or ''}".removesuffix(": "),
            remedy="Check that the model repository is a folder that this user may write to.",
        ) from error


@contextmanager
def locked(repository: Path, name: str) -> Iterator[None]:
    """Holds the lock of one version, waiting for another exporter of the same version.

    A repository that isn't there yet is made; where the body fails, and nothing was published, it is removed again.

    Raises:
        ExportFailed: the repository can't be written to.
    """
    is_new = not repository.exists()
    try:
        with _lock(repository, name, wait=True):
            yield
    except BaseException:
        if is_new:
            with suppress(OSError):  # something of another's is in it
                (repository / STAGING).rmdir()
                repository.rmdir()
        raise


@contextmanager
def _lock(repository: Path, name: str, *, wait: bool) -> Iterator[bool]:
    """Holds a version's lock file, and removes it at the end; False where another has it and `wait` isn't set."""
    path = repository / STAGING / f"{name}.lock"
    with translated_os_errors(f"the lock of {name}"):
        descriptor = _acquire(path, wait=wait)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(
            descriptor
        )  # the kernel does it with the process; the file is then left to the next exporter


def _acquire(path: Path, *, wait: bool) -> int | None:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # the folder was removed meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it before we had it


@contextmanager
def staged(repository: Path, name: str) -> Iterator[Path]:
    """Gives an empty staging folder for a version; removes it at the end, whatever happens.

    Also removes what dead exporters left. Publish from within, by `publish`.

    Raises:
        NotEnoughSpace, ExportFailed: from the body's or our own use of the file system.
    """
    folder = repository / STAGING / f"{name}.{secrets.token_hex(4)}.{_NEW}"
    with translated_os_errors(f"{name} in the model repository"):
        try:
            remove_dead(repository, held=name)
            (folder / "1").mkdir(parents=True)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def publish(repository: Path, folder: Path, name: str) -> Path:
    """Moves a staged folder into place as `repository/name`, replacing what is there in one step.

    Returns:
        The published folder.

    Raises:
        OSError: translated by `staged`.
    """
    target = repository / name
    _sync_tree(folder)
    if target.exists():
        _replace(folder, target)
    else:
        folder.rename(target)
    _sync(repository)
    return target


def remove_dead(repository: Path, *, held: str | None = None) -> tuple[str, ...]:
    """Removes what exporters left in staging: whoever holds a version's lock is the only one at work on it.

    The control plane keeps copies there as `<name>.<process>.<mark>`, without the lock, for the minutes of a load
    (control_plane/models/files.py): those go once they are a day old.

    Args:
        repository: the model repository.
        held: the version whose lock this process holds.

    Returns:
        The folders' names.
    """
    removed = []
    for entry in sorted((repository / STAGING).glob("*.*.*")):
        name, _, mark = entry.name.rsplit(".", 2)
        if not entry.is_dir():
            continue
        if mark not in (_NEW, _REPLACED):
            if _KEPT.fullmatch(entry.name) is not None and time.time() - entry.stat().st_ctime > _KEPT_S:
                shutil.rmtree(entry, ignore_errors=True)
                removed.append(entry.name)
            continue
        with nullcontext(True) if name == held else _lock(repository, name, wait=False) as is_ours:  # noqa: FBT003
            if not is_ours or not entry.exists():
                continue
            if mark == _REPLACED and not (repository / name).exists():
                entry.rename(repository / name)  # killed between the two renames of `_replace`
                continue
            shutil.rmtree(entry, ignore_errors=True)
            removed.append(entry.name)
    return tuple(removed)


def _replace(folder: Path, target: Path) -> None:
    if _exchange(folder, target):
        shutil.rmtree(folder, ignore_errors=True)
        return
    # file systems without RENAME_EXCHANGE: two renames; `remove_dead` undoes the first if we die between them
    old = folder.with_name(f"{target.name}.{secrets.token_hex(4)}.{_REPLACED}")
    target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two paths in one step; False where the kernel, the C library or the file system can't."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    result = renameat2(
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(first)),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(second)),
        ctypes.c_uint(_RENAME_EXCHANGE),
    )
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
