"""The configuration as dataclasses, and as plain values."""

from __future__ import annotations

import pytest
import yaml

from lrrunner.config.schema import Config
from lrrunner.system.plain_values import from_plain, to_plain
from tests.composing import composed

DATALOADER = """\
num_workers: 0
pin_memory: null
persistent_workers: false
prefetch_factor: null
"""


def test_plain_values_keep_the_order_of_the_schema_and_names_of_choices() -> None:
    """config.yaml is read by people and by scripts."""
    plain = to_plain(composed("train.mixed_precision=bf16", "sweep.monitor=val", "+model.sizes=[1,2]"))
    assert yaml.safe_dump(plain["data"]["dataloader"], sort_keys=False) == DATALOADER
    assert (plain["train"]["mixed_precision"], plain["sweep"]["monitor"]) == ("bf16", "val")
    assert plain["model"]["sizes"] == [1, 2]
    assert list(plain)[:6] == ["model", "data", "loss", "objective", "optimizer", "optimizer_groups"]


def test_a_configuration_survives_its_way_through_a_file() -> None:
    """The mailbox and config.yaml hold plain values."""
    config = composed("experiment=char_gpt", "train.schedule=cosine", "+tracking.tags.team=vision")
    assert from_plain(Config, to_plain(config)) == config


@pytest.mark.parametrize("name", ["o'brien ${x}", r"a\${b}", r"back\slash $c"])
def test_a_resolved_value_is_not_resolved_again(name: str) -> None:
    """A directory may be called like an interpolation."""
    plain = to_plain(composed())
    plain["run"]["dir"] = name
    assert from_plain(Config, plain).run.dir == name
