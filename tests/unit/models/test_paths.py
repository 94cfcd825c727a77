"""Where the file of a load may lie."""

from pathlib import Path

import pytest

from control_plane.errors import FileMissing, InvalidInput, PathNotAllowed
from control_plane.models.paths import resolve_source


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    registry, checkpoints = tmp_path / "models", tmp_path / "checkpoints"
    for root in (registry, checkpoints):
        (root / "deep").mkdir(parents=True)
        (root / "deep" / "x.pth").write_bytes(b"x")
    (registry / "a.pth").write_bytes(b"a")
    (checkpoints / "b.pth").write_bytes(b"b")
    (tmp_path / "secret.pth").write_bytes(b"s")
    (registry / "inside.pth").symlink_to(registry / "a.pth")
    (registry / "across.pth").symlink_to(checkpoints / "b.pth")
    (registry / "outside.pth").symlink_to(tmp_path / "secret.pth")
    (registry / "out").symlink_to(tmp_path)
    (registry / "loop").symlink_to(registry / "loop")
    return registry, checkpoints


@pytest.mark.parametrize(
    ("file_path", "found"),
    [
        ("a.pth", "models/a.pth"),
        ("models/a.pth", "models/a.pth"),
        ("./models/../models/a.pth", "models/a.pth"),
        ("checkpoints/b.pth", "checkpoints/b.pth"),
        ("deep/x.pth", "models/deep/x.pth"),
        ("models/deep", "models/deep"),
        ("inside.pth", "models/a.pth"),
        ("across.pth", "checkpoints/b.pth"),
        ("deep/../a.pth", "models/a.pth"),
    ],
)
def test_path_inside_is_found(roots: tuple[Path, Path], file_path: str, found: str) -> None:
    assert resolve_source(file_path, roots) == roots[0].parent.resolve() / found


def test_absolute_path_inside_is_found(roots: tuple[Path, Path]) -> None:
    assert resolve_source(str(roots[1] / "b.pth"), roots) == (roots[1] / "b.pth").resolve()


@pytest.mark.parametrize(
    "file_path",
    ["../secret.pth", "models/../secret.pth", "outside.pth", "out/secret.pth", "models/outside.pth", "/etc/passwd",
     "../nothing.pth", "models", ".", "deep/../../secret.pth"],
)  # fmt: skip
def test_path_outside_is_refused(roots: tuple[Path, Path], file_path: str) -> None:
    with pytest.raises(PathNotAllowed):
        resolve_source(file_path, roots)


@pytest.mark.parametrize(
    "file_path", ["nothing.pth", "models/nothing.pth", "checkpoints/nothing.pth", "loop"]
)
def test_missing_file_is_named(roots: tuple[Path, Path], file_path: str) -> None:
    with pytest.raises(FileMissing, match=file_path):
        resolve_source(file_path, roots)


@pytest.mark.parametrize("file_path", ["", "  ", "a\0b"])
def test_malformed_path_is_invalid(roots: tuple[Path, Path], file_path: str) -> None:
    with pytest.raises(InvalidInput):
        resolve_source(file_path, roots)
