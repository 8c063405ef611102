"""The Python blocks of lrrunner/library/README.md."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[3] / "lrrunner" / "library" / "README.md"


def blocks(heading: str) -> list[str]:
    """The Python blocks below a heading, in order."""
    section = GUIDE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)
