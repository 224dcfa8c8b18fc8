"""Copies of the state of a training, in memory and in files, from which it can be restored."""
