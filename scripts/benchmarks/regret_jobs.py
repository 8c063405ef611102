"""The development jobs of the regret benchmark: small trainings on real data that differ in what matters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import nn

from lrrunner.tasks import data as tasks
from lrrunner.tasks.models import CharGpt, Cnn, LeNet, Mlp

Tensors = tuple[torch.Tensor, torch.Tensor]
DATA_ROOT: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: everything but its learning rate.

    Attributes:
        name: Short name.
        train: Inputs and targets.
        val: The same, for the oracle.
        model: Makes the model; called under a seed.
        optimizer: (parameters, lr) -> optimizer.
        loss: (output, target) -> mean loss.
        batch_size: Samples a step.
        lrs: Lowest and highest LR of the oracle's grid.
        num_steps: Steps of an oracle training.
    """

    name: str
    train: Callable[[], Tensors]
    val: Callable[[], Tensors]
    model: Callable[[], nn.Module]
    optimizer: Callable[[Any, float], torch.optim.Optimizer]
    loss: Callable[[Any, Any], torch.Tensor] = nn.functional.cross_entropy
    batch_size: int = 64
    lrs: tuple[float, float] = (1e-4, 10.0)
    num_steps: int = 300


class SignSgd(torch.optim.Optimizer):
    """Steps by the sign of the gradient (Bernstein et al. 2018, arXiv:1802.04434)."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad.sign(), alpha=-group["lr"])


class TinyViT(nn.Module):
    """Sixteen 2x2 patches of an 8x8 digit through two transformer layers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        scores: torch.Tensor = self.head(self.encoder(tokens).mean(dim=1))
        return scores


class CharLstm(nn.Module):
    """Characters (batch, time) -> next-character scores (batch, vocabulary, time)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 128)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        """Scores of the next character at every position."""
        hidden, _ = self.lstm(self.embedding(characters))
        scores: torch.Tensor = self.head(hidden)
        return scores.transpose(1, 2)


def _stacked(dataset: Any) -> Tensors:
    pairs = [dataset[i] for i in range(len(dataset))]
    return torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])


@functools.cache
def digits(split: str, as_image: bool = False) -> Tensors:
    """scikit-learn's digits."""
    inputs, targets = tasks.digits(split=split, as_image=as_image).tensors
    return inputs, targets


def noisy_digits(split: str) -> Tensors:
    """Two of five training labels are random: a loss with a high floor of noise."""
    inputs, targets = digits(split)
    if split == "val":
        return inputs, targets
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(targets), generator=generator) < 0.4
    return inputs, torch.where(wrong, torch.randint(10, targets.shape, generator=generator), targets)


def shifted_digits(split: str) -> Tensors:
    """Validation digits are moved by a pixel and dimmed."""
    images, targets = digits(split, as_image=True)
    return (images.roll(1, dims=3) * 0.7 if split == "val" else images), targets


def reconstructed_digits(split: str) -> Tensors:
    """Digits as their own targets."""
    inputs, _ = digits(split)
    return inputs, inputs


def _table(load: Callable[[], Any], split: str, regression: bool) -> Tensors:
    bunch = load()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    inputs = torch.tensor(bunch.data, dtype=torch.float32)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    targets = torch.tensor(bunch.target, dtype=torch.float32 if regression else torch.int64)
    if regression:
        targets = ((targets - targets.mean()) / targets.std())[:, None]
    cut = len(order) // 5
    chosen = torch.from_numpy(order[:cut] if split == "val" else order[cut:])
    return inputs[chosen], targets[chosen]


@functools.cache
def cancer(split: str) -> Tensors:
    """Breast cancer: 30 standardised features, two classes."""
    return _table(datasets.load_breast_cancer, split, regression=False)


@functools.cache
def wine(split: str) -> Tensors:
    """Wine: 13 standardised features, three classes."""
    return _table(datasets.load_wine, split, regression=False)


@functools.cache
def diabetes(split: str) -> Tensors:
    """Diabetes: 10 standardised features, a standardised target."""
    return _table(datasets.load_diabetes, split, regression=True)


@functools.cache
def patches(split: str) -> Tensors:
    """Noisy 12x12 patches of two photographs, and the clean ones: one to train on, one to validate."""
    photograph = datasets.load_sample_image("china.jpg" if split == "train" else "flower.jpg").astype(np.float32) / 255
    random = np.random.default_rng(0)
    corners = zip(random.integers(0, 400, 2000), random.integers(0, 600, 2000), strict=True)
    clean = np.stack([photograph[y : y + 12, x : x + 12].transpose(2, 0, 1) for y, x in corners])
    noisy = clean + random.normal(0, 0.15, clean.shape).astype(np.float32)
    return torch.from_numpy(noisy.astype(np.float32)), torch.from_numpy(clean)


@functools.cache
def text(split: str, root: str | None = None) -> Tensors:
    """Windows of 32 characters."""
    inputs, targets = _stacked(tasks.text(root=root, split=split, context_length=32))
    return (inputs[:400], targets[:400]) if split == "val" else (inputs, targets)


