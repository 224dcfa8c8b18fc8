from __future__ import annotations

import errno
import multiprocessing
import shutil
import socket
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

import model_zoo
from model_zoo import download
from model_zoo.weights import cache_folder


def cached():
    folder = cache_folder()
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_download_is_verified_and_kept(published, monkeypatch, agree):
    served, net = published
    assert agree(model_zoo.resnet10t(pretrained=True), net)
    assert [path for path, _ in served.requests] == ["/resnet10t-test.pth"]
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    assert agree(model_zoo.resnet10t(pretrained=True), net)
    assert not [name for name in cached() if name.endswith(".part")]


def test_a_damaged_file_in_the_cache_is_fetched_again(published, monkeypatch, agree):
    served, net = published
    model_zoo.resnet10t(pretrained=True)
    path = cache_folder() / "resnet10t-test.pth"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert agree(model_zoo.resnet10t(pretrained=True), net)
    assert len(served.requests) == 2
    path.write_bytes(path.read_bytes()[:1000])
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    with pytest.raises(model_zoo.WeightsError, match="damaged or another file"):
        model_zoo.resnet10t(pretrained=True)


def test_other_weights_of_the_same_shape(published):
    served, _ = published
    torch.manual_seed(5)
    torch.save(model_zoo.resnet10t().state_dict(), served.folder / "resnet10t-test.pth")
    with pytest.raises(model_zoo.WeightsError, match="the sha256 of what it sent starts with"):
        model_zoo.resnet10t(pretrained=True)
    assert "resnet10t-test.pth" not in cached()


@pytest.mark.parametrize("digits", [0, 8, 64])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<html>Not found</html>", "an HTML page"),
        (b"\n <!DOCTYPE html>", "an HTML page"),
        (b'<?xml version="1.0"?>', "an HTML page"),
        (b"", "nothing"),
    ],
)
def test_other_content_in_place_of_a_file_is_not_kept(published, pin, sha256, content, kind, digits):
    served, _ = published
    path = served.folder / "resnet10t-test.pth"
    pin("resnet10t", model_zoo.WeightFile(path.name, f"{served.address}/{path.name}", sha256(path)[:digits]))
    path.write_bytes(content)
    with pytest.raises(model_zoo.WeightsError, match=f"did not send the file but {kind}"):
        model_zoo.resnet10t(pretrained=True)
    assert not [name for name in cached() if not name.endswith(".lock")]


