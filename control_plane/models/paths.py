"""Where the file of a load request may lie: inside the model registry or the committed checkpoints, nowhere else."""

from collections.abc import Sequence
from pathlib import Path

from control_plane.errors import FileMissing, InvalidInput, PathNotAllowed


def resolve_source(file_path: str, roots: Sequence[Path]) -> Path:
    """Finds the file (or folder) of a load request.

    Args:
        file_path: Relative to the first root, or starting with the name of a root's own folder (`models/x.pth`,
            `checkpoints/x.pth`), or absolute.
        roots: The folders that files may lie in; relative paths are tried in this order.

    Returns:
        The real path, with all links resolved.

    Raises:
        InvalidInput: the path is empty or holds a null character.
        PathNotAllowed: it leads outside the roots, directly or through a link.
        FileMissing: nothing is there.
    """
    if not file_path.strip() or "\0" in file_path:
        raise InvalidInput(
            "file_path must name a file.", expected="a path under the model registry", got=repr(file_path)
        )
    real_roots = [root.resolve() for root in roots]
    given = Path(file_path)
    outside = False
    for candidate in _candidates(given, roots):
        try:
            real = candidate.resolve()
        except (OSError, RuntimeError):
            continue
        if not any(real.is_relative_to(root) and real != root for root in real_roots):
            outside = True
        elif real.exists():
            return real
    names = " or ".join(f"{root.name}/" for root in roots)
    if outside:
        raise PathNotAllowed(
            f"file_path leads outside {names}.",
            expected=f"a path under {names}, also after links are followed",
            got=file_path,
            remedy=f"Copy the file into {roots[0].name}/ and name it relative to that folder.",
        )
    raise FileMissing(
        f"Nothing lies at {file_path}.",
        expected=f"a file under {names}",
        got=file_path,
        remedy=f"Put the file into {roots[0].name}/, or correct file_path.",
    )


def _candidates(given: Path, roots: Sequence[Path]) -> list[Path]:
    if given.is_absolute():
        return [given]
    named = [root / Path(*given.parts[1:]) for root in roots if given.parts[:1] == (root.resolve().name,)]
    return [*named, roots[0] / given]
