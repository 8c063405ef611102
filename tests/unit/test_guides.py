"""The guides name what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [ROOT / "README.md", *sorted(path for path in ROOT.glob("*/**/README.md") if ".venv" not in path.parts)]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_guide_lead_somewhere(guide: Path) -> None:
    """A guide that was moved, or a benchmark that was renamed."""
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", guide.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (guide.parent / link).exists()]
    assert not missing


def test_the_tour_of_the_package_names_every_folder_and_only_files_that_exist() -> None:
    """What a newcomer reads first."""
    text = (ROOT / "lrrunner" / "README.md").read_text(encoding="utf-8")
    folders = {path.name for path in (ROOT / "lrrunner").iterdir() if (path / "__init__.py").exists()}
    assert {name for name in folders if not re.search(rf"^\| .*\b{name}\b", text, re.MULTILINE)} == set()
    named = re.findall(r"`((?:[a-z_]+/)?[a-z_]+\.py)`", text)
    assert [name for name in named if not (ROOT / "lrrunner" / name).exists()] == []
