"""`torch.nn`, with layers that take initialisers, a norm and an activation.

Everything in `torch.nn` is here under the same name. The layers with parameters are subclasses of torch's. They also
take `weight_init=`, `bias_init=` and `activation=`; convolutions and linear layers also take `norm=` and `order=`. If a
size is None, the layer reads it from its first batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn as _torch_nn

from mxtorch.nn.activation import ActivationName
from mxtorch.nn.composition import Order
from mxtorch.nn.convolution import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from mxtorch.nn.embedding import Embedding
from mxtorch.nn.layer import Layer
from mxtorch.nn.linear import Bilinear, Dense, Linear
from mxtorch.nn.multihead_attention import MultiheadAttention
from mxtorch.nn.normalisation import BatchNorm1d, BatchNorm2d, BatchNorm3d, ChannelNorm, GroupNorm, LayerNorm, NormName
from mxtorch.nn.prelu import PReLU
from mxtorch.nn.recurrent import GRU, LSTM, RNN

if TYPE_CHECKING:
    from torch.nn import *  # type: ignore[assignment]  # noqa: F403  (the names above take precedence)
else:
    globals().update(
        {name: value for name, value in vars(_torch_nn).items() if name[0] != "_" and name not in globals()}
    )

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "ActivationName",
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
    "NormName",
    "Order",
    "PReLU",
]
