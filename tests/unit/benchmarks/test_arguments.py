"""Every script explains itself without running."""

import sys
from pathlib import Path

import pytest

from benchmarks.arguments import no_options

FOLDER = Path(__file__).parent.parent.parent.parent / "benchmarks"
SCRIPTS = [path for path in sorted(FOLDER.rglob("*.py")) if 'if __name__ == "__main__":' in path.read_text()]


@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--full", 2), ("data_plane", 2)])
def test_script_without_options_takes_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, status: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["script", option])
    with pytest.raises(SystemExit) as ended:
        no_options("What it measures.")
    assert ended.value.code == status
    assert ("What it measures." in capsys.readouterr().out) is (status == 0)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_reads_its_command_line(path: Path) -> None:
    text = path.read_text()
    assert any(reading in text for reading in ("no_options(__doc__)", "parse_args()", "sys.argv"))
