"""`torch.nn`, with layers that say how they are initialised.

Everything that `torch.nn` has is here under its name. The layers with parameters are subclasses of torch's that take
`weight_init=`, `bias_init=` and `activation=`; convolutions and linear layers also `norm=` and `order=`. Sizes left out
are read off the first batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn as _torch_nn

from mxtorch.nn.activation import PReLU
from mxtorch.nn.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from mxtorch.nn.embedding import Embedding
from mxtorch.nn.layer import Layer
from mxtorch.nn.linear import Bilinear, Dense, Linear
from mxtorch.nn.multihead_attention import MultiheadAttention
from mxtorch.nn.normalisation import BatchNorm1d, BatchNorm2d, BatchNorm3d, ChannelNorm, GroupNorm, LayerNorm
from mxtorch.nn.recurrent import GRU, LSTM, RNN

if TYPE_CHECKING:
    from torch.nn import *  # type: ignore[assignment]  # noqa: F403  (what stands above counts)
else:
    globals().update(
        {name: value for name, value in vars(_torch_nn).items() if name[0] != "_" and name not in globals()}
    )

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Bilinear",
    "ChannelNorm",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Dense",
    "Embedding",
    "GroupNorm",
    "Layer",
    "LayerNorm",
    "Linear",
    "MultiheadAttention",
    "PReLU",
]
