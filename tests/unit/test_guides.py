"""The guides name what is there."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from lrrunner.config.command_line import parse_command_line
from lrrunner.config.composition import compose_points, expand_grid
from lrrunner.config.schema import Config
from tests.guides import GUIDES, ROOT, block, fenced_blocks

NOT_COMPOSED = {
    "lrrunner hydra/launcher=submitit_slurm --cfg hydra": "Hydra answers it, with the plugin of an extra",
}
"""Command lines in guides that describe no sweep, and why."""


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
    parts = [path.parent for path in (ROOT / "lrrunner").glob("*/*/__init__.py")]
    assert [
        path for path in parts if not re.search(rf"^\| .*\b{path.parent.name} \(.*`{path.name}/`", text, re.MULTILINE)
    ] == []
    named = re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", text)
    assert [name for name in named if not (ROOT / "lrrunner" / name).exists()] == []


def command_lines() -> dict[str, list[str]]:
    """Every command line of the guides that starts a sweep, and its arguments."""
    lines = [line.strip() for found in fenced_blocks("") for line in found.text.splitlines()]
    for guide in GUIDES:
        text = re.sub(r"```.*?```", "", guide.read_text(encoding="utf-8"), flags=re.DOTALL)
        lines += re.findall(r"`((?:lrrunner|accelerate launch|scripts/submit) [^`]+)`", text)
    found = {re.split(r"\s+#", line)[0]: sweep_arguments(line) for line in lines}
    return {line: arguments for line, arguments in found.items() if arguments is not None}


def sweep_arguments(line: str) -> list[str] | None:
    """Arguments of lrrunner in a command line; None for another command, and for output."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return None
    if "<" in line or "[" in words[:1] or not words:
        return None
    if words[0] == "lrrunner" and len(words) > 1:
        return words[1:]
    if words[:2] == ["accelerate", "launch"] and "lrrunner" in words:
        return words[words.index("lrrunner") + 1 :]
    if words[0] == "scripts/submit":
        script = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
        grid = [] if words[script].endswith("sweep.sbatch") else ["-m"]
        return [*grid, *words[script + 1 :]]
    return None


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that README.md asks for."""
    folder = tmp_path / "my_conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(block("README.md", "Your own model", language="yaml"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcomes(arguments: Sequence[str]) -> list[Config | Exception]:
    """What becomes of each job of a command line. ``model=...`` and ``=N`` stand for the reader's own."""
    command_line = parse_command_line([argument for argument in arguments if not argument.endswith(("=...", "=N"))])
    points = expand_grid(command_line) if command_line.multirun else [command_line.overrides]
    points = [tuple(override for override in point if not override.startswith("hydra")) for point in points]
    return list(compose_points(command_line, points, world_size=None))


@pytest.mark.usefixtures("readers_folder")
def test_every_command_line_of_a_guide_describes_a_sweep() -> None:
    """A key that was renamed, a value that was removed. Commands of other programs are not run."""
    found = command_lines()
    assert len(found) > 15
    assert NOT_COMPOSED.keys() <= found.keys()
    for line in found.keys() - NOT_COMPOSED.keys():
        assert subprocess.run(["bash", "-n", "-c", line], check=False, capture_output=True).returncode == 0, line
        command_line = parse_command_line(found[line])
        if command_line.hydra_flags:
            assert set(command_line.hydra_flags) <= {"--help", "--cfg", "--info"}, line
            continue
        for outcome in outcomes(found[line]):
            assert isinstance(outcome, Config), f"{line}\n{outcome}"


def test_a_line_with_an_unknown_key_does_not_pass() -> None:
    """The test above can fail."""
    (outcome,) = outcomes(sweep_arguments("lrrunner confirm.horizon=9   # steps") or [])
    assert "confirm.horizon is now train.num_steps" in str(outcome)
    assert sweep_arguments("suggested lr: 1.8e-02") is None
