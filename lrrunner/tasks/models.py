"""Small models of the packaged experiments, without dropout except where an article has it."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn


class Mlp(nn.Module):
    """A ReLU multilayer perceptron on flattened inputs: (batch, ...) -> (batch, num_classes)."""

    def __init__(self, *, in_features: int, hidden_features: int, num_hidden: int, num_classes: int) -> None:
        super().__init__()
        widths = [in_features, *[hidden_features] * num_hidden]
        hidden = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], num_classes))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        scores: torch.Tensor = self.layers(inputs)
        return scores


class Cnn(nn.Module):
    """Three convolutions with batch norm, then the mean over positions: (batch, c, h, w) -> (batch, num_classes)."""

    def __init__(self, *, in_channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        channels = (in_channels, width, 2 * width, 4 * width)
        blocks = [
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(channels)
        ]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels[-1], num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        scores: torch.Tensor = self.classifier(self.features(images).mean(dim=(2, 3)))
        return scores


class LeNet(nn.Module):
    """The network of luz's article on the learning rate finder: (batch, 1, 28, 28) -> (batch, num_classes)."""

    def __init__(self, *, dropout: float, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(dropout),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(nn.Linear(1600, 128), nn.Dropout(dropout), nn.Linear(128, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        scores: torch.Tensor = self.classifier(self.features(images))
        return scores


class CharGpt(nn.Module):
    """A small pre-norm GPT: characters (batch, time) -> next-character scores (batch, vocab_size, time).

    Args:
        vocab_size: Number of characters.
        context_length: Longest input.
        width: Size of an embedding, divisible by ``num_heads``.
        num_layers: Transformer blocks.
        num_heads: Attention heads.

    References:
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (initialisation, pre-norm blocks).
    """

    def __init__(self, *, vocab_size: int, context_length: int, width: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width must be divisible by num_heads={num_heads}, got {width}")
        self.characters = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context_length, width)
        self.blocks = nn.ModuleList(_Block(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                is_residual = name.endswith(("attention_out.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * num_layers) ** 0.5 if is_residual else 0.02)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        """Scores of the next character at every position."""
        positions = torch.arange(characters.shape[1], device=characters.device)
        hidden = self.characters(characters) + self.positions(positions)
        for block in self.blocks:
            hidden = block(hidden)
        scores: torch.Tensor = self.head(self.norm(hidden))
        return scores.transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        batch, time, width = hidden.shape
        query, key, value = (
            part.view(batch, time, self.num_heads, -1).transpose(1, 2)
            for part in self.attention_in(self.norm_1(hidden)).split(width, dim=2)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.attention_out(attended.transpose(1, 2).reshape(batch, time, width))
        out: torch.Tensor = hidden + self.mlp(self.norm_2(hidden))
        return out
