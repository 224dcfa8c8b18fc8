"""How good suggested learning rates are: every table, from recorded data, in about a minute.

    python -m benchmarks.lr_bench [--half development|reporting]

1. `find_lr` itself, by default and with a budget of a fifth of the training (`record_searches`).
2. The rules of its search on recorded short trainings, at several budgets (`simulate`).
3. The peers by their own API, and no finder (`landscape`, `record_peers`).

Regret is (loss at the rate - best loss) / (untrained loss - best loss) at the end of the whole training, on validation
samples. `recordings/README.md` says how everything was recorded, and on what machine.
"""

from __future__ import annotations

import argparse

from benchmarks.lr_bench import record_searches, simulate
from benchmarks.lr_bench.landscape import default_rate, load, peers, report, tenth_for_sgd


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("development", "reporting"))
    half = parser.parse_args().half
    for each in (half,) if half else ("development", "reporting"):
        tasks = load(half=each)
        print(f"# {each} half: {len(tasks)} tasks\n\n## find_lr")
        if record_searches.SEARCHES.exists():
            print(record_searches.report(each))
        print("\n## Its rules on recorded short trainings")
        for label, steps_of in simulate.RUNS.items():
            print(simulate.table(label, simulate.run_all(tasks, steps_of)))
        print("\n## Peers, and no finder")
        others = {"no finder": default_rate, "no finder, .1 for SGD one-cycle": tenth_for_sgd}
        print(report(tasks, {**others, **peers()}))


if __name__ == "__main__":
    main()
