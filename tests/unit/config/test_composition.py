"""Composition: defaults, experiments, command line, and files of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lrrunner.config.command_line import CommandLine
from lrrunner.config.composition import compose_job
from lrrunner.config.schema import batch_summary
from lrrunner.errors import ConfigError
from tests.composing import composed, errors_of

ROOT = Path(__file__).resolve().parents[3]


def test_an_unset_variable_is_named() -> None:
    """An interpolation that fails is the user's typo or a missing export."""
    (error,) = errors_of("tracking.run_name=${oc.env:LRRUNNER_NOT_SET}")
    assert error.startswith("tracking.run_name cannot be resolved")
    assert "LRRUNNER_NOT_SET" in error


def test_a_missing_config_directory_is_named(tmp_path: Path) -> None:
    """Hydra only warns about it."""
    with pytest.raises(ConfigError, match="--config-dir must be a directory"):
        composed("--config-dir", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_packaged_experiment_composes(path: Path) -> None:
    """An experiment that does not compose is found by a test, not by a user."""
    target = composed(f"experiment={path.stem}", world_size=2).model["_target_"]
    assert target.startswith(("lrrunner.tasks.", "transformers."))


@pytest.mark.parametrize("group", ["model", "data", "loss", "objective", "optimizer"])
def test_every_part_group_has_a_custom_option(group: str) -> None:
    """A user's own part must not inherit the arguments of a packaged one."""
    content = yaml.safe_load((ROOT / "conf" / group / "custom.yaml").read_text())
    free = content["train"] if group == "data" else content
    assert {key: value for key, value in free.items() if key != "_partial_"} == {"_target_": "???"}


def test_command_line_beats_experiment_beats_default() -> None:
    """`_self_` at the wrong place silently undoes experiments."""
    job = composed("experiment=mnist_lenet_luz", "sweep.end_lr=0.5")
    assert job.sweep.start_lr == 1e-6
    assert job.sweep.end_lr == 0.5
    assert job.suggestion.method == "minimum"
    assert job.optimizer["_target_"] == "torch.optim.Adam"
    assert composed("experiment=mnist_lenet_luz", "optimizer=sgd").optimizer["_target_"] == "torch.optim.SGD"


def test_a_users_own_experiment_needs_no_change_of_the_package(tmp_path: Path) -> None:
    """The example of the contract, from a directory of the user's."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        """# @package _global_
defaults: [override /model: custom, override /data: custom, override /loss: custom, override /optimizer: custom]
model: {_target_: mine.Net, width: 64}
data: {train: {_target_: mine.dataset, split: train}, val: {_target_: mine.dataset, split: val}, global_batch_size: 256}
loss: {_target_: torch.nn.CrossEntropyLoss}
optimizer: {_target_: torch.optim.AdamW, _partial_: true, lr: 1.0e-3, weight_decay: 0.05}
"""
    )
    job = composed("--config-dir", str(tmp_path), "experiment=mine", "model.width=32", world_size=2)
    assert job.model == {"_target_": "mine.Net", "width": 32}
    assert job.data.train == {"_target_": "mine.dataset", "split": "train"}
    assert job.optimizer["weight_decay"] == 0.05


def test_an_option_that_the_experiment_undoes_is_refused(tmp_path: Path) -> None:
    """A run called optimizer=sgd that trains with AdamW would be a silent wrong answer."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [override /optimizer: custom]\n"
        "optimizer: {_target_: torch.optim.AdamW, _partial_: true, lr: 1.0e-3}\n"
    )
    mine = ("--config-dir", str(tmp_path), "experiment=mine")
    (error,) = errors_of(*mine, "optimizer=sgd")
    assert error == (
        "optimizer=sgd has no effect, since a configuration file sets optimizer._target_=torch.optim.AdamW itself; "
        "leave optimizer out of that file, or give optimizer._target_=..."
    )
    assert composed(*mine, "optimizer=custom").optimizer["_target_"] == "torch.optim.AdamW"
    own = composed(*mine, "optimizer=sgd", "optimizer._target_=torch.optim.SGD")
    assert own.optimizer["_target_"] == "torch.optim.SGD"
    assert composed("experiment=digits_cnn_sgd", "optimizer=adamw").optimizer["_target_"] == "torch.optim.AdamW"


def test_an_error_in_an_experiment_file_is_reported_with_its_file(tmp_path: Path) -> None:
    """Hydra reports the key `experiment`, which is correct."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "bad.yaml").write_text("# @package _global_\nsweep: {num_step: 3}\n")
    (tmp_path / "experiment" / "bare.yaml").write_text("sweep: {num_steps: 3}\n")
    (tmp_path / "experiment" / "broken.yaml").write_text("sweep: {num_steps: 3}}\n")

    def message(*overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            composed("--config-dir", str(tmp_path), *overrides)
        (error,) = caught.value.errors
        return error

    assert message("experiment=bad") == (
        "sweep.num_step is not a configuration key; did you mean sweep.num_steps? (in experiment/bad)"
    )
    assert message("experiment=bare") == (
        "experiment=bare names a file without a package; begin it with: # @package _global_"
    )
    assert message("experiment=broken").startswith("experiment=broken reads a file that is not valid YAML:")
    assert "bad, bare, broken, char_gpt" in message("experiment=none_such")


def test_the_split_of_the_batch_is_one_sentence() -> None:
    """An LR has a meaning only together with it."""
    job = composed("train.accumulation_steps=2", world_size=4)
    assert batch_summary(job, world_size=4) == "4 ranks, global batch 64 = 4 ranks x 8 x 2 accumulation steps"
    one = composed()
    assert batch_summary(one, world_size=1) == "1 rank, global batch 64 = 1 rank x 64 x 1 accumulation step"


def test_mlflows_own_variables_are_the_defaults_of_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a site with one server they are set for everyone; an override goes first."""
    assert compose_job(CommandLine()).tracking.uri == "sqlite:///mlflow.db"
    assert compose_job(CommandLine()).tracking.experiment == "lrrunner"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team: a, b")
    tracking = compose_job(CommandLine()).tracking
    assert (tracking.uri, tracking.experiment) == ("http://host:5000", "team: a, b")
    tracking = compose_job(CommandLine(overrides=("tracking.experiment=mine",))).tracking
    assert (tracking.uri, tracking.experiment) == ("http://host:5000", "mine")
