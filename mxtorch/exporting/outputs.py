"""What the outputs of a model are, which follows from its loss; how they become probabilities."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from mxtorch._checks import closest

Outputs = Literal["softmax", "sigmoid", "exp", "probabilities", "raw"]
OUTPUTS: tuple[str, ...] = get_args(Outputs)
WORDS = {
    "softmax": "logits of classes of which one is right, made probabilities by softmax",
    "sigmoid": "logits of independent classes, made probabilities by the sigmoid",
    "exp": "logarithms of probabilities, made probabilities by exp",
    "probabilities": "probabilities of independent classes",
    "raw": "numbers, given as they are",
}
# fmt: off
_LOSSES: dict[Outputs, tuple[Callable[..., Any], ...]] = {
    "softmax": (nn.CrossEntropyLoss, F.cross_entropy),
    "sigmoid": (
        nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss, nn.SoftMarginLoss,
        F.binary_cross_entropy_with_logits, F.multilabel_soft_margin_loss, F.soft_margin_loss,
    ),
    "exp": (nn.NLLLoss, nn.KLDivLoss, F.nll_loss, F.kl_div),
    "probabilities": (nn.BCELoss, F.binary_cross_entropy),
    "raw": (
        nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss, nn.HuberLoss, nn.GaussianNLLLoss, nn.PoissonNLLLoss,
        nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.HingeEmbeddingLoss, nn.CosineEmbeddingLoss,
        nn.MarginRankingLoss, nn.TripletMarginLoss,
        F.l1_loss, F.mse_loss, F.smooth_l1_loss, F.huber_loss, F.gaussian_nll_loss, F.poisson_nll_loss,
    ),
}
# fmt: on
_OF_TORCH: dict[Any, Outputs] = {loss: kind for kind, losses in _LOSSES.items() for loss in losses}
_OF_OTHERS: dict[tuple[str, str], Outputs] = {  # by the package and the name of the loss
    ("timm", "LabelSmoothingCrossEntropy"): "softmax",
    ("timm", "SoftTargetCrossEntropy"): "softmax",
    ("timm", "BinaryCrossEntropy"): "sigmoid",
    ("timm", "AsymmetricLossMultiLabel"): "sigmoid",
    ("torchvision", "sigmoid_focal_loss"): "sigmoid",
}


def outputs_of(loss: Any, given: Outputs | None = None) -> Outputs:
    """What the outputs of a model are that was trained with a loss; see `WORDS` for the meanings.

    Args:
        loss: A module or function, or None.
        given: The user's answer. None derives it from the loss.

    Raises:
        ValueError: The loss is not known, or `given` is unknown.

    Example:
        >>> outputs_of(nn.BCEWithLogitsLoss()), outputs_of(F.mse_loss), outputs_of(len, "exp")
        ('sigmoid', 'raw', 'exp')
    """
    if given is not None:
        if given not in OUTPUTS:
            raise ValueError(f"outputs: got {given!r}{closest(str(given), OUTPUTS)}")
        return given
    found = _known(loss)
    if found is None:
        name = "there is no loss" if loss is None else f"the loss {_name(loss)} is not one of torch's"
        meanings = "; ".join(f"{key!r}: {words}" for key, words in WORDS.items())
        raise ValueError(f"outputs: {name}, so the meaning of the model's outputs is unknown; give one of {meanings}")
    return found


def _known(loss: Any) -> Outputs | None:
    while isinstance(loss, functools.partial) or hasattr(loss, "_orig_mod"):
        loss = loss.func if isinstance(loss, functools.partial) else loss._orig_mod
    kinds = [loss] if isinstance(loss, Hashable) else []  # a loss that is not hashable is no function of torch
    for kind in [*kinds, *type(loss).__mro__]:
        if kind in _OF_TORCH:
            return _OF_TORCH[kind]
    package = str(getattr(loss, "__module__", None)).partition(".")[0]
    return _OF_OTHERS.get((package, _name(loss)))


def _name(loss: Any) -> str:
    return str(getattr(loss, "__name__", type(loss).__name__))


def probabilities(outputs: Tensor, kind: str) -> Tensor:
    """The probabilities for outputs [N, k] of any kind except `raw`."""
    if kind == "softmax":
        return outputs.softmax(1)
    if kind == "sigmoid":
        return outputs.sigmoid()
    return outputs.exp() if kind == "exp" else outputs


def is_multi_label(kind: str) -> bool:
    """Whether several classes can be right for one sample."""
    return kind in ("sigmoid", "probabilities")
