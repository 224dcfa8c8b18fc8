"""Names of tensors in files of pretrained-models.pytorch and older libraries, and the names of these tensors here."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

Rules = tuple[tuple[str, str], ...]

_FEATURES = (r"^_features\.", "features.")
_VGG: Rules = (
    _FEATURES,
    (r"^linear0\.", "classifier.0."),
    (r"^linear1\.", "classifier.3."),
    (r"^last_linear\.", "classifier.6."),
)
_SQUEEZENET: Rules = (_FEATURES, (r"^last_conv\.", "classifier.1."))
_RESNEXT_BLOCK = {
    r"0\.0\.0": "conv1",
    r"0\.0\.1": "bn1",
    r"0\.0\.3": "conv2",
    r"0\.0\.4": "bn2",
    r"0\.1": "conv3",
    r"0\.2": "bn3",
    r"1\.0": "downsample.0",
    r"1\.1": "downsample.1",
}

# For each family: regular expressions with their replacements, in the order in which they are applied.
RENAMES: dict[str, Rules] = {
    "alexnet": (
        _FEATURES,
        (r"^linear0\.", "classifier.1."),
        (r"^linear1\.", "classifier.4."),
        (r"^last_linear\.", "classifier.6."),
    ),
    **{f"vgg{layers}{norm}": _VGG for layers in (11, 13, 16, 19) for norm in ("", "_bn")},
    "squeezenet1_0": _SQUEEZENET,
    "squeezenet1_1": _SQUEEZENET,
    # torchvision's own files have dots in the names of modules, which torch does not allow any more.
    "densenet": ((r"\.(norm|conv)\.([12])\.", r".\1\2."), (r"^last_linear\.", "classifier.")),
    "inception_v3": ((r"^last_linear\.", "fc."),),
    "inceptionresnetv2": ((r"^last_linear\.", "classif."),),
    "xception": ((r"^last_linear\.", "fc."),),
    "dpn": ((r"^last_linear\.", "classifier."),),
    "resnet": ((r"^last_linear\.", "fc."),),
    "resnext": (
        (r"^last_linear\.", "fc."),
        (r"^features\.0\.", "conv1."),
        (r"^features\.1\.", "bn1."),
        *(
            (rf"^features\.{stage}\.(\d+)\.0\.{inside}\.", rf"layer{stage - 3}.\1.{name}.")
            for stage in (4, 5, 6, 7)
            for inside, name in _RESNEXT_BLOCK.items()
        ),
    ),
}

# For each family: tensors that a file may have and the network does not, such as an auxiliary classifier for training.
DROPPED = {"inception_v3": ("AuxLogits.",)}


def rename(state: dict[str, Tensor], family: str, expected: Iterable[str]) -> dict[str, Tensor]:
    """Give tensors the names that a network expects. A name that the network already has is not changed.

    Args:
        state: Tensors by their names in a file.
        family: The family of the network, a key of `families.FAMILIES`.
        expected: The names in the network.
    """
    known = set(expected)
    found = {}
    for old, tensor in state.items():
        name = old
        for pattern, new in RENAMES.get(family, ()) if name not in known else ():
            name = re.sub(pattern, new, name)
        if not name.startswith(DROPPED.get(family, ("\0",))):
            found[name] = tensor
    return found