@functools.cache
def mnist(split: str, root: str) -> Tensors:
    """MNIST; 2,000 images to validate."""
    inputs, targets = tasks.mnist(root=root, split=split).tensors
    return (inputs[:2000], targets[:2000]) if split == "val" else (inputs, targets)


def _both(load: Callable[[str], Tensors]) -> dict[str, Callable[[], Tensors]]:
    return {"train": functools.partial(load, "train"), "val": functools.partial(load, "val")}


def _mlp(inputs: int, outputs: int, hidden: int = 64, layers: int = 2) -> Callable[[], nn.Module]:
    return lambda: Mlp(in_features=inputs, hidden_features=hidden, num_hidden=layers, num_classes=outputs)


def _denoiser() -> nn.Module:
    first, second, last = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 16), (16, 16), (16, 3)))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


def _gpt() -> nn.Module:
    return CharGpt(vocab_size=128, context_length=32, width=48, num_layers=2, num_heads=4)


def _sgd(params: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr)


def _momentum(params: Any, lr: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=0.9, weight_decay=weight_decay)


def jobs(data_root: Path | None) -> Iterator[Job]:
    """All development jobs; MNIST and tiny Shakespeare only where ``data_root`` has them."""
    adam, adamw = torch.optim.Adam, torch.optim.AdamW
    images = functools.partial(digits, as_image=True)
    mse = nn.functional.mse_loss
    small = {"lrs": (1e-5, 1.0)}
    yield Job(name="linear_sgd", **_both(digits), model=lambda: nn.Linear(64, 10), optimizer=_sgd, lrs=(1e-3, 100.0))
    yield Job(name="mlp_adamw", **_both(digits), model=_mlp(64, 10), optimizer=adamw, **small)
    yield Job(name="mlp_momentum_b16", **_both(digits), model=_mlp(64, 10), optimizer=_momentum, batch_size=16)
    yield Job(name="mlp_sign_sgd", **_both(digits), model=_mlp(64, 10), optimizer=SignSgd, lrs=(1e-5, 1.0))
    yield Job(name="noisy_mlp_sgd_b4", **_both(noisy_digits), model=_mlp(64, 10), optimizer=_sgd, batch_size=4)
    yield Job(
        name="shifted_cnn_wd_b512",
        **_both(shifted_digits),
        model=lambda: Cnn(in_channels=1, width=8, num_classes=10),
        optimizer=functools.partial(_momentum, weight_decay=1e-3),
        batch_size=512,
        num_steps=100,
    )
    yield Job(
        name="cnn_bn_momentum",
        **_both(images),
        model=lambda: Cnn(in_channels=1, width=8, num_classes=10),
        optimizer=_momentum,
        num_steps=200,
    )
    yield Job(
        name="vit_adamw_wd",
        **_both(images),
        model=TinyViT,
        optimizer=lambda p, lr: adamw(p, lr=lr, weight_decay=0.1),
        num_steps=250,
        **small,
    )
    yield Job(name="gpt_adamw", **_both(text), model=_gpt, optimizer=adamw, batch_size=16, num_steps=250, **small)
    yield Job(
        name="lstm_rmsprop",
        **_both(text),
        model=CharLstm,
        optimizer=lambda p, lr: torch.optim.RMSprop(p, lr=lr),
        batch_size=16,
        num_steps=250,
        **small,
    )
    yield Job(
        name="autoencoder_adam_b128",
        **_both(reconstructed_digits),
        model=lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 64)),
        optimizer=adam,
        loss=mse,
        batch_size=128,
        **small,
    )
    yield Job(
        name="diabetes_full_batch_sgd",
        **_both(diabetes),
        model=_mlp(10, 1, hidden=32),
        optimizer=_sgd,
        loss=mse,
        batch_size=353,
        num_steps=150,
    )
    yield Job(
        name="cancer_adagrad",
        **_both(cancer),
        model=_mlp(30, 2, hidden=32),
        optimizer=lambda p, lr: torch.optim.Adagrad(p, lr=lr),
        batch_size=32,
        num_steps=150,
    )
    yield Job(
        name="wine_adam_b8", **_both(wine), model=_mlp(13, 3, hidden=16), optimizer=adam, batch_size=8, num_steps=150
    )
    yield Job(name="denoiser_adam", **_both(patches), model=_denoiser, optimizer=adam, loss=mse, batch_size=32, **small)
    if data_root is not None and (data_root / "mnist").is_dir():
        load_mnist = functools.partial(mnist, root=str(data_root / "mnist"))
        yield Job(
            name="mnist_lenet_adam",
            **_both(load_mnist),
            model=lambda: LeNet(dropout=0.1, num_classes=10),
            optimizer=adam,
            batch_size=32,
            **small,
        )
    if data_root is not None and (data_root / "tinyshakespeare").is_dir():
        load_text = functools.partial(text, root=str(data_root / "tinyshakespeare" / "input.txt"))
        yield Job(
            name="shakespeare_gpt",
            **_both(load_text),
            model=_gpt,
            optimizer=adamw,
            batch_size=32,
            num_steps=250,
            **small,
        )
