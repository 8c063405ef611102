"""Data of the benchmark's jobs, as tensors in memory: real sets from a folder of one's own, and embedded ones."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn import datasets

NUM_VAL = 1000
"""Samples of a validation set at most."""

Tensors = tuple[torch.Tensor, ...]


class Split(NamedTuple):
    """Training and validation samples: one tensor per input of the model, and the targets last."""

    train: Tensors
    val: Tensors


def _split(train: Tensors, val: Tensors) -> Split:
    """The split with at most NUM_VAL validation samples, chosen evenly."""
    keep = torch.linspace(0, len(val[0]) - 1, min(NUM_VAL, len(val[0]))).long()
    return Split(train, tuple(part[keep] for part in val))


@functools.cache
def _arrays(root: Path, name: str, file: str = "data.npz") -> dict[str, Any]:
    with np.load(root / name / file) as arrays:
        return {key: arrays[key] for key in arrays.files}


def _images(array: Any) -> torch.Tensor:
    """Images as float in [-1, 1], channels first."""
    images = torch.from_numpy(np.array(array)).float() / 127.5 - 1
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def _longs(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).long()


def _floats(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).float()


def _idx(path: Path) -> Any:
    """The array of an IDX file."""
    content = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(content[3])]
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


@functools.cache
def mnist(root: Path, size: int = 60_000) -> Split:
    """Handwritten digits, 28x28, ten classes."""
    train, val = (
        (
            _images(_idx(root / "mnist" / f"{part}-images-idx3-ubyte.gz")),
            _longs(_idx(root / "mnist" / f"{part}-labels-idx1-ubyte.gz")),
        )
        for part in ("train", "t10k")
    )
    return _split((train[0][:size], train[1][:size]), val)


def mnist_images(root: Path) -> Split:
    """Handwritten digits as their own targets."""
    split = mnist(root)
    return Split((split.train[0], split.train[0].flatten(1)), (split.val[0], split.val[0].flatten(1)))


@functools.cache
def signs(root: Path, first: int = 0, last: int = 43, size: int = 12_000) -> Split:
    """Colour photographs of traffic signs, 28x28, the classes ``first`` to ``last`` - 1, renumbered from 0."""
    z = _arrays(root, "gtsrb")
    parts = []
    for part in ("train", "val"):
        chosen = np.flatnonzero((z[f"y_{part}"] >= first) & (z[f"y_{part}"] < last))[:size]
        parts.append((_images(z[f"x_{part}"][chosen]), _longs(z[f"y_{part}"][chosen]) - first))
    return _split(*parts)


@functools.cache
def nuclei(root: Path) -> Split:
    """Microscope images, halved to 32x32, and where they show a nucleus."""
    z = _arrays(root, "nuclei")
    parts = []
    for part in ("train", "val"):
        images, masks = _images(z[f"x_{part}"]), _floats(z[f"y_{part}"])[:, None]
        parts.append(tuple(torch.nn.functional.avg_pool2d(each, 2) for each in (images, masks)))
    return Split(parts[0], tuple(part[:200] for part in parts[1]))


@functools.cache
def noisy_nuclei(root: Path) -> Split:
    """Microscope images with noise, and without."""
    split, random = nuclei(root), torch.Generator().manual_seed(0)
    return Split(
        *((clean + 0.3 * torch.randn(clean.shape, generator=random), clean) for clean in (split.train[0], split.val[0]))
    )


@functools.cache
def spoken(root: Path, target: str = "y") -> Split:
    """Mel spectra (40 bands, 16 frames) of spoken digits, and the digit (``y``) or the ``speaker``."""
    z = _arrays(root, "spokendigits", "mel.npz")
    return _split(
        *((_floats(z[f"x_{part}"][:, :, ::2]) / 64 - 1, _longs(z[f"{target}_{part}"])) for part in ("train", "val"))
    )


@functools.cache
def waves(root: Path) -> Split:
    """Waveforms of spoken digits, 2048 samples in mu-law, and the digit."""
    z = _arrays(root, "spokendigits", "wave.npz")
    return _split(*((_floats(z[f"x_{p}"])[:, None] / 127.5 - 1, _longs(z[f"y_{p}"])) for p in ("train", "val")))


@functools.cache
def adult(root: Path) -> Split:
    """Census rows: six numbers, eight categories (numbered across columns), and whether the income is high."""
    z = _arrays(root, "adult")
    offsets = np.concatenate([[0], np.cumsum(z["sizes"])[:-1]])
    return _split(
        *((_floats(z[f"x_{p}"]), _longs(z[f"c_{p}"] + offsets), _longs(z[f"y_{p}"])) for p in ("train", "val"))
    )


@functools.cache
def protein(root: Path, size: int = 40_019) -> Split:
    """Nine properties of a protein's structure, and its distance from the true one."""
    z = _arrays(root, "protein")
    train, val = ((_floats(z[f"x_{p}"]), _floats(z[f"y_{p}"])[:, None]) for p in ("train", "val"))
    return _split((train[0][:size], train[1][:size]), val)


