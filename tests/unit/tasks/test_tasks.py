"""Packaged datasets, models and objectives."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lrrunner.tasks import data
from lrrunner.tasks.models import CharGpt, Cnn, LeNet, Mlp
from lrrunner.tasks.objectives import ModelLoss, Supervised


def idx(array: np.ndarray) -> bytes:
    """An IDX file of bytes, compressed."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny MNIST in a folder, with the package's checksums set to its own."""
    images = np.arange(3 * 28 * 28).reshape(3, 28, 28) % 256
    contents = [idx(images), idx(np.array([7, 0, 3]))]
    named = []
    for old, content in zip(data.MNIST_FILES["train"], contents, strict=True):
        (tmp_path / old.name).write_bytes(content)
        named.append(data.MnistFile(old.name, hashlib.sha256(content).hexdigest()))
    monkeypatch.setitem(data.MNIST_FILES, "train", tuple(named))
    return tmp_path


def test_mnist_reads_the_original_files(files: Path) -> None:
    """Big-endian headers, bytes to [0, 1], one channel."""
    dataset = data.mnist(root=str(files), split="train")
    image, label = dataset[1]
    assert len(dataset) == 3
    assert image.shape == (1, 28, 28)
    assert image[0, 0, 0].item() == pytest.approx((28 * 28 % 256) / 255)
    assert label.item() == 0


def test_a_damaged_mnist_file_is_refused(files: Path) -> None:
    """A truncated download would otherwise be trained on."""
    path = files / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"must have the SHA-256 checksum .* delete it and fetch it again"):
        data.mnist(root=str(files), split="train")


def test_missing_mnist_files_are_downloaded_once_and_verified(files: Path, tmp_path: Path) -> None:
    """From any URL; the file appears when it is complete."""
    target = tmp_path / "fresh" / "folder"
    dataset = data.mnist(root=str(target), split="train", url=f"file://{files}/")
    assert len(dataset) == 3
    names = {path.name for path in target.iterdir() if path.suffix == ".gz"}
    assert names == {"train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"}
    again = data.mnist(root=str(target), split="train", url="file:///nowhere/")
    assert torch.equal(again.tensors[0], dataset.tensors[0])


def test_missing_mnist_files_are_named_where_there_is_no_network(tmp_path: Path) -> None:
    """The message says which files are missing and where to put them."""
    with pytest.raises(FileNotFoundError) as caught:
        data.mnist(root=str(tmp_path / "mnist"), split="val", url="file:///nowhere/")
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", str(tmp_path / "mnist"), "data.root"):
        assert name in str(caught.value)


@pytest.mark.parametrize("load", [data.digits, lambda split: data.text(root=None, split=split, context_length=8)])
def test_an_unknown_split_is_refused(load: object) -> None:
    """The valid ones are listed."""
    with pytest.raises(ValueError, match="split must be one of train, val; got test"):
        load(split="test")  # type: ignore[operator]


def test_digits_are_split_without_overlap() -> None:
    """All 1,797 images are in one of the two splits."""
    train, val = (data.digits(split=split).tensors[0] for split in ("train", "val"))
    assert (len(train), len(val)) == (1437, 360)
    assert len({tuple(row.tolist()) for row in torch.cat([train, val])}) == 1797
    assert float(train.max()) == 1.0


@pytest.mark.parametrize(
    ("split", "inputs", "targets"),
    [
        (
            "train",
            "e4d8bdbccd143867ba087588b51454f82fc6b54657677e9255060efa41ef6152",
            "f3013980fdfb2ba3a068d608da78dc7659953516f20f123c379b6a4741d686a7",
        ),
        (
            "val",
            "09d7105524be1236ea5ada4cc54c0359ad61589e0d1409b31bd6bf6cad8f0cb2",
            "7323f6e1154dacb0e6f4a73e53f60074e1956b6498cca186d030e07a7ce38ee6",
        ),
    ],
)
def test_embedded_digits_are_those_of_scikit_learn(split: str, inputs: str, targets: str) -> None:
    """Checksums are those of load_digits: sweeps recorded on digits stay reproducible to the last bit."""
    for as_image, shape in ((False, (64,)), (True, (1, 8, 8))):
        dataset = data.digits(split=split, as_image=as_image)
        assert dataset[0][0].shape == shape
        found = [hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in dataset.tensors]
        assert found == [inputs, targets]


def test_text_targets_are_the_inputs_one_character_later(tmp_path: Path) -> None:
    """Windows do not overlap; characters outside ASCII become question marks."""
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij" * 2 + "é", encoding="utf-8")
    windows = data.text(root=str(path), split="train", context_length=4)
    inputs, targets = windows[1]
    assert len(windows) == 4
    assert bytes(inputs.tolist()) == b"efgh"
    assert bytes(targets.tolist()) == b"fghi"


