"""The Python blocks of lrrunner/library/README.md."""

from __future__ import annotations

from tests.guides import ROOT, fenced_blocks

GUIDE = ROOT / "lrrunner" / "library" / "README.md"


def blocks(heading: str) -> list[str]:
    """The Python blocks below a heading, in order."""
    place = (str(GUIDE.relative_to(ROOT)), heading)
    return [block.text for block in fenced_blocks("python") if block[:2] == place]
