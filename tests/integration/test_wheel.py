"""What is installed is what was tested."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_carries_configuration_and_types_and_runs_from_anywhere(tmp_path: Path) -> None:
    """conf/ lies outside the package in the repository and inside it in the wheel."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("lrrunner", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, "wheel", *options, str(source)], check=True)
    (wheel,) = tmp_path.glob("lrrunner-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"lrrunner/py.typed", "lrrunner/conf/config.yaml", "lrrunner/conf/experiment/digits_mlp.yaml"} <= names
    assert "lrrunner/integrations/transformers.py" in names
    assert {"lrrunner/tasks/digits.npz", "lrrunner/tasks/digits_notice.md"} <= names
    assert not any(name.startswith(("tests/", "scripts/")) for name in names)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import lrrunner; from lrrunner.config.command_line import parse_command_line as parse; "
        "from lrrunner.config.composition import compose_job; from lrrunner.tasks.data import digits; "
        "print(lrrunner.__file__, compose_job(parse(['model=cnn'])).model['_target_'], len(digits(split='train')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.split() == [str(tmp_path / "site/lrrunner/__init__.py"), "lrrunner.tasks.models.Cnn", "1437"]
