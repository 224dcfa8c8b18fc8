"""Trainings recorded before a change of the code and compared, bit for bit, after it: `python -m benchmarks.parity`."""