def test_models_return_the_documented_shapes() -> None:
    """LeNet is the luz article's: 1600 features after two convolutions and poolings."""
    assert Mlp(in_features=64, hidden_features=8, num_hidden=2, num_classes=10)(torch.zeros(3, 64)).shape == (3, 10)
    assert Cnn(in_channels=1, width=4, num_classes=10)(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    lenet = LeNet(dropout=0.1, num_classes=10)
    assert lenet(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert sum(p.numel() for p in lenet.parameters()) == 320 + 18_496 + 204_928 + 1_290
    gpt = CharGpt(vocab_size=11, context_length=6, width=8, num_layers=1, num_heads=2)
    assert gpt(torch.zeros(3, 6, dtype=torch.int64)).shape == (3, 11, 6)


def test_the_gpt_does_not_see_the_future() -> None:
    """A changed last character changes the scores of the last position only."""
    gpt = CharGpt(vocab_size=11, context_length=6, width=8, num_layers=1, num_heads=2)
    first = torch.tensor([[1, 2, 3, 4, 5, 6]])
    second = torch.tensor([[1, 2, 3, 4, 5, 7]])
    same = torch.isclose(gpt(first), gpt(second)).all(dim=1)[0]
    assert same.tolist() == [True] * 5 + [False]


def test_objectives_read_their_batches() -> None:
    """(inputs, target) with a criterion; keyword arguments for models that return their own loss."""

    class OwnLoss(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (x - y).square().mean()}

    batch = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([3.0, 2.0])}
    assert ModelLoss()(OwnLoss(), batch).item() == 2.0
    supervised = Supervised(nn.MSELoss())
    loss = supervised(nn.Identity(), (batch["x"], batch["y"]))
    assert isinstance(loss, torch.Tensor)
    assert loss.item() == 2.0


def test_a_model_that_returns_no_tensor_is_told_which_key_helps() -> None:
    """Models that return a dictionary or a tuple need another objective."""
    model = torch.nn.Linear(2, 2)
    returns_dict: Any = lambda inputs: {"logits": model(inputs)}  # noqa: E731
    with pytest.raises(TypeError, match=r"got dict; use objective=model_loss .* \(model, batch\) -> loss"):
        Supervised(torch.nn.CrossEntropyLoss())(returns_dict, (torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)))


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        ({"x": 1, "y": 2}, "got a dict with the keys 'x', 'y'; use objective=model_loss for"),
        ([1, 2, 3], "got a list of 3; use objective=model_loss for"),
        (torch.zeros(2, 3), "got a Tensor; use objective=model_loss for"),
    ],
)
def test_a_batch_that_is_no_pair_is_refused_with_the_objective_that_takes_it(batch: Any, got: str) -> None:
    """Unpacking a dictionary gives its keys, and a linear layer then gets a str."""
    with pytest.raises(TypeError, match=r"data.train must yield \(inputs, target\) for objective=supervised") as caught:
        Supervised(nn.MSELoss())(nn.Identity(), batch)
    assert got in str(caught.value)


def test_a_pair_is_refused_where_the_model_takes_named_fields() -> None:
    """Python says that the argument after ** must be a mapping, with the whole model in the message."""
    with pytest.raises(TypeError, match=r"got a list of 2; use objective=supervised for \(inputs, target\)"):
        ModelLoss()(nn.Linear(2, 2), [torch.zeros(1, 2), torch.zeros(1)])  # type: ignore[arg-type]


class Named(nn.Module):
    """Returns what it was given."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, **fields: torch.Tensor) -> Any:
        return self.output


@pytest.mark.parametrize("output", [torch.zeros(2), {"logits": torch.zeros(2)}, {"loss": None}, (torch.zeros(()),)])
def test_a_model_without_a_loss_of_its_own_is_named(output: Any) -> None:
    """'Tensor' object has no attribute 'loss'; a model of transformers has None without labels."""
    with pytest.raises(TypeError, match=r"got \w+ without one; pass it labels, or name an objective of your own"):
        ModelLoss()(Named(output), {"x": torch.zeros(2)})


def test_a_target_that_is_ignored_as_a_whole_has_no_items() -> None:
    """The mean over nothing is NaN and would end the sweep."""
    objective = Supervised(torch.nn.CrossEntropyLoss())
    inputs, ignored = torch.zeros(2, 2), torch.full((2,), -100)
    result = objective(torch.nn.Linear(2, 2), (inputs, ignored))
    assert isinstance(result, tuple)
    assert result[1] == 0
    assert isinstance(objective(torch.nn.Linear(2, 2), (inputs, torch.tensor([-100, 1]))), torch.Tensor)
