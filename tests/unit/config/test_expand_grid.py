"""How a grid is expanded into points."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrrunner.config.command_line import parse_command_line
from lrrunner.config.composition import expand_grid, unescaped_override
from lrrunner.errors import ConfigError


def test_grids_are_expanded_as_hydra_does(tmp_path: Path) -> None:
    """Lists, ranges, globs (also over the user's own directory), and values that are lists."""
    assert expand_grid(parse_command_line(["model=mlp,cnn", "sweep.seed=range(2)", "x=1"])) == [
        ("model=mlp", "sweep.seed=0", "x=1"), ("model=mlp", "sweep.seed=1", "x=1"),
        ("model=cnn", "sweep.seed=0", "x=1"), ("model=cnn", "sweep.seed=1", "x=1"),
    ]  # fmt: skip
    assert expand_grid(parse_command_line(["optimizer=glob(ada*)"])) == [
        ("optimizer=adagrad",), ("optimizer=adam",), ("optimizer=adamw",),
    ]  # fmt: skip
    assert expand_grid(parse_command_line(["model.hidden_sizes=[32],[64,64]"])) == [
        ("model.hidden_sizes=[32]",), ("model.hidden_sizes=[64,64]",),
    ]  # fmt: skip
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine_a.yaml").touch()
    (tmp_path / "experiment" / "mine_b.yaml").touch()
    points = expand_grid(parse_command_line(["--config-dir", str(tmp_path), "experiment=glob(mine_*)"]))
    assert points == [("experiment=mine_a",), ("experiment=mine_b",)]


def test_overrides_that_cannot_be_expanded_are_reported() -> None:
    """All of it at once."""
    with pytest.raises(ConfigError) as caught:
        expand_grid(parse_command_line(["model", "a=b=c[", "sweep.seed=1,2"]))
    assert [error.partition(" is not an override")[0] for error in caught.value.errors] == ["'model'", "'a=b=c['"]
    with pytest.raises(ConfigError, match="the grid must have a point, got none from optimizer="):
        expand_grid(parse_command_line(["optimizer=glob(nothing*)"]))
    for sweep in ("optimizer.lr=interval(0,1)", "data.global_batch_size=16,range(32,34)"):
        with pytest.raises(ConfigError, match="the grid cannot be expanded"):
            expand_grid(parse_command_line([sweep]))


@pytest.mark.parametrize(
    "word",
    [
        "tracking.uri=http://ann:CAN:ARY123@host:5000/a",
        "tracking.run_name=a b",
        "+model.text='x, y'",
        '+model.text="it\'s (a) [test]"',
        "model.hidden_sizes=[32,64]",
    ],
)
def test_a_point_shows_its_overrides_as_they_were_typed(word: str) -> None:
    """The sweeper's backslashes make commands unreadable, and hide passwords from whoever looks for them."""
    ((point,),) = expand_grid(parse_command_line([word]))
    assert unescaped_override(point) == word
