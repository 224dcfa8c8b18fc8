"""Knowing the result of a classification: which classes are confused, which samples go wrong, how sure it may be."""

from mxtorch.interpretation.result import Interpretation

__all__ = ["Interpretation"]
