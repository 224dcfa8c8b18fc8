"""What the outputs of a model are, as its loss tells: what has to be done to them to have probabilities."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from mxtorch._checks import closest

# softmax: logits of classes of which one is right; sigmoid: logits of independent classes; exp: logarithms of
# probabilities; probabilities: of independent classes already; raw: numbers, as in regression.
Outputs = Literal["softmax", "sigmoid", "exp", "probabilities", "raw"]
OUTPUTS: tuple[str, ...] = get_args(Outputs)
WORDS = {
    "softmax": "logits of classes of which one is right, made probabilities by softmax",
    "sigmoid": "logits of independent classes, made probabilities by the sigmoid",
    "exp": "logarithms of probabilities, made probabilities by exp",
    "probabilities": "probabilities of independent classes",
    "raw": "numbers, given as they are",
}
_OF_LOSSES: dict[type[nn.Module], Outputs] = {
    nn.CrossEntropyLoss: "softmax",
    nn.BCEWithLogitsLoss: "sigmoid",
    nn.MultiLabelSoftMarginLoss: "sigmoid",
    nn.SoftMarginLoss: "sigmoid",
    nn.NLLLoss: "exp",
    nn.KLDivLoss: "exp",
    nn.BCELoss: "probabilities",
} | dict.fromkeys(
    (
        nn.L1Loss,
        nn.MSELoss,
        nn.SmoothL1Loss,
        nn.HuberLoss,
        nn.GaussianNLLLoss,
        nn.PoissonNLLLoss,
        nn.MultiMarginLoss,
        nn.MultiLabelMarginLoss,
        nn.HingeEmbeddingLoss,
        nn.CosineEmbeddingLoss,
        nn.MarginRankingLoss,
        nn.TripletMarginLoss,
    ),
    "raw",
)  # type: ignore[assignment]
_OF_FUNCTIONS: dict[Callable[..., Any], Outputs] = {
    F.cross_entropy: "softmax",
    F.binary_cross_entropy_with_logits: "sigmoid",
    F.multilabel_soft_margin_loss: "sigmoid",
    F.soft_margin_loss: "sigmoid",
    F.nll_loss: "exp",
    F.kl_div: "exp",
    F.binary_cross_entropy: "probabilities",
} | dict.fromkeys(
    (F.l1_loss, F.mse_loss, F.smooth_l1_loss, F.huber_loss, F.gaussian_nll_loss, F.poisson_nll_loss), "raw"
)  # type: ignore[assignment]
_OF_OTHERS: dict[tuple[str, str], Outputs] = {  # package and name
    ("timm", "LabelSmoothingCrossEntropy"): "softmax",
    ("timm", "SoftTargetCrossEntropy"): "softmax",
    ("timm", "BinaryCrossEntropy"): "sigmoid",
    ("timm", "AsymmetricLossMultiLabel"): "sigmoid",
    ("torchvision", "sigmoid_focal_loss"): "sigmoid",
}


def outputs_of(loss: Any, given: str | None = None) -> Outputs:
    """What the outputs of a model are that was trained with a loss.

    Args:
        loss: A module or function, or None.
        given: What the user says; None leaves it to the loss.

    Raises:
        ValueError: The loss does not tell, or `given` is unknown.

    Example:
        >>> outputs_of(nn.BCEWithLogitsLoss()), outputs_of(F.mse_loss), outputs_of(len, "exp")
        ('sigmoid', 'raw', 'exp')
    """
    if given is not None:
        if given not in OUTPUTS:
            raise ValueError(f"outputs: got {given!r}{closest(str(given), OUTPUTS)}")
        return given  # type: ignore[return-value]
    found = _known(loss)
    if found is None:
        name = "there is no loss" if loss is None else f"the loss {_name(loss)} is not one of torch's"
        meanings = "; ".join(f"{key!r}: {words}" for key, words in WORDS.items())
        raise ValueError(f"outputs: {name}, so what the model's outputs are is unknown; give one of {meanings}")
    return found


def _known(loss: Any) -> Outputs | None:
    while isinstance(loss, functools.partial) or hasattr(loss, "_orig_mod"):
        loss = loss.func if isinstance(loss, functools.partial) else loss._orig_mod
    if isinstance(loss, nn.Module):
        for kind in type(loss).__mro__:
            if kind in _OF_LOSSES:
                return _OF_LOSSES[kind]
    try:
        if loss in _OF_FUNCTIONS:
            return _OF_FUNCTIONS[loss]
    except TypeError:  # it can't be hashed, so it is no function of torch
        return None
    package = str(getattr(loss, "__module__", None)).partition(".")[0]
    return _OF_OTHERS.get((package, _name(loss)))


def _name(loss: Any) -> str:
    return str(getattr(loss, "__name__", type(loss).__name__))


def probabilities(outputs: Tensor, kind: str) -> Tensor:
    """Probabilities from outputs [N, k], of any kind but `raw`."""
    if kind == "softmax":
        return outputs.softmax(1)
    if kind == "sigmoid":
        return outputs.sigmoid()
    return outputs.exp() if kind == "exp" else outputs


def is_multi_label(kind: str) -> bool:
    """Whether several classes can be right at once."""
    return kind in ("sigmoid", "probabilities")
