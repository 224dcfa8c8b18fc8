"""The networks of the tasks: small, but of every common kind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.lr_bench.data import CONTEXT

SYMBOLS = 96


def mlp(inputs: int, hidden: int, outputs: int, *, depth: int = 1, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """A plain perceptron of `depth` hidden layers, initialised as torch does."""
    layers: list[nn.Module] = []
    width = inputs
    for _ in range(depth):
        layers += [nn.Linear(width, hidden), activation()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def cnn(channels: int, width: int, *, norm: bool, outputs: int = 10) -> nn.Module:
    """Three convolutions of stride 2, pooled, one linear layer."""
    layers: list[nn.Module] = []
    for index, out_channels in enumerate((width, 2 * width, 4 * width)):
        layers.append(nn.Conv2d(channels, out_channels, 3, stride=1 if channels == 1 and index == 0 else 2, padding=1))
        layers += [nn.BatchNorm2d(out_channels), nn.ReLU()] if norm else [nn.ReLU()]
        channels = out_channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


class ResidualBlock(nn.Module):
    """Two convolutions with BatchNorm, and a way around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images or maps [N, C, H, W] in, maps out."""
        return torch.relu(self.body(images) + self.shortcut(images))


def resnet(width: int) -> nn.Module:
    """A stem and three residual blocks, on images of half the side."""
    return nn.Sequential(
        nn.AvgPool2d(2),
        nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        ResidualBlock(width, width, 1),
        ResidualBlock(width, 2 * width, 2),
        ResidualBlock(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


class VisionTransformer(nn.Module):
    """Patches of 8 x 8 pixels, two pre-norm layers, the mean of the tokens."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, 32, 32] in, scores [N, 10] out."""
        return self.head(self.body(self.patches(images).flatten(2).transpose(1, 2) + self.position).mean(1))


class LanguageModel(nn.Module):
    """Next-character prediction; a subclass gives the body. Outputs are [batch, symbols, length]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, width)
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, characters: Tensor) -> Tensor:
        """Characters [N, length] in, scores [N, symbols, length] out."""
        return self.head(self.body(self.embedding(characters))).transpose(1, 2)


class RecurrentModel(LanguageModel):
    """A GRU."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(width)
        self.gru = nn.GRU(width, width, batch_first=True)

    def body(self, embedded: Tensor) -> Tensor:
        """[N, length, width] in and out."""
        return self.gru(embedded)[0]


class TransformerModel(LanguageModel):
    """Two causal pre-norm layers."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(width)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def body(self, embedded: Tensor) -> Tensor:
        """[N, length, width] in and out."""
        return self.encoder(embedded + self.position, mask=self.mask, is_causal=True)
