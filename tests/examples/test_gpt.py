from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from launching import launch, values

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import gpt


def train(rank: int, folder: str, *arguments: str) -> None:
    sys.argv = ["gpt.py", "--device", "cpu", "--folder", folder, "--text", "40000", "--length", "64", *arguments]
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # of outputs that are views, which nothing changes here
    gpt.main()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_a_small_one(strategy, tmp_path):
    ended = launch(2, train, str(tmp_path), "--strategy", strategy)
    values(ended)
    assert "2 processes: batches of 16 x 2 = 32 samples" in ended[0].output
    assert "val/loss" in ended[0].output
    assert "val/loss" not in ended[1].output
    assert (tmp_path / "last.ckpt").resolve().is_dir() == (strategy == "fsdp2")


def test_sizes_are_what_they_are_called():
    size = gpt.SIZES["1b"]
    assert 0.95e9 < 12 * size.layers * size.width**2 < 1.05e9


def test_the_next_byte_follows_from_those_before():
    model = gpt.GPT(gpt.SIZES["tiny"], 8).eval()
    text = torch.randint(256, (1, 8))
    changed = text.clone()
    changed[0, 5] += 1
    assert torch.allclose(model(text)[0, :5], model(changed)[0, :5], atol=1e-6)
    assert not torch.allclose(model(text)[0, 5:], model(changed)[0, 5:], atol=1e-6)
