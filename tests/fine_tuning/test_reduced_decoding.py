"""Large JPEG files are decoded at a reduced scale where the transform begins by resizing them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mxtorch import model_zoo
from mxtorch.fine_tuning import FeatureCache
from mxtorch.fine_tuning.reduced_decoding import ReducedJPEG, reduced

TENSOR = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]


def smooth(width, height, seed):
    """A picture without fine detail, as photographs mostly are."""
    values = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Two classes: large JPEG files, a small one, a PNG."""
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(3):
            smooth(640, 480, number).save(tmp_path / label / f"{number}.jpg", quality=95)
        smooth(60, 50, 4).save(tmp_path / label / "small.jpg", quality=95)
        smooth(640, 480, 5).save(tmp_path / label / "whole.png")
    return tmp_path


@pytest.mark.parametrize("kind", ["compose", "nested", "of the zoo", "subset"])
def test_pictures_differ_by_little(folder, kind):
    if kind == "of the zoo":
        transform = model_zoo.preprocess(model_zoo.resnet18(), size=56)
    else:
        resize = v2.Resize(64)
        transform = v2.Compose([v2.Compose([resize]) if kind == "nested" else resize, v2.CenterCrop(56), *TENSOR])
    dataset = ImageFolder(str(folder), transform)
    if kind == "subset":
        dataset = Subset(dataset, [0, 4, 5, 9])
    reading, loader = reduced(dataset)
    assert loader is not None
    assert len(reading) == len(dataset)
    worst = 0.0
    for (inputs, target), (expected, label) in zip(reading, dataset, strict=True):
        assert target == label
        assert inputs.shape == expected.shape
        worst = max(worst, float((inputs - expected).abs().mean()))
    assert 0 < worst < 0.02 * (4 if kind == "of the zoo" else 1)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((640, 480), 128, (214, 160)), ((640, 480), 300, (640, 480)), ((1600, 1200), 128, (200, 150))],
)
def test_no_side_is_made_smaller_than_that(tmp_path, size, side, expected):
    path = tmp_path / "picture.jpg"
    smooth(*size, 0).save(path)
    picture = ReducedJPEG(side)(str(path))
    assert min(picture.size) >= min(side, *size)
    assert picture.mode == "RGB"
    assert ReducedJPEG(side).reduces(str(path)) is (picture.size != size)
    assert max(picture.size) <= size[0]
    assert picture.size[0] >= expected[0] // 2


class OfItsOwn(ImageFolder):
    def __getitem__(self, index):
        return super().__getitem__(index)


OTHERS = {
    "a transform that begins otherwise": lambda path: ImageFolder(path, v2.Compose([v2.CenterCrop(50), v2.Resize(20)])),
    "tensors are resized": lambda path: ImageFolder(path, v2.Compose([*TENSOR, v2.Resize(20)])),
    "no transform": lambda path: ImageFolder(path),
    "a loader of its own": lambda path: ImageFolder(path, v2.Resize(20), loader=Image.open),
    "a way of its own": lambda path: OfItsOwn(path, v2.Resize(20)),
    "pictures too small": lambda path: ImageFolder(path, v2.Resize(400)),
    "another limit": lambda path: ImageFolder(path, v2.Resize(20, max_size=30)),
    "no pictures": lambda path: [(torch.zeros(2), 1)],
}


@pytest.mark.parametrize("why", OTHERS)
def test_what_is_left_as_it_is(folder, why):
    dataset = OTHERS[why](str(folder))
    assert reduced(dataset) == (dataset, None)


@pytest.mark.parametrize("exact", [False, True])
def test_the_cache_says_so_and_can_be_told_not_to(folder, make, exact):
    net = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 20, 4)), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    dataset = ImageFolder(str(folder), v2.Compose([v2.Resize(20), v2.CenterCrop(20), *TENSOR]))
    told: list[str] = []
    cache = FeatureCache(make(net), tell=told.append, exact=exact)
    bank = cache.loader(DataLoader(dataset, 4, num_workers=0)).dataset.bank
    expected = cache.cut.features(torch.stack([inputs for inputs, _ in dataset]))
    assert torch.allclose(bank.features, expected, atol=0.1)
    assert torch.allclose(bank.features, expected, atol=1e-5) is exact
    assert any("reduced scale, at no less than 40 pixels" in sentence for sentence in told) is not exact
    again = cache.loader(DataLoader(dataset, 4)).dataset.bank
    assert again is bank, "the items that are read again are read in the same way"
