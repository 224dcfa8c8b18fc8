"""What must hold on two CUDA devices; skipped where there are fewer.

The processes are started anew for each test: a process that has used CUDA can't be forked.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
SCRIPT = Path(__file__).with_name("two_devices.py")
ROOT = Path(__file__).parents[2]


def on_two(what: str, *arguments: str, devices: int = 2, device: str = "cuda") -> str:
    """Run a part of `two_devices.py` on so many processes; what the main one wrote."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "4"}
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={devices}", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(SCRIPT), what, device, *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-6000:]
    return ran.stdout


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_devices_train_as_one_with_the_batch_of_both(strategy, precision):
    if (strategy, precision) == ("fsdp2", "fp16"):
        pytest.skip("which fsdp2 refuses")
    assert "equal" in on_two("equality", strategy, precision)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_run_goes_on_bit_for_bit(strategy, tmp_path):
    assert "goes on" in on_two("resume", strategy, str(tmp_path))


def test_a_search_finds_the_same_on_both_and_leaves_no_trace():
    assert "no trace" in on_two("search")


def test_no_step_waits_for_the_device():
    assert "no waiting" in on_two("waiting")


def test_batch_normalisation_sees_the_batch_of_both():
    assert "equal" in on_two("sync_batch_norm")


def test_a_bad_number_on_one_is_found_by_both():
    assert "found by both" in on_two("nonfinite")


@pytest.mark.parametrize("fault", ["exception", "killed", "hangs"])
def test_what_ends_one_ends_the_other(fault):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(SCRIPT), "fault", "cuda", fault]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert ran.returncode != 0
    assert {"exception": "the step is broken", "killed": "is gone", "hangs": "the step is broken"}[fault] in ran.stderr
