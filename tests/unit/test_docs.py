"""The documents say what the code does: each metric, setting and link."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

from control_plane import __version__
from control_plane.app import create_app
from control_plane.settings import Settings
from control_plane.telemetry import metrics

ROOT = Path(__file__).parent.parent.parent
DECLARED = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("metric", DECLARED, ids=lambda metric: metric.describe()[0].name)
def test_metric_is_documented_with_its_labels(metric: MetricWrapperBase) -> None:
    name = metric.describe()[0].name + ("_total" if isinstance(metric, Counter) else "")
    rows = [line for line in (ROOT / "docs/metrics.md").read_text().splitlines() if f"`{name}`" in line]
    assert rows, name
    for label in metric._labelnames:
        assert any(label in row for row in rows), (name, label)


def test_generated_files_are_current() -> None:
    answer = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_document_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for target in re.findall(r"`?((?:docs|config|examples|benchmarks)/[\w./-]+\.(?:md|py|yaml|json))", text):
        assert (ROOT / target).exists(), f"{page.name} names {target}"


def test_route_is_documented() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    page = (ROOT / "docs/api.md").read_text()
    missing = [
        f"{method.upper()} {path}"
        for path, methods in paths.items()
        for method in methods
        if f"`{method.upper()} {path}`" not in page
    ]
    assert missing == []


def test_changelog_has_the_packages_version() -> None:
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
