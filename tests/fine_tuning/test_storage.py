from __future__ import annotations

import os

import pytest
import torch

from mxtorch.fine_tuning import storage


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="tells memory in its own way")
def test_free_memory_is_not_more_than_there_is():
    free = storage.free_memory()
    assert free is not None
    assert 0 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_memory_that_is_not_known_is_not_taken(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "free_memory", lambda: None)
    place = storage.choose_place(1000, "auto", "Features")
    assert place is not None
    assert place.folder is not None
    assert storage.choose_place(1000, "memory", "Features").folder is None
    assert storage.choose_place(1000, tmp_path, "Features").folder == tmp_path


def test_a_table_in_a_file(tmp_path):
    table, file = storage.table((3, 4), torch.float16, tmp_path)
    table[1] = 2.5
    assert file.stat().st_size == 24
    assert torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.float16)[4:8].tolist() == [2.5] * 4


@pytest.mark.parametrize(
    ("size", "words"), [(12, "12 bytes"), (2_000, "2.0 kB"), (3.2e6, "3.2 MB"), (5e9, "5.0 GB"), (7e12, "7.0 TB")]
)
def test_sizes_in_words(size, words):
    assert storage.in_words(size) == words
