"""Initialisers: small frozen objects, by name, for one tensor, a layer or a whole network.

Names, arguments and defaults are those of `torch.nn.init`, which does the filling. An initialiser can be compared,
printed and pickled, and takes a `generator`, so that a seed gives the same weights whatever else was drawn.
"""

from __future__ import annotations

from mxtorch.init.base import Function, Initializer, Place
from mxtorch.init.default import Default
from mxtorch.init.filling import Constant, Normal, Ones, TruncatedNormal, Uniform, Zeros
from mxtorch.init.gain import gain_of
from mxtorch.init.network import Report, Row, initialize, own_initializers, reset
from mxtorch.init.registry import InitializerLike, get, register
from mxtorch.init.residual import last_norms
from mxtorch.init.scaled import (
    Fixup,
    KaimingNormal,
    KaimingUniform,
    LecunNormal,
    LecunUniform,
    Orthogonal,
    XavierNormal,
    XavierUniform,
)
from mxtorch.init.signal import LayerSignal, Signal, check
from mxtorch.init.structured import Bilinear, Dirac, Identity, LSTMBias, Sparse

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
