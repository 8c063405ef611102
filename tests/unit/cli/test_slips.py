"""One slip of the hand gives one message that says what to write instead, and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrrunner.cli.main import run
from lrrunner.worker.building.instantiation import check_target

SLIPS = {
    "optimizer=sgd,adamw": "for a batch of runs, write lrrunner -m optimizer=sgd,adamw",
    "optimizer.lr=1e-3,1e-2": "for a batch of runs, write lrrunner -m optimizer.lr=1e-3,1e-2",
    "lr=0.1": "did you mean optimizer.lr?",
    "optimizer.learning_rate=0.1": "did you mean optimizer.lr?",
    "batch_size=64": "did you mean data.global_batch_size?",
    "num_steps=50": "did you mean sweep.num_steps or train.num_steps?",
    "gpus=2": "did you mean launch.num_processes?",
    "optimzer=sgd": "did you mean optimizer?",
    "model=mlpp": "model must be one of cnn, ",
    "sweep.num_steps=1e3": "sweep.num_steps must be a whole number, got 1e3; write 1000",
    "sweep.num_steps=many": "sweep.num_steps must be a whole number, got many; correct the value",
    "objective={_target_: mine.f, _partial_: true}": "choose objective=custom, and give objective._target_=...",
    "accelerate=cpu2": "give launch.config_file=<path of the file>",
    "optimizer.lr": "write key=value",
    "--confg-dir": "--confg-dir is not an option; did you mean --config-dir?",
    "--num_steps=50": "keys are written without dashes",
    "--lr": "--lr is not an option; keys are written without dashes",
    "--config-dir": "--config-dir must be followed by a directory, got nothing",
    "train.py": "train.py is a script, which lrrunner does not run; name its parts with _target_ keys",
    "confirm=true": "confirm is a section, got true; set one of its keys: confirm.enabled, confirm.budget_steps",
    "hydra.run.dir=x": "hydra.run.dir has no effect in a single run, got hydra.run.dir=x; give run.dir=...",
    "hydra/launcher=submitit_slurm": "hydra.launcher has no effect in a single run, got hydra/launcher=submitit_slurm; "
    "for a batch of runs, write lrrunner -m",
    "--config-path=x": "name your own directory with --config-dir",
}


@pytest.mark.parametrize("argument", SLIPS)
def test_a_slip_is_answered_with_what_to_write(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line about it, no traceback, nothing started."""
    assert run([argument]) == 2
    captured = capsys.readouterr()
    assert SLIPS[argument] in captured.err
    assert "(1 error)" in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("lrrunner.tasks.models.Mpl", "did you mean lrrunner.tasks.models.Mlp?"),
        ("torch.optim.AdmW", "did you mean torch.optim.AdamW?"),
        ("nowhere.to.be.found", "correct the name, or run where it is"),
    ],
)
def test_a_target_that_cannot_be_imported_may_be_misspelt(target: str, hint: str) -> None:
    """The module knows its names."""
    errors: list[str] = []
    assert not check_target("model", {"_target_": target}, errors)
    assert errors[0].startswith(f"model._target_ must be importable, got {target} (")
    assert errors[0].endswith(hint)


def test_a_module_of_the_users_that_cannot_be_imported_names_what_to_correct(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is right; the file is not."""
    (tmp_path / "slip_syntax.py").write_text("x = 1\ndef broken(:\n")
    (tmp_path / "slip_import.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    errors: list[str] = []
    for target in ("slip_syntax.Net", "slip_import.Net", "Net"):
        check_target("model", {"_target_": target}, errors)
    assert errors[0].endswith(f"; correct {tmp_path}/slip_syntax.py, line 2")
    assert errors[1].endswith("; install no_such_package_at_all, or correct the import in slip_import.py:1 in <module>")
    assert errors[2].endswith("; name its module too, mine.Net for mine.py, say")


def test_an_experiment_that_is_not_found_leads_to_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """One's own lie elsewhere; a packaged one may be misspelt."""
    assert run(["experiment=mynet"]) == 2
    assert capsys.readouterr().err.endswith("; got mynet; give the folder of your own with --config-dir\n")
    assert run(["experiment=char_gptt"]) == 2
    assert capsys.readouterr().err.endswith("; got char_gptt; did you mean char_gpt?\n")


def test_a_wrong_option_in_an_experiment_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message said that the experiment itself must be one of the models."""
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    file.write_text("# @package _global_\ndefaults: [override /model: nope]\n")
    assert run(["--config-dir", str(tmp_path), "experiment=mine"]) == 2
    message = capsys.readouterr().err
    assert "- model must be one of cnn, custom, " in message
    assert message.endswith("; got nope (in experiment/mine)\n")


def test_a_package_of_an_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip has to be told."""
    monkeypatch.setattr("lrrunner.worker.building.instantiation.EXTRAS", {"no_such_package": "hf"})
    errors: list[str] = []
    assert not check_target("model", {"_target_": "no_such_package.Model"}, errors)
    assert errors[0].endswith("install it with: pip install 'lrrunner[hf]'")
