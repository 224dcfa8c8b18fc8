from __future__ import annotations

import errno
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


@pytest.mark.parametrize("kind", ["reserved by the system", "written"])
def test_a_table_in_a_file_has_its_room_and_no_name(tmp_path, monkeypatch, kind):
    taken = []
    if kind == "written":
        monkeypatch.delattr(os, "posix_fallocate")
    reserve = storage._reserve

    def recorded(descriptor, size):
        reserve(descriptor, size)
        taken.append((os.fstat(descriptor).st_size, os.fstat(descriptor).st_blocks * 512))

    monkeypatch.setattr(storage, "_reserve", recorded)
    table = storage.table((300, 1000), torch.float16, tmp_path)
    table[1] = 2.5
    assert table[0:3, 7].tolist() == [0, 2.5, 0]
    size, room = taken[0]
    assert size == 600_000
    assert room >= size, "the file has holes, and a disk that fills up ends the process"
    assert not list(tmp_path.iterdir()), "a killed process would leave the file behind"


def test_a_disk_without_room_is_an_error_before_anything_is_computed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        storage.table((3, 4), torch.float16, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("size", "words"), [(12, "12 bytes"), (2_000, "2.0 kB"), (3.2e6, "3.2 MB"), (5e9, "5.0 GB"), (7e12, "7.0 TB")]
)
def test_sizes_in_words(size, words):
    assert storage.in_words(size) == words
