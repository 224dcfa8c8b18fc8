from __future__ import annotations

import copy
import dataclasses
import functools
import http.server
import os
import pickle
import threading
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import model_zoo
from model_zoo import entries
from model_zoo import weights as weight_files

pytestmark = pytest.mark.filterwarnings("ignore:.*not writable.*")


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("MXTORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("MXTORCH_WEIGHTS_MIRROR", "MXTORCH_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", model_zoo.list_models())
def test_fc_is_the_real_head(name):
    with torch.device("meta"):
        net = getattr(model_zoo, name)(num_classes=7)
        net.eval()
        size = model_zoo.info(name).image_size
        picture = torch.empty(1, 3, size, size)
        assert net(picture).shape == (1, 7)
        keys = list(net.state_dict())
        net.fc = nn.Linear(net.fc.in_features, 120)
        assert net(picture).shape == (1, 120)
        assert list(net.state_dict()) == keys
        assert copy.deepcopy(net)(picture).shape == (1, 120)


def test_copies_and_compiled_networks_keep_the_head():
    net = model_zoo.efficientnet_lite0(num_classes=3).eval()
    picture = torch.randn(1, 3, 64, 64)
    expected = net(picture)
    twin = pickle.loads(pickle.dumps(net))
    assert torch.equal(twin(picture), expected)
    twin.fc = nn.Linear(1280, 4)
    assert twin(picture).shape == (1, 4)
    assert twin.num_classes == 4
    assert (net.fc.out_features, twin.zoo_name) == (3, "efficientnet_lite0")
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(picture), expected)
    with pytest.raises(TypeError, match=r"nn\.Linear\(1280"):
        net.fc = 5


def test_freeze_leaves_the_head():
    net = model_zoo.freeze(model_zoo.efficientnet_lite0())
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["classifier.weight", "classifier.bias"]
    assert all(p.requires_grad for p in model_zoo.unfreeze(net).parameters())


def test_the_package_brings_real_weights(monkeypatch):
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    net = model_zoo.efficientnet_lite0(pretrained=True).eval()
    assert net.zoo_weights == "in1k"
    assert float(net.bn1.running_mean.abs().max()) > 0.01, "a fresh network has zeros here"
    small = model_zoo.efficientnet_lite0(pretrained=True, num_classes=5)
    assert small.fc.out_features == 5
    assert torch.equal(small.conv_stem.weight, net.conv_stem.weight)


def test_preprocessing():
    picture = Image.new("RGB", (300, 200), (255, 0, 0))
    for name, size in (("inceptionresnetv2", 299), ("resnet50", 224)):
        out = model_zoo.preprocess(name)(picture)
        assert out.shape == (3, size, size)
    assert out[0].mean() == pytest.approx((1 - 0.485) / 0.229, rel=1e-4)
    assert model_zoo.preprocess(name, train=True, size=96)(picture).shape == (3, 96, 96)
    with pytest.raises(ValueError, match="not built by the zoo"):
        model_zoo.preprocess(nn.Linear(1, 1))


def test_unknown_names():
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        model_zoo.create("resnet5O")
    with pytest.raises(ValueError, match="IMAGENET1K_V1, IMAGENET1K_V2"):
        model_zoo.resnet50(pretrained="imagenet")
    with pytest.raises(ValueError, match="num_classes"):
        model_zoo.resnet18(num_classes=0)
    assert model_zoo.list_models("resnext*") == ["resnext50_32x4d", "resnext101_32x4d", "resnext101_64x4d"]


# ---------------------------------------------------------------- files


def write_weights(path, seed=0):
    torch.manual_seed(seed)
    net = model_zoo.resnet18()
    torch.save(net.state_dict(), path)
    return net


def hash_of(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """ResNet-18 whose weights are served by a local server."""
    folder = tmp_path / "served"
    folder.mkdir()
    net = write_weights(folder / "resnet18-test.pth")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/resnet18-test.pth"
    file = entries.WeightFile("resnet18-test.pth", url, hash_of(folder / "resnet18-test.pth")[:8])
    entry = entries.ENTRIES["resnet18"]
    pinned = dataclasses.replace(entry.weights[0], files=(file,))
    monkeypatch.setitem(entries.ENTRIES, "resnet18", dataclasses.replace(entry, weights=(pinned,)))
    yield folder, net
    server.shutdown()
    server.server_close()


def test_a_download_is_verified_and_kept(served, monkeypatch):
    _, net = served
    assert torch.equal(model_zoo.resnet18(pretrained=True).conv1.weight, net.conv1.weight)
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    assert torch.equal(model_zoo.resnet18(pretrained=True).conv1.weight, net.conv1.weight)
    cached = list(weight_files.cache_folder().iterdir())
    assert [path.name for path in cached] == ["resnet18-test.pth"]
    cached[0].write_bytes(cached[0].read_bytes()[:-1] + b"x")
    with pytest.raises(model_zoo.WeightsError, match="damaged or another file"):
        model_zoo.resnet18(pretrained=True)


@pytest.mark.parametrize("content", ["<html>Not found</html>", ""])
def test_what_comes_in_place_of_a_file(served, content):
    folder, _ = served
    (folder / "resnet18-test.pth").write_text(content)
    with pytest.raises(model_zoo.WeightsError, match="not the file"):
        model_zoo.resnet18(pretrained=True)
    assert not list(weight_files.cache_folder().iterdir())


def test_a_mirror_folder(served, monkeypatch):
    folder, net = served
    monkeypatch.setenv("MXTORCH_WEIGHTS_MIRROR", str(folder))
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    assert torch.equal(model_zoo.resnet18(pretrained=True).conv1.weight, net.conv1.weight)


def test_offline_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    started = time.perf_counter()
    with pytest.raises(model_zoo.WeightsError) as error:
        model_zoo.resnet50(pretrained=True)
    assert time.perf_counter() - started < 3
    message = str(error.value)
    for part in (
        "resnet50",
        "IMAGENET1K_V1",
        "https://download.pytorch.org",
        "0676ba61",
        str(weight_files.cache_folder()),
    ):
        assert part in message


def test_plain_http_is_refused():
    file = entries.WeightFile("a.pth", "", "")
    with pytest.raises(model_zoo.WeightsError, match="https"):
        weight_files.download("http://weights.invalid/a.pth", file)


class Planted:
    def __reduce__(self):
        return os.system, ("touch planted",)


def test_files_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = write_weights(tmp_path / "mine.pth", seed=3)
    assert torch.equal(model_zoo.resnet18(weights="mine.pth").fc.weight, net.fc.weight)
    save_file(net.state_dict(), "mine.safetensors")
    assert torch.equal(model_zoo.resnet18(weights="mine.safetensors").fc.weight, net.fc.weight)
    with pytest.raises(ValueError, match="of another model"):
        model_zoo.resnet34(weights="mine.pth")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        model_zoo.resnet18(weights="absent.pth")
    torch.save({"conv1.weight": Planted()}, "planted.pth")
    with pytest.raises(ValueError, match="refused"):
        model_zoo.resnet18(weights="planted.pth")
    assert not (tmp_path / "planted").exists()
