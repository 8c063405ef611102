"""Models of the benchmark's jobs, small enough for one or two thousandths of a second a step on one CPU thread."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn


def mlp(
    *widths: int, norm: bool = False, dropout: float = 0.0, bias: bool = True, act: type[nn.Module] = nn.ReLU
) -> nn.Module:
    """A multilayer perceptron on flattened inputs, with batch norm or dropout after each hidden layer."""
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(widths[:-1]):
        layers.append(nn.Linear(a, b, bias=bias and not norm))
        if norm:
            layers.append(nn.BatchNorm1d(b))
        layers.append(act())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=bias))


def cnn(channels: int, classes: int, *, width: int = 8, norm: bool = False, dropout: float = 0.0) -> nn.Module:
    """Three convolutions of stride two, the mean over positions, and a linear layer."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise((channels, width, 2 * width, 4 * width)):
        layers += [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=not norm)]
        layers += [nn.BatchNorm2d(b), nn.ReLU()] if norm else [nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * width, classes)
    )


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [[nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)] for _ in range(2)]
        self.layers = nn.Sequential(*layers[0], nn.ReLU(), *layers[1])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        return F.relu(images + self.layers(images))


def resnet(channels: int, classes: int, *, width: int = 12) -> nn.Module:
    """A convolution of stride four and two residual blocks."""
    stem = nn.Conv2d(channels, width, 5, stride=4, padding=2, bias=False)
    return nn.Sequential(
        stem,
        nn.BatchNorm2d(width),
        nn.ReLU(),
        ResidualBlock(width),
        ResidualBlock(width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


class UNet(nn.Module):
    """Images to a map of the same size, with one level below and a connection across."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.last = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """One number per pixel."""
        first = F.relu(self.first(images))
        up = F.relu(self.up(F.relu(self.down(first))))
        result: torch.Tensor = self.last(torch.cat([first, up], dim=1))
        return result


def convolutions(channels: int, *, width: int = 8, layers: int = 3) -> nn.Module:
    """Images to images of the same shape."""
    widths = [channels, *[width] * (layers - 1), channels]
    parts = [part for a, b in itertools.pairwise(widths) for part in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


def wave_cnn(classes: int, *, width: int = 8) -> nn.Module:
    """Four convolutions of stride four over a waveform."""
    widths = (1, width, 2 * width, 2 * width, 4 * width)
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        parts += [nn.Conv1d(a, b, 8, stride=4, padding=2), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4 * width, classes))


class Recurrent(nn.Module):
    """A recurrent network, and a linear layer on its last state, or on every state where ``everywhere``.

    Args:
        inputs: Features of a step, or symbols where ``symbols``.
        outputs: Numbers it gives.
        kind: ``nn.GRU`` or ``nn.LSTM``.
        channels_first: Whether steps are the last dimension of the input.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kind: type[nn.GRU] | type[nn.LSTM] = nn.GRU,
        width: int = 32,
        symbols: bool = False,
        everywhere: bool = False,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(inputs, width) if symbols else None
        self.recurrent = kind(width if symbols else inputs, width, batch_first=True)
        self.head = nn.Linear(width, outputs)
        self._everywhere, self._channels_first = everywhere, channels_first

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        """(batch, outputs), or (batch, outputs, steps) where ``everywhere``."""
        if self._channels_first:
            sequences = sequences.transpose(1, 2)
        states, _ = self.recurrent(sequences if self.embedding is None else self.embedding(sequences))
        scores: torch.Tensor = self.head(states if self._everywhere else states[:, -1])
        return scores.transpose(1, 2) if self._everywhere else scores


class Block(nn.Module):
    """A transformer block with norms first."""

    def __init__(self, width: int, heads: int, *, causal: bool, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)
        self._heads, self._causal = heads, causal

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """The same shape: (batch, steps, width)."""
        batch, steps, width = states.shape
        parts = self.qkv(self.norms[0](states)).view(batch, steps, 3, self._heads, width // self._heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self._causal)
        states = states + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, steps, width)))
        result: torch.Tensor = states + self.dropout(self.feed(self.norms[1](states)))
        return result


