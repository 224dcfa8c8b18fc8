"""kill -9 at random moments, also inside the write: the resumed run is the run that was never killed.

`pytest tests/faults/test_kill.py --kills 200` for more of them.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter

import faulty_run as program
import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # by torchdata
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # more workers than cores
]
# What a write is made of: the process dies at one of these calls, before or after it is made.
CALLS = ("fsync", "replace", "open", "symlink", "unlink")


def die_in_the_write(folder, kind, call, count, after, result):
    """Train, and die in the `count`-th call of a function of the system."""
    original = getattr(os, call)
    left = [count]
    process = os.getpid()

    def dying(*arguments, **named):
        if os.getpid() != process:  # in a worker of the loader, whose death is another fault
            return original(*arguments, **named)
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        value = original(*arguments, **named)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    setattr(os, call, dying)
    program.train(folder, kind, result=result)


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    """The result and the seconds of each kind of run, made when first asked for."""
    made = {}

    def of(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("whole")
            began = time.monotonic()
            process = program.start(program.train, folder / "checkpoints", kind, result=folder / "result.pt")
            process.join(120)
            assert process.exitcode == 0
            made[kind] = folder / "result.pt", time.monotonic() - began
        return made[kind]

    return of


@pytest.mark.parametrize("kinds", [program.KINDS, program.HARD_KINDS], ids=["kinds", "hard kinds"])
def test_killed_runs_come_to_the_same_end(tmp_path, never_killed, request, kinds):
    trials = request.config.getoption("--kills")
    chance = random.Random(trials)
    killed = 0
    outcomes: Counter[tuple[str, str]] = Counter()
    for trial in range(trials):
        kind = list(kinds)[trial % len(kinds)]
        expected, seconds = never_killed(kind)
        folder, result = tmp_path / str(trial) / "checkpoints", tmp_path / str(trial) / "result.pt"
        folder.parent.mkdir()
        while True:  # until a kill comes before the end
            if chance.random() < 0.5:
                process = program.start(program.train, folder, kind, result=result)
                process.join(chance.uniform(0, seconds))
                process.kill()
            else:
                call, count = chance.choice(CALLS), chance.randint(1, 60)
                process = program.start(die_in_the_write, folder, kind, call, count, chance.random() < 0.5, result)
            process.join(120)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            killed += 1
            if chance.random() < 0.6:
                process = program.start(program.train, folder, kind, result=result)
                process.join(120)
                assert process.exitcode == 0
                break
        told = kinds[kind].get("may_tell", False) and folder.with_suffix(".told").exists()
        outcomes[kind, "identical" if program.same(result, expected) else "told" if told else "DIFFERENT"] += 1
    print(f"{killed} kills in {trials} runs: {dict(outcomes)}")
    assert not [kind for kind, outcome in outcomes if outcome == "DIFFERENT"]
    assert killed >= trials // 2
