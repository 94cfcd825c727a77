"""Removing, keeping and restoring a folder of the model repository, and replacing a file: each in one step."""

import os
import secrets
import shutil
import tempfile
from pathlib import Path

STAGING = ".staging"


def keep_copy(folder: Path) -> Path:
    """Keeps a version's files beside the repository's versions, by hard links; returns where.

    Raises:
        OSError: the file system refuses.
    """
    kept = _staging_name(folder)
    shutil.copytree(folder, kept, copy_function=os.link)
    return kept


def restore(kept: Path, folder: Path) -> None:
    """Puts a kept version back in place of what is there now.

    Raises:
        OSError: the file system refuses.
    """
    replaced = _staging_name(folder)
    if folder.exists():
        folder.rename(replaced)
    kept.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def remove(folder: Path) -> bool:
    """Removes a version: gone in one step, then its files are deleted. False when it wasn't there.

    Raises:
        OSError: the file system refuses.
    """
    doomed = _staging_name(folder)
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return False
    shutil.rmtree(doomed, ignore_errors=True)
    return True


def discard(kept: Path) -> None:
    """Deletes a kept copy."""
    shutil.rmtree(kept, ignore_errors=True)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file that is there already: whole or not at all, with its present mode.

    Raises:
        FileNotFoundError: it isn't there.
        OSError: the folder isn't writable, or the disk is full.
    """
    mode = path.stat().st_mode & 0o777
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _staging_name(folder: Path) -> Path:
    # A form that the exporters know: what a crash leaves of it they remove after a day.
    staging = folder.parent / STAGING
    staging.mkdir(exist_ok=True)
    return staging / f"{folder.name}.{os.getpid()}.{secrets.token_hex(4)}"
