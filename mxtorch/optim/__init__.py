"""Optimizers whose learning rate can be read, set and scheduled."""

from mxtorch.optim.scheduled import ScheduledOptim

__all__ = ["ScheduledOptim"]