def test_an_interrupted_download_continues(published, agree):
    served, net = published
    size = (served.folder / "resnet10t-test.pth").stat().st_size
    served.breaks = [size // 2, size // 4]
    assert agree(model_zoo.resnet10t(pretrained=True), net)
    assert [begin for _, begin in served.requests] == [None, f"bytes={size // 2}-", f"bytes={size // 2 + size // 4}-"]


def test_another_process_continues_a_download(published, agree):
    served, net = published
    served.breaks = [1000, 0]
    with pytest.raises(model_zoo.WeightsError, match="ended after 1000 of"):
        model_zoo.resnet10t(pretrained=True)
    assert [name for name in cached() if name.endswith(".part")] == ["resnet10t-test.pth.part"]
    assert agree(model_zoo.resnet10t(pretrained=True), net)
    assert served.requests[-1][1] == "bytes=1000-"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_part_of_another_file_is_removed(published, agree, ranges):
    served, net = published
    served.ranges = ranges
    cache_folder().mkdir(parents=True)
    (cache_folder() / "resnet10t-test.pth.part").write_bytes(b"the beginning of something else")
    assert agree(model_zoo.resnet10t(pretrained=True), net)


def test_a_server_that_never_sends_a_complete_file(published):
    served, _ = published
    served.breaks = [10] * 20
    with pytest.raises(model_zoo.WeightsError, match="the part is kept, call again"):
        model_zoo.resnet10t(pretrained=True)
    assert len(served.requests) == download.ATTEMPTS
    assert "resnet10t-test.pth" not in cached()


def test_a_missing_file(published):
    served, _ = published
    (served.folder / "resnet10t-test.pth").unlink()
    with pytest.raises(model_zoo.WeightsError, match="the server answers 404"):
        model_zoo.resnet10t(pretrained=True)


def test_plain_http_is_refused(tmp_path, published):
    with pytest.raises(model_zoo.WeightsError, match="only over https"):
        download.download("http://weights.invalid/a.pth", model_zoo.WeightFile("a.pth"), tmp_path)
    served, _ = published
    served.redirects["/resnet10t-test.pth"] = "http://weights.invalid/a.pth"
    with pytest.raises(model_zoo.WeightsError, match="which is not https"):
        model_zoo.resnet10t(pretrained=True)


def test_a_hash_that_the_server_announces(published, pin, sha256, agree):
    served, net = published
    path = served.folder / "resnet10t-test.pth"
    served.redirects["/hub/model.pth"] = f"{served.address}/{path.name}"
    pin("resnet10t", model_zoo.WeightFile("resnet10t.pth", f"{served.address}/hub/model.pth"))
    served.announced = "0" * 64
    with pytest.raises(model_zoo.WeightsError, match="expected 00000000"):
        model_zoo.resnet10t(pretrained=True)
    served.announced = sha256(path)
    assert agree(model_zoo.resnet10t(pretrained=True), net)
    # Now the hash is recorded.
    (cache_folder() / "resnet10t.pth").write_bytes(b"something else")
    served.redirects.clear()
    with pytest.raises(model_zoo.WeightsError, match="damaged or another file"):
        model_zoo.resnet10t(pretrained=True)


def test_processes_that_start_together_fetch_once(published, sha256):
    served, _ = published
    path = served.folder / "resnet10t-test.pth"
    url = f"{served.address}/{path.name}"
    file = model_zoo.WeightFile(path.name, url, sha256(path))
    with ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as processes:
        fetched = [processes.submit(download.download, url, file, cache_folder()) for _ in range(3)]
        paths = [one.result(100) for one in fetched]
    assert [one.stat().st_size for one in paths] == [path.stat().st_size] * 3
    assert len(served.requests) == 1


def test_a_full_disk(published, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(model_zoo.WeightsError, match="is full; free some space, or set MXTORCH_HOME"):
        model_zoo.resnet10t(pretrained=True)
    assert not [name for name in cached() if not name.endswith(".lock")]


def test_a_disk_that_becomes_full_during_a_download(published, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(model_zoo.WeightsError, match="is full"):
        model_zoo.resnet10t(pretrained=True)
    assert not [name for name in cached() if not name.endswith(".lock")]


def test_a_read_only_cache(published, monkeypatch, agree, tmp_path):
    _, net = published
    model_zoo.resnet10t(pretrained=True)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(download.Path, "mkdir", refuse)
    assert agree(model_zoo.resnet10t(pretrained=True), net), "reading needs no writing"
    monkeypatch.setenv("MXTORCH_HOME", str(tmp_path / "other"))
    with pytest.raises(model_zoo.WeightsError, match="can't be written; set MXTORCH_HOME"):
        model_zoo.resnet10t(pretrained=True)


@pytest.mark.parametrize("how", ["refuses", "is silent"])
def test_without_a_connection_the_error_comes_soon(monkeypatch, how):
    over = threading.Event()

    def connect(address, timeout):
        if how == "refuses":
            raise socket.gaierror(-2, "Name or service not known")
        over.wait(120)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", connect)
    started = time.perf_counter()
    with pytest.raises(model_zoo.WeightsError) as error:
        model_zoo.create("resnext101_32x4d", pretrained=True)
    assert time.perf_counter() - started < 30  # it gives up after 2 seconds, and each address would take two minutes
    over.set()
    assert "github.com can't be reached" in str(error.value)
    assert "huggingface.co can't be reached" in str(error.value)


def test_a_proxy_is_probed_in_place_of_the_server(monkeypatch):
    asked = []
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: asked.append(address) or socket.socket())
    assert download.unreachable(["https://a.invalid/1", "https://b.invalid/2"]) == {}
    assert asked == [("proxy.invalid", 3128)]


def test_planted_symlinks_are_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted = tmp_path / "weights.part"
    planted.symlink_to(victim)
    with (
        pytest.raises(OSError, match="symbolic link"),
        open(planted, "wb", opener=download._not_through_links) as file,
    ):
        file.write(b"weights")
    assert victim.read_text() == "precious"
