"""``lrrunner --help``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from lrrunner.cli.main import run
from lrrunner.config.schema import Config

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def text(capsys: pytest.CaptureFixture[str]) -> str:
    """The help text, without the configuration below it."""
    assert run(["--help"]) == 0
    return capsys.readouterr().out.partition("== Configuration ==")[0]


def test_it_explains_every_group_and_every_key_in_one_line(text: str) -> None:
    """And names the guide that explains the rest."""
    explained = {line.split()[0] for line in text.splitlines() if "  " in line}
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name[0] not in "_."}
    assert groups - {"hydra", "accelerate"} <= explained
    assert {field.name for field in fields(Config)} <= explained
    assert "conf/README.md" in text


def test_it_lists_only_options_of_the_users(text: str) -> None:
    """Launch files are no group, and bases no options."""
    assert "data: custom, digits, mnist, text\n" in text
    assert "accelerate:" not in text
    assert "base_" not in text


def test_lines_fit_a_terminal(text: str) -> None:
    """Without the lists of options, which are as long as they are."""
    assert [line for line in text.splitlines() if len(line) > 86 and ": " not in line] == []


def test_a_group_of_the_users_own_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the directory that the command names."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: mine.Net\n")
    assert run(["--help", "--config-dir", str(tmp_path), "model=mine"]) == 0
    shown = capsys.readouterr().out
    assert "model: cnn, custom, gpt, hf_gpt2_tiny, hf_vit_tiny, lenet, mine, mlp\n" in shown
    assert "_target_: mine.Net" in shown
