"""Initialisers for one tensor, a layer or a whole network.

They are frozen dataclasses with the names, arguments and defaults of `torch.nn.init`, whose functions fill the tensors.
They can be compared, printed and pickled. Each takes a `generator`, so that the same seed gives the same weights.
"""

from __future__ import annotations

from mxtorch.init.base import Function, Initializer, Place
from mxtorch.init.default import Default
from mxtorch.init.gain import gain_of
from mxtorch.init.initializers import (
    Bilinear,
    Constant,
    Dirac,
    Fixup,
    Identity,
    KaimingNormal,
    KaimingUniform,
    LecunNormal,
    LecunUniform,
    LSTMBias,
    Normal,
    Ones,
    Orthogonal,
    Sparse,
    TruncatedNormal,
    Uniform,
    XavierNormal,
    XavierUniform,
    Zeros,
)
from mxtorch.init.network import Report, Row, initialize, own_initializers, reset
from mxtorch.init.registry import InitializerLike, InitializerName, get, register
from mxtorch.init.residual import last_norms
from mxtorch.init.signal import LayerSignal, Signal, check

__all__ = [
    "Bilinear",
    "Constant",
    "Default",
    "Dirac",
    "Fixup",
    "Function",
    "Identity",
    "Initializer",
    "InitializerLike",
    "InitializerName",
    "KaimingNormal",
    "KaimingUniform",
    "LSTMBias",
    "LayerSignal",
    "LecunNormal",
    "LecunUniform",
    "Normal",
    "Ones",
    "Orthogonal",
    "Place",
    "Report",
    "Row",
    "Signal",
    "Sparse",
    "TruncatedNormal",
    "Uniform",
    "XavierNormal",
    "XavierUniform",
    "Zeros",
    "check",
    "gain_of",
    "get",
    "initialize",
    "last_norms",
    "own_initializers",
    "register",
    "reset",
]
