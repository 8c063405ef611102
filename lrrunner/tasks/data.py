"""Datasets of the packaged experiments: the digits shipped with the package, MNIST, and windows of a text file."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import urllib.error
import urllib.request
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import Dataset, TensorDataset

Example = tuple[torch.Tensor, torch.Tensor]

SPLITS = ("train", "val")

NUM_VAL_DIGITS = 360
MAX_PIXEL = 16
"""A pixel of the digits counts the ink in a block of 4 x 4."""


def digits(*, split: str, as_image: bool = False) -> TensorDataset:
    """The embedded 8x8 digits in [0, 1]: 1,437 to train, 360 to validate, in a fixed random split.

    Args:
        split: "train" or "val".
        as_image: Shape (1, 8, 8) instead of (64,).

    Raises:
        ValueError: unknown split.

    References:
        Alpaydin, Kaynak 1998, "Optical Recognition of Handwritten Digits"; see digits_notice.md.
    """
    _check_split(split)
    with files("lrrunner.tasks").joinpath("digits.npz").open("rb") as file, np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = order[:NUM_VAL_DIGITS] if split == "val" else order[NUM_VAL_DIGITS:]
    shape = (-1, 1, 8, 8) if as_image else (-1, 64)
    inputs = torch.tensor(images[chosen] / MAX_PIXEL, dtype=torch.float32).view(shape)
    return TensorDataset(inputs, torch.tensor(labels[chosen], dtype=torch.int64))


class MnistFile(NamedTuple):
    """One of MNIST's four files."""

    name: str
    sha256: str


MNIST_FILES = {
    "train": (
        MnistFile("train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        MnistFile("train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    ),
    "val": (
        MnistFile("t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        MnistFile("t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
}

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"


def mnist(*, root: str, split: str, url: str = MNIST_URL, timeout_s: float = 15.0) -> TensorDataset:
    """MNIST in [0, 1], images of shape (1, 28, 28): 60,000 to train, 10,000 to validate.

    Missing files are downloaded once a node, under a lock; every file's checksum is verified.

    Args:
        root: Folder of the four IDX .gz files.
        split: "train" or "val".
        url: Where to download missing files from.
        timeout_s: Seconds without data after which a download fails.

    Raises:
        ValueError: unknown split, or a file with a wrong checksum.
        FileNotFoundError: files are missing and cannot be downloaded; the message says which, and where to put them.

    References:
        LeCun, Cortes, Burges, "The MNIST database of handwritten digits".
    """
    _check_split(split)
    folder = Path(root).expanduser()
    images, labels = (_mnist_file(folder, file, url, timeout_s) for file in MNIST_FILES[split])
    return TensorDataset(
        torch.from_numpy(_idx_array(images).astype(np.float32) / 255)[:, None],
        torch.from_numpy(_idx_array(labels).astype(np.int64)),
    )


class Windows(Dataset[Example]):
    """Consecutive windows of a text: item i is (characters, the characters one later), each of shape (length,)."""

    def __init__(self, characters: torch.Tensor, *, context_length: int) -> None:
        self._characters = characters
        self._length = context_length

    def __len__(self) -> int:
        return max(0, (len(self._characters) - 1) // self._length)

    def __getitem__(self, index: int) -> Example:
        window = self._characters[index * self._length : (index + 1) * self._length + 1]
        return window[:-1], window[1:]


def text(*, root: str | None, split: str, context_length: int) -> Windows:
    """Next-character windows of a text file, the last tenth to validate; characters outside ASCII become "?".

    Args:
        root: A text file, or None for the language reference in Python's help system.
        split: "train" or "val".
        context_length: Characters a window.

    Raises:
        ValueError: unknown split.
        FileNotFoundError: no such file.
    """
    _check_split(split)
    content = _python_topics() if root is None else Path(root).expanduser().read_text(encoding="utf-8")
    codes = np.frombuffer(content.encode("ascii", errors="replace"), dtype=np.uint8)
    characters = torch.from_numpy(codes.astype(np.int64))
    cut = len(characters) * 9 // 10
    return Windows(characters[:cut] if split == "train" else characters[cut:], context_length=context_length)


def language_batch(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """A batch for Hugging Face's causal language models, which shift the labels themselves."""
    characters = torch.stack([inputs for inputs, _ in examples])
    return {"input_ids": characters, "labels": characters}


def image_batch(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """A batch for Hugging Face's image classifiers."""
    images = torch.stack([image for image, _ in examples])
    return {"pixel_values": images, "labels": torch.stack([label for _, label in examples])}


def _python_topics() -> str:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return "\n".join(topics[name] for name in sorted(topics))


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split}")


def _mnist_file(folder: Path, file: MnistFile, url: str, timeout_s: float) -> bytes:
    path = folder / file.name
    if not path.is_file():
        _download(path, url + file.name, file.sha256, timeout_s)
    content = path.read_bytes()
    _verify(content, file.sha256, path)
    return gzip.decompress(content)


def _download(path: Path, url: str, sha256: str, timeout_s: float) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if path.is_file():  # downloaded by another rank of this node
                return
            with urllib.request.urlopen(url, timeout=timeout_s) as response:
                content = response.read()
            _verify(content, sha256, url)
            partial = path.with_suffix(".partial")
            partial.write_bytes(content)
            partial.replace(path)
    except (urllib.error.URLError, OSError) as error:
        names = ", ".join(file.name for split in MNIST_FILES.values() for file in split)
        raise FileNotFoundError(
            f"{path} is missing and could not be downloaded from {url} ({error}); put {names} into {path.parent}, "
            "or set data.root to the folder that holds them"
        ) from None


def _verify(content: bytes, sha256: str, source: Path | str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{source} must have the SHA-256 checksum {sha256}, got {found}; delete it and fetch it again")


def _idx_array(content: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The array of an IDX file: two zero bytes, type, number of dimensions, sizes (big-endian), values."""
    num_dimensions = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=num_dimensions, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)
