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
    num_steps: int = 600


class SignSgd(torch.optim.Optimizer):
    """Steps by the sign of the gradient (Bernstein et al. 2018, arXiv:1802.04434)."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
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
    """The embedded digits."""
    inputs, targets = tasks.digits(split=split, as_image=as_image).tensors
    return inputs, targets


@functools.cache
def moved_digits(split: str, as_image: bool = False) -> Tensors:
    """Digits moved by up to a pixel and speckled, ten copies of each: enough data that nothing is learnt by heart."""
    images, targets = digits(split, as_image=True)
    random = torch.Generator().manual_seed(int(split == "val"))
    copies = []
    for _ in range(10 if split == "train" else 2):
        right, down = torch.randint(-1, 2, (2,), generator=random).tolist()
        speckled = images.roll((down, right), dims=(2, 3)) + 0.1 * torch.randn(images.shape, generator=random)
        copies.append(speckled)
    moved = torch.cat(copies)
    return moved if as_image else moved.flatten(1), targets.repeat(len(copies))


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
def photograph(split: str) -> Tensors:
    """Where a pixel of a photograph lies, as 64 waves, and its colour; every tenth pixel validates."""
    colours = datasets.load_sample_image("flower.jpg").astype(np.float32).reshape(-1, 3) / 255
    height, width = datasets.load_sample_image("flower.jpg").shape[:2]
    y, x = np.divmod(np.arange(height * width), width)
    frequencies = np.random.default_rng(0).normal(0, 6.0, (2, 32))
    phases = np.stack([y / height, x / width], axis=1) @ frequencies
    inputs = np.concatenate([np.sin(phases), np.cos(phases)], axis=1).astype(np.float32)
    chosen = np.arange(len(inputs)) % 10 == 0
    chosen = np.flatnonzero(chosen if split == "val" else ~chosen)[:: 10 if split == "val" else 1]
    return torch.from_numpy(inputs[chosen]), torch.from_numpy(colours[chosen])


@functools.cache
def which_photograph(split: str) -> Tensors:
    """12x12 grey-mixed patches of two photographs: which one? Left halves to train on, right halves to validate."""
    random = np.random.default_rng(int(split == "val"))
    inputs, targets = [], []
    for label, name in enumerate(("china.jpg", "flower.jpg")):
        picture = datasets.load_sample_image(name).astype(np.float32) / 255
        half = picture[:, :320] if split == "train" else picture[:, 320:]
        number = 4000 if split == "train" else 500
        for y, x in zip(random.integers(0, 415, number), random.integers(0, 308, number), strict=True):
            patch = half[y : y + 12, x : x + 12].transpose(2, 0, 1)
            inputs.append(patch - patch.mean() + random.normal(0, 0.05, patch.shape))
            targets.append(label)
    order = random.permutation(len(inputs))
    return torch.from_numpy(np.stack(inputs).astype(np.float32)[order]), torch.tensor(targets)[order]


@functools.cache
def ngrams(split: str) -> Tensors:
    """Eight characters, and the one after them."""
    windows, _ = text(split)
    inputs = windows[:, :8]
    return inputs, windows[:, 8]


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


def _both(load: Callable[[str], Tensors]) -> dict[str, Any]:
    return {"train": functools.partial(load, "train"), "val": functools.partial(load, "val")}


def _mlp(inputs: int, outputs: int, hidden: int = 64, layers: int = 2) -> Callable[[], nn.Module]:
    return lambda: Mlp(in_features=inputs, hidden_features=hidden, num_hidden=layers, num_classes=outputs)


def _cnn(channels: int, outputs: int) -> Callable[[], nn.Module]:
    return lambda: Cnn(in_channels=channels, width=8, num_classes=outputs)


def _ngram_model() -> nn.Module:
    return nn.Sequential(nn.Embedding(128, 16), nn.Flatten(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 128))


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
    adam, adamw, rmsprop, adagrad = (getattr(torch.optim, name) for name in ("Adam", "AdamW", "RMSprop", "Adagrad"))
    mse = nn.functional.mse_loss
    small: dict[str, Any] = {"lrs": (1e-5, 1.0)}
    yield Job(name="linear_sgd", **_both(digits), model=lambda: nn.Linear(64, 10), optimizer=_sgd, lrs=(1e-3, 100.0))
    yield Job(name="mlp_adamw", **_both(moved_digits), model=_mlp(64, 10), optimizer=adamw, **small)
    yield Job(name="mlp_momentum_b16", **_both(moved_digits), model=_mlp(64, 10), optimizer=_momentum, batch_size=16)
    yield Job(name="mlp_sign_sgd", **_both(moved_digits), model=_mlp(64, 10), optimizer=SignSgd, **small)
    yield Job(
        name="noisy_mlp_sgd_b4",
        **_both(noisy_digits),
        model=_mlp(64, 10),
        optimizer=_sgd,
        batch_size=4,
        num_steps=3000,
    )
    yield Job(
        name="shifted_cnn_wd_b256",
        **_both(shifted_digits),
        model=_cnn(1, 10),
        optimizer=functools.partial(_momentum, weight_decay=1e-3),
        batch_size=256,
        num_steps=250,
    )
    yield Job(
        name="cnn_bn_momentum",
        **_both(functools.partial(moved_digits, as_image=True)),
        model=_cnn(1, 10),
        optimizer=_momentum,
        num_steps=500,
    )
    yield Job(
        name="vit_adamw_wd",
        **_both(functools.partial(moved_digits, as_image=True)),
        model=TinyViT,
        optimizer=lambda p, lr: adamw(p, lr=lr, weight_decay=0.1),
        num_steps=500,
        **small,
    )
    yield Job(name="gpt_adamw", **_both(text), model=_gpt, optimizer=adamw, batch_size=16, num_steps=500, **small)
    yield Job(name="lstm_rmsprop", **_both(text), model=CharLstm, optimizer=rmsprop, batch_size=16, **small)
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
        model=lambda: nn.Linear(10, 1),
        optimizer=_sgd,
        loss=mse,
        batch_size=353,
        num_steps=200,
    )
    yield Job(
        name="cancer_adagrad",
        **_both(cancer),
        model=_mlp(30, 2, hidden=32),
        optimizer=adagrad,
        batch_size=32,
        num_steps=200,
    )
    yield Job(
        name="photograph_adam_b512",
        **_both(photograph),
        model=_mlp(64, 3, hidden=64, layers=3),
        optimizer=adam,
        loss=mse,
        batch_size=512,
        **small,
    )
    yield Job(
        name="denoiser_adam",
        **_both(patches),
        model=_denoiser,
        optimizer=adam,
        loss=mse,
        batch_size=32,
        num_steps=400,
        **small,
    )
    yield Job(name="characters_sgd", **_both(ngrams), model=_ngram_model, optimizer=_sgd, num_steps=1000)
    yield Job(
        name="photographs_cnn_nesterov",
        **_both(which_photograph),
        model=_cnn(3, 2),
        optimizer=lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4),
        batch_size=32,
        num_steps=400,
    )
    if data_root is not None and (data_root / "mnist").is_dir():
        yield Job(
            name="mnist_lenet_adam",
            **_both(functools.partial(mnist, root=str(data_root / "mnist"))),
            model=lambda: LeNet(dropout=0.1, num_classes=10),
            optimizer=adam,
            batch_size=32,
            num_steps=400,
            **small,
        )
    if data_root is not None and (data_root / "tinyshakespeare").is_dir():
        yield Job(
            name="shakespeare_gpt",
            **_both(functools.partial(text, root=str(data_root / "tinyshakespeare" / "input.txt"))),
            model=_gpt,
            optimizer=adamw,
            batch_size=32,
            num_steps=500,
            **small,
        )