@functools.cache
def beijing(root: Path, hours: int = 24) -> Split:
    """A day of hourly weather and pollution (hours, 15), and the pollution six hours later."""
    z = _arrays(root, "beijing")
    parts = []
    for part in ("train", "val"):
        rows = z[part]
        windows = np.lib.stride_tricks.sliding_window_view(rows[:-6], hours, axis=0).transpose(0, 2, 1)
        parts.append((_floats(windows), _floats(rows[hours + 5 :, :1])))
    return _split(*parts)


@functools.cache
def movielens(root: Path) -> Split:
    """User, film, and the rating less the mean."""
    z = _arrays(root, "movielens")
    mean = z["y_train"].mean()
    return _split(
        *((_longs(z[f"user_{p}"]), _longs(z[f"item_{p}"]), _floats(z[f"y_{p}"] - mean)) for p in ("train", "val"))
    )


@functools.cache
def solubility(root: Path, inputs: str = "x") -> Split:
    """Molecules as SMILES (``x``, first 48 characters) or descriptors (``d``), and their solubility."""
    z = _arrays(root, "aqsol")
    read = _floats if inputs == "d" else lambda codes: _longs(codes)[:, :48]
    return _split(*((read(z[f"{inputs}_{p}"]), _floats(z[f"y_{p}"])[:, None]) for p in ("train", "val")))


@functools.cache
def toxicity(root: Path) -> Split:
    """Molecules as SMILES (first 48 characters), and twelve assays; -1 is not measured."""
    z = _arrays(root, "tox21")
    return _split(*((_longs(z[f"x_{p}"])[:, :48], _floats(z[f"y_{p}"])) for p in ("train", "val")))


@functools.cache
def intents(root: Path, first: int = 0, last: int = 150) -> Split:
    """Sentences of at most 28 words, and what they ask for, the intents ``first`` to ``last`` - 1."""
    z = _arrays(root, "intents")
    parts = []
    for part in ("train", "val"):
        chosen = np.flatnonzero((z[f"y_{part}"] >= first) & (z[f"y_{part}"] < last))
        parts.append((_longs(z[f"x_{part}"][chosen])[:, :16], _longs(z[f"y_{part}"][chosen]) - first))
    return _split(*parts)


def _windows(codes: Any, length: int, num_windows: int) -> Tensors:
    """Neighbouring windows of a text, inputs and next characters, evenly chosen if there are more."""
    count = (len(codes) - 1) // length
    starts = np.linspace(0, count - 1, min(count, num_windows)).astype(int) * length
    index = torch.from_numpy(starts)[:, None] + torch.arange(length)
    codes = torch.from_numpy(np.array(codes))
    return codes[index].long(), codes[index + 1].long()


@functools.cache
def text(root: Path, name: str, length: int = 32, size: int = 10_000_000) -> Split:
    """Windows of bytes of a text, and the next byte at each place; training on the first ``size`` bytes alone."""
    if name == "tinyshakespeare":
        codes = np.frombuffer((root / name / "input.txt").read_bytes(), dtype=np.uint8)
        train, val = codes[:1_000_000], codes[1_000_000:]
    else:
        z = _arrays(root, name)
        train, val = z["train"], z["val"]
    train, val = np.minimum(train, 127), np.minimum(val, 127)
    return Split(_windows(train[:size], length, 100_000), _windows(val, length, 128))


@functools.cache
def ngrams(root: Path, name: str, length: int = 8) -> Split:
    """``length`` bytes of a text, and the next one."""
    windows = text(root, name, length)
    train, val = ((inputs, targets[:, -1]) for inputs, targets in windows)
    codes = text(root, name, 32).val
    val = (codes[0].unfold(1, length, 4).reshape(-1, length), codes[1][:, length - 1 :: 4].reshape(-1))
    return _split(train, val)


