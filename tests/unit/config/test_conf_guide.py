"""conf/README.md is the one place that explains every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lrrunner.config.key_names import known_keys
from lrrunner.core.suggestion_rules import RULES

ROOT = Path(__file__).resolve().parents[3]
GUIDE = (ROOT / "conf" / "README.md").read_text(encoding="utf-8")
GROUPS = ("experiment", "model", "data", "loss", "objective", "optimizer")


def test_the_guide_explains_every_key_and_no_other() -> None:
    """A key that is added without its line in the guide cannot be found by a reader."""
    keys = known_keys()
    leaves = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    explained = {row.split("|")[1].strip().strip("`") for row in GUIDE.splitlines() if row.startswith("| `")}
    assert leaves <= explained
    assert explained - leaves == {"experiment", "data", *RULES}, "groups and rules"


@pytest.mark.parametrize("group", GROUPS)
def test_the_guide_lists_every_option_of_a_group(group: str) -> None:
    """An option is a file."""
    (row,) = [line for line in GUIDE.splitlines() if re.match(rf"\| `{group}` \| (a whole|builds|`\(model)", line)]
    options = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
    assert options <= set(re.findall(r"`([a-z0-9_]+)`", row.split("|")[3]))
