"""Trained models as files that are used without the training code: writing them, describing them, predicting with them.

    from mxtorch import exporting

    predictor = exporting.load("dogs.onnx")
    predictor.predict("rex.jpg")

or `python -m mxtorch.exporting dogs.onnx rex.jpg`.
"""

from mxtorch.exporting.exporter import export
from mxtorch.exporting.predictor import Predictor, load

__all__ = ["Predictor", "export", "load"]
