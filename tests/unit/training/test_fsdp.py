"""Which parts of a model are sharded one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lrrunner.training.fsdp import blocks, shard
from lrrunner.worker.building.build import weights_checksum
from tests.multiprocess.sweeps import small_model


class Tower(nn.Module):
    """An embedding, then a list of blocks, one of them without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4)])), nn.ReLU()])


def test_blocks_are_the_elements_of_the_outermost_lists() -> None:
    """Those that hold parameters; lists within blocks belong to the blocks."""
    model = Tower()
    assert blocks(model) == [model.layers[0]]
    assert blocks(small_model()) == []


def test_a_model_names_its_blocks_unless_the_launcher_does() -> None:
    """As Hugging Face models do."""
    model = Tower()
    vars(model)["_no_split_modules"] = ["Embedding"]
    assert blocks(model) == [model.embedding]
    assert blocks(model, ["Sequential"]) == [model.layers[0]]
    with pytest.raises(ValueError, match="no module is a DecoderLayer"):
        blocks(model, ["DecoderLayer"])


@pytest.mark.parametrize("tied", ["between blocks", "with the root"])
def test_a_parameter_of_two_blocks_is_refused_before_the_first_step(tied: str) -> None:
    """fully_shard finds out in the first forward pass only, on some rank."""
    model: Any = nn.ModuleDict({"first": nn.Linear(4, 4), "layers": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])})
    model["layers"][1].weight = (model["layers"][0] if tied == "between blocks" else model["first"]).weight
    with pytest.raises(ValueError, match="weight is shared between blocks"):
        shard(model, device=torch.device("cpu"))


def test_a_block_that_is_applied_twice_is_one() -> None:
    """As ALBERT does."""
    layer = nn.Linear(4, 4)
    assert blocks(nn.ModuleDict({"layers": nn.ModuleList([layer, layer])})) == [layer]


def test_the_checksum_sees_one_bit_of_any_weight_or_buffer() -> None:
    """Ranks that shard different models would train a mixture of them silently; also in half precision."""
    models = [nn.Sequential(small_model(), nn.BatchNorm1d(1)).bfloat16() for _ in range(2)]
    first, second = (weights_checksum(model) for model in models)
    assert first == second
    models[1].get_buffer("1.running_mean").add_(1.0)
    with torch.no_grad():
        models[0].get_parameter("0.2.bias").add_(1e-2)
    assert len({first, *map(weights_checksum, models)}) == 3
