"""Models that only the package pretrainedmodels defines. The facts are those of its README and its settings."""

from __future__ import annotations

from ..cards import Entry, Weights
from ..preprocessing import Preprocessing
from .sources import HALF, PLAIN, weights_of_cadene


def _model(name: str, family: str, parameters: int, gmacs: float, weights: Weights) -> Entry:
    return Entry(name, f"cadene:{name}", family, parameters, gmacs, (weights,))


# fmt: off
MODELS = (
    _model(
        "nasnetamobile", "nasnetamobile", 5289978, 0.568,
        weights_of_cadene("nasnetamobile-7e03cead.pth", 74.08, Preprocessing(mean=HALF, std=HALF)),
    ),
    _model("fbresnet152", "fbresnet", 60268520, 11.514, weights_of_cadene("fbresnet152-2e20f6b4.pth", 77.386, PLAIN)),
    _model(
        "bninception", "bninception", 11295240, 2.033,
        weights_of_cadene(
            "bn_inception-52deb4733.pth", 73.522,
            Preprocessing(mean=(104 / 255, 117 / 255, 128 / 255), std=(1 / 255,) * 3, channels="BGR"),
        ),
    ),
    _model(
        "cafferesnet101", "fbresnet", 44549160, 7.57,
        weights_of_cadene(
            "cafferesnet101-9d633cc0.pth", 76.2,
            Preprocessing(mean=(102.9801 / 255, 115.9465 / 255, 122.7717 / 255), std=(1 / 255,) * 3, channels="BGR"),
        ),
    ),
    _model(
        "polynet", "polynet", 95366600, 34.699,
        weights_of_cadene("polynet-f71d82a5.pth", 81.002, Preprocessing(331, 378)),
    ),
)
# fmt: on