class Transformer(nn.Module):
    """A transformer over symbols or over features.

    Args:
        inputs: Symbols, or features of a step where ``features``.
        outputs: Scores.
        steps: Length of the sequences.
        causal: Whether it predicts at every step from the steps before; otherwise it averages over steps.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        steps: int,
        width: int = 32,
        layers: int = 1,
        heads: int = 4,
        causal: bool = True,
        features: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding: nn.Module = nn.Linear(inputs, width) if features else nn.Embedding(inputs, width)
        self.positions = nn.Parameter(0.02 * torch.randn(steps, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=causal, dropout=dropout) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)
        self._causal = causal

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        """(batch, outputs, steps) if causal, else (batch, outputs)."""
        states = self.norm(self.blocks(self.embedding(sequences) + self.positions[: sequences.shape[1]]))
        scores: torch.Tensor = self.head(states if self._causal else states.mean(dim=1))
        return scores.transpose(1, 2) if self._causal else scores


class VisionTransformer(nn.Module):
    """A transformer over the patches of an image."""

    def __init__(
        self,
        channels: int,
        side: int,
        classes: int,
        *,
        width: int = 32,
        layers: int = 1,
        dropout: float = 0.0,
        patch: int = 7,
    ) -> None:
        super().__init__()
        self._patch = patch
        self.transformer = Transformer(
            channels * patch * patch,
            classes,
            steps=(side // patch) ** 2,
            width=width,
            layers=layers,
            causal=False,
            features=True,
            dropout=dropout,
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        scores: torch.Tensor = self.transformer(F.unfold(images, self._patch, stride=self._patch).transpose(1, 2))
        return scores


class EmbeddingMlp(nn.Module):
    """Embedded symbols, side by side (``bag=False``) or averaged, through a multilayer perceptron.

    Args:
        symbols: Size of the vocabulary.
        places: Symbols of a sample; ignored where they are averaged.
        hidden: Widths of the hidden layers.
        outputs: Numbers it gives.
        extra: Other inputs, before the symbols.
    """

    def __init__(
        self,
        symbols: int,
        outputs: int,
        *,
        places: int = 1,
        width: int = 8,
        hidden: tuple[int, ...] = (32,),
        bag: bool = False,
        extra: int = 0,
        norm: bool = False,
        dropout: float = 0.0,
        act: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.layers = mlp((1 if bag else places) * width + extra, *hidden, outputs, norm=norm, dropout=dropout, act=act)
        self._bag = bag

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """(batch, outputs)."""
        embedded = self.embedding(inputs[-1])
        embedded = embedded.mean(dim=1) if self._bag else embedded.flatten(1)
        scores: torch.Tensor = self.layers(torch.cat([*inputs[:-1], embedded], dim=1))
        return scores


class FrozenEmbeddingMlp(nn.Module):
    """Fixed random embeddings through a perceptron without biases: every parameter is a matrix."""

    def __init__(self, symbols: int, places: int, *, width: int = 8, hidden: tuple[int, ...] = (64,)) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(symbols, width, generator=torch.Generator().manual_seed(0)))
        self.layers = mlp(places * width, *hidden, symbols, bias=False)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        """(batch, symbols)."""
        assert isinstance(self.table, torch.Tensor)
        scores: torch.Tensor = self.layers(self.table[symbols])
        return scores


class SymbolCnn(nn.Module):
    """Two convolutions over embedded symbols, and the largest value over places."""

    def __init__(self, symbols: int, outputs: int, *, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.layers = nn.Sequential(
            nn.Conv1d(width, 2 * width, 5, stride=2), nn.ReLU(), nn.Conv1d(2 * width, 2 * width, 3), nn.ReLU()
        )
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(2 * width, outputs)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        """(batch, outputs)."""
        features = self.layers(self.embedding(symbols).transpose(1, 2)).amax(dim=2)
        scores: torch.Tensor = self.head(self.dropout(features))
        return scores


class SeriesCnn(nn.Module):
    """Two convolutions over the 24 steps of a series (batch, steps, features)."""

    def __init__(self, features: int, outputs: int, *, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(features, width, 3, stride=2),
            nn.ReLU(),
            nn.Conv1d(width, width, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(5 * width, outputs),
        )

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        """(batch, outputs)."""
        result: torch.Tensor = self.layers(series.transpose(1, 2))
        return result


class Factors(nn.Module):
    """A rating as the product of a user's and a film's factors, and their biases."""

    def __init__(self, users: int = 671, items: int = 9125, *, width: int = 8) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, width + 1), nn.Embedding(items, width + 1)
        for embedding in (self.users, self.items):
            nn.init.normal_(embedding.weight, std=1 / math.sqrt(8 * width))

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Ratings, shape (batch,)."""
        user, item = self.users(users), self.items(items)
        rating: torch.Tensor = (user[:, 1:] * item[:, 1:]).sum(dim=1) + user[:, 0] + item[:, 0]
        return rating
