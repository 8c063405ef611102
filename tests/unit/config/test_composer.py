"""Composition of many points: what Hydra would compose for each of them, read from files once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hydra import compose
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrrunner.config import composer, composition
from lrrunner.config.command_line import CommandLine
from lrrunner.config.composition import compose_points, expand_grid
from lrrunner.config.schema import Config
from lrrunner.errors import ConfigError

POINTS = (
    (),
    ("sweep.seed=3",),
    ("sweep.seed=4", "model=cnn", "optimizer=sgd", "optimizer.lr=0.5"),
    ("+model.dropout=0.5", "model.dropout=0.1"),
    ("model.dropout=0.1", "+model.dropout=0.5"),
    ("++sweep.seed=5", "~data.val"),
    ("~data.val", "+data.val={_target_: mine.dataset}"),
    ("tracking.tags={a: 1}", "+tracking.tags.b=2", "tracking.tags.a=${sweep.seed}"),
    ("data.dataloader={num_workers: 2}", "run.dir=${oc.env:HOME}/x"),
    ("experiment=mnist_lenet_luz", "sweep.end_lr=0.5", "model=mlp"),
    ("loss=null",),
    ("sweep=null",),
    ("model=nope", "sweep.seed=1"),
    ("sweep.seed=x",),
    ("sweep.seed=1,2",),
    ("sweep.nope=1",),
    ("sweep.seed@data=1",),
    ("sweep.seed==",),
    ("~sweep.nope",),
    ("hydra.run.dir=.", "sweep.seed=1"),
    ("hydra.nope=1",),
    ("+sweep.seed=1",),
)
"""Overrides of every kind, right and wrong ones."""


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The overrides of every composition that reads files, from now on."""
    found: list[list[str]] = []

    def recording_compose(name: str, overrides: list[str]) -> object:
        found.append(overrides)
        return compose(name, overrides=overrides)

    monkeypatch.setattr(composer, "compose", recording_compose)
    return found


def as_composed_by_hydra(overrides: Sequence[str]) -> object:
    """What Hydra itself gives, as text that can be compared."""
    try:
        return OmegaConf.to_yaml(compose("config", overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return type(error), str(error), str(error.__cause__)


def test_every_point_is_what_hydra_composes() -> None:
    """A later point must not see what an earlier one has changed."""
    with composition._composer(CommandLine()) as compose_with:
        by_hydra = {overrides: as_composed_by_hydra(overrides) for overrides in POINTS}
        for overrides in (*POINTS, *reversed(POINTS)):
            outcome = compose_with(overrides)
            found: object
            if isinstance(outcome, Exception):
                found = type(outcome), str(outcome), str(outcome.__cause__)
            else:
                found = OmegaConf.to_yaml(outcome)
            assert found == by_hydra[overrides], overrides


def test_a_grid_over_values_reads_its_files_once(read: list[list[str]]) -> None:
    """A batch of 125 points had not finished composing after 400 s on a busy machine."""
    command_line = CommandLine(overrides=("optimizer=sgd,adamw", "sweep.seed=range(20)", "+tracking.tags.a=b"))
    configs = compose_points(command_line, expand_grid(command_line), world_size=None)
    assert [config.sweep.seed for config in configs if isinstance(config, Config)] == [*range(20), *range(20)]
    assert read == [["optimizer=sgd"], ["optimizer=adamw"]]


def test_an_error_in_every_point_reads_the_files_of_each_choice_once(read: list[list[str]]) -> None:
    """To find the bad override, each one is tried on its own: 2000 compositions for a hundred such points."""
    command_line = CommandLine(overrides=("optimizer=sgd,adamw", "sweep.seed=range(10)", "sweep.nope=1"))
    outcomes = compose_points(command_line, expand_grid(command_line), world_size=None)
    errors = [outcome.errors for outcome in outcomes if isinstance(outcome, ConfigError)]
    assert errors == [("sweep.nope is not a configuration key; did you mean sweep.mode?",)] * 20
    assert read == [["optimizer=sgd"], ["optimizer=adamw"]]
