"""How good are suggested learning rates? See `python -m benchmarks.lr_bench --help`."""
