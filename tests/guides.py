"""The fenced blocks of README.md and of the guides in the folders."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
GUIDES = [ROOT / "README.md", *sorted(path for path in ROOT.glob("*/**/README.md") if ".venv" not in path.parts)]


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        guide: Path of the file, from the repository's root.
        heading: Of the section it is in.
        number: Its place among the blocks of this language in the section, from 0.
        language: As written after the fence; empty for commands and output.
        text: What is inside.
    """

    guide: str
    heading: str
    number: int
    language: str
    text: str


def fenced_blocks(language: str) -> list[Block]:
    """All blocks in a language, in order."""
    found: list[Block] = []
    for path in GUIDES:
        guide, heading, number = str(path.relative_to(ROOT)), "", 0
        lines: list[str] | None = None  # of the block that is open
        opened = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("```") and lines is None:
                lines, opened = [], line.removeprefix("```").strip()
            elif line.startswith("```") and lines is not None:
                if opened == language:
                    found.append(Block(guide, heading, number, language, "\n".join(lines) + "\n"))
                    number += 1
                lines = None
            elif lines is not None:
                lines.append(line)
            elif line.startswith("#"):
                heading, number = line.lstrip("# "), 0
    return found


def block(guide: str, heading: str, number: int = 0, *, language: str = "python") -> str:
    """The text of one block."""
    (text,) = [found.text for found in fenced_blocks(language) if found[:3] == (guide, heading, number)]
    return text
