"""Removing, keeping and restoring a version's folder in the model repository, each in one step."""

import os
import secrets
import shutil
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


def _staging_name(folder: Path) -> Path:
    # A form that the exporters know: what a crash leaves of it they remove after a day.
    staging = folder.parent / STAGING
    staging.mkdir(exist_ok=True)
    return staging / f"{folder.name}.{os.getpid()}.{secrets.token_hex(4)}"
