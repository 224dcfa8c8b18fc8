"""The errors of a classifier: the classes that it confuses, the samples with the highest losses, its calibration."""

from mxtorch.interpretation.collect import interpret
from mxtorch.interpretation.result import Interpretation

__all__ = ["Interpretation", "interpret"]
