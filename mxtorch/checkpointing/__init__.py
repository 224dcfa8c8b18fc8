"""Copies of a training's state, in memory and in files, and the way back."""