@functools.cache
def digits(root: Path | None, first: int = 0, last: int = 10) -> Split:
    """The embedded digits, 8x8, those from ``first`` to ``last`` - 1, renumbered from 0; a fifth validates."""
    bunch = datasets.load_digits()
    images, labels = _floats(bunch.images)[:, None] / 8 - 1, _longs(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[(labels[order] >= first) & (labels[order] < last)]
    cut = len(order) // 5
    val, train = ((images[part], labels[part] - first) for part in (order[:cut], order[cut:]))
    return Split(train, val)


@functools.cache
def moved_digits(root: Path | None) -> Split:
    """The embedded digits moved by up to a pixel and speckled, twenty copies of each."""
    random = torch.Generator().manual_seed(1)
    parts = []
    for (images, labels), copies in zip(digits(root), (20, 3), strict=True):
        moved = []
        for _ in range(copies):
            right, down = torch.randint(-1, 2, (2,), generator=random).tolist()
            speckles = 0.3 * torch.randn(images.shape, generator=random)
            moved.append(images.roll((down, right), dims=(2, 3)) + speckles)
        parts.append((torch.cat(moved), labels.repeat(copies)))
    return _split(*parts)


@functools.cache
def mislabelled_digits(root: Path | None) -> Split:
    """The moved digits, three of ten training labels random."""
    (images, labels), val = moved_digits(root)
    random = torch.Generator().manual_seed(2)
    wrong = torch.rand(len(labels), generator=random) < 0.3
    return Split((images, torch.where(wrong, torch.randint(10, labels.shape, generator=random), labels)), val)


@functools.cache
def photograph(root: Path | None) -> Split:
    """Where a pixel of a photograph lies, as 64 waves, and its colour."""
    picture = datasets.load_sample_image("flower.jpg").astype(np.float32) / 127.5 - 1
    height, width = picture.shape[:2]
    y, x = np.divmod(np.random.default_rng(0).permutation(height * width)[:101_000], width)
    phases = np.stack([y / height, x / width], axis=1) @ np.random.default_rng(1).normal(0, 6.0, (2, 32))
    inputs, colours = _floats(np.concatenate([np.sin(phases), np.cos(phases)], axis=1)), _floats(picture[y, x])
    return Split((inputs[1000:], colours[1000:]), (inputs[:1000], colours[:1000]))


@functools.cache
def patches(root: Path | None) -> Split:
    """Noisy 12x12 patches of one photograph to train on and of another to validate, and the clean ones."""
    random, parts = np.random.default_rng(0), []
    for name, number in (("china.jpg", 4000), ("flower.jpg", 300)):
        picture = datasets.load_sample_image(name).astype(np.float32) / 127.5 - 1
        corners = zip(random.integers(0, 400, number), random.integers(0, 600, number), strict=True)
        clean = _floats(np.stack([picture[y : y + 12, x : x + 12].transpose(2, 0, 1) for y, x in corners]))
        parts.append((clean + _floats(random.normal(0, 0.3, clean.shape)), clean))
    return Split(*parts)


@functools.cache
def chains(root: Path | None, noise: float = 0.3, length: int = 24) -> Split:
    """Sequences of a random process: the next of 32 symbols follows from the last two, or is random."""
    random = np.random.default_rng(0)
    successors = random.integers(0, 32, (32, 32))
    codes = random.integers(0, 32, 400_000)
    certain = random.random(len(codes)) > noise
    for i in range(2, len(codes)):
        if certain[i]:
            codes[i] = successors[codes[i - 2], codes[i - 1]]
    return Split(_windows(codes[:-20_000], length, 100_000), _windows(codes[-20_000:], length, 128))


@functools.cache
def teacher(root: Path | None, size: int = 100_000, noise: float = 0.2) -> Split:
    """A random network's output on random inputs of very different scales, with noise."""
    random = torch.Generator().manual_seed(3)
    inputs = torch.randn(size + NUM_VAL, 32, generator=random) * torch.logspace(0.3, -1, 32)
    first, second = torch.randn(32, 16, generator=random), torch.randn(16, 1, generator=random)
    targets = torch.tanh(inputs @ first) @ second / 4
    targets = targets + noise * torch.randn(targets.shape, generator=random)
    return Split((inputs[NUM_VAL:], targets[NUM_VAL:]), (inputs[:NUM_VAL], targets[:NUM_VAL]))


@functools.cache
def pairs(root: Path | None) -> Split:
    """Two neighbouring symbols of the random process, and the next one."""
    (train, train_next), (val, val_next) = chains(root)
    return _split(
        *(
            (inputs.unfold(1, 2, 2).reshape(-1, 2), targets[:, 1::2].reshape(-1))
            for inputs, targets in ((train, train_next), (val, val_next))
        )
    )
