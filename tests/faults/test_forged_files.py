"""No forged file runs code, asks for memory out of proportion to its bytes, or raises an undocumented error.

`pytest tests/faults/test_forged_files.py --fuzz 10000` tries all files by all entry points.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

MOST_TIMES, ALLOWANCE = 4, 64 << 20
# A picture is decoded to 4 bytes a pixel, whatever its file has; its limit is one of pixels.
OF_PICTURES = 4 * 50_000_000 + ALLOWANCE
SCRIPT = Path(__file__).with_name("forged_files.py")


def small_stacks():
    """Threads of the runtimes reserve as much address space as the limit of a stack allows."""
    resource.setrlimit(resource.RLIMIT_STACK, (2 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="address space is measured in Linux's way")
def test_forged_files(tmp_path, request):
    everything = request.config.getoption("--fuzz") > 1000
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "1" if everything else "2"],
        env=environment,
        preexec_fn=small_stacks,
        capture_output=True,
        text=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-2000:]
    assert len({row["file"] for row in rows}) >= 300
    assert {row["entry"] for row in rows if row["error"]} >= {"Trainer.load", "model_zoo.create", "exporting.load"}
    assert [row for row in rows if row["ran"]] == []
    assert [row for row in rows if not row["documented"]] == []
    most = {True: OF_PICTURES, False: ALLOWANCE}
    asked = [row for row in rows if row["asked"] > MOST_TIMES * row["size"] + most[row["entry"] == "Predictor.predict"]]
    assert asked == []
