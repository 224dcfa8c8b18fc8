"""The preprocessing in a file makes the same tensors as the loader, or export refuses it with a reason."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split
from torchvision import models
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

import model_zoo
from mxtorch import exporting
from mxtorch.exporting import facts
from mxtorch.exporting.transforms import PictureTransforms, describe_transform

MODES = ("L", "LA", "P", "P with transparency", "RGB", "RGBA", "CMYK", "1", "EXIF-rotated", "JPEG")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
END = (v2.ToImage(), v2.ToDtype(torch.float32, scale=True))

WRITTEN = {
    "usual": [v2.Resize(40), v2.CenterCrop(32), *END, v2.Normalize(*IMAGENET)],
    "tensor first": [*END, v2.Resize(40), v2.CenterCrop(32), v2.Normalize(*IMAGENET)],
    "crop alone": [v2.CenterCrop(32), *END],
    "crop larger than the picture": [v2.CenterCrop(90), *END],
    "resize to a shape": [v2.Resize((32, 48)), *END],
    "resize to a square": [v2.Resize([32, 32]), *END, v2.Normalize([0.5] * 3, [0.5] * 3)],
    "max_size": [v2.Resize(40, max_size=45), v2.CenterCrop(32), *END],
    "longer side": [v2.Resize(None, max_size=40), v2.CenterCrop(40), *END],
    "no antialias": [v2.ToImage(), v2.Resize(32, antialias=False), v2.CenterCrop(32), END[1]],
    "antialias": [v2.ToImage(), v2.Resize(32, antialias=True), v2.CenterCrop(32), END[1]],
    "bicubic": [v2.Resize(40, InterpolationMode.BICUBIC), v2.CenterCrop(32), *END],
    "nearest": [v2.Resize(40, InterpolationMode.NEAREST_EXACT), v2.CenterCrop(32), *END],
    "two resizes": [v2.Resize(64), v2.Resize(32), v2.CenterCrop(32), *END],
    "crop before resize": [v2.CenterCrop(48), v2.Resize(32), *END],
    "not scaled": [v2.Resize(40), v2.CenterCrop(32), v2.ToImage(), v2.ToDtype(torch.float32)],
    "not scaled, normalised": [
        v2.CenterCrop(32), v2.ToImage(), v2.ToDtype(torch.float32), v2.Normalize([127.0] * 3, [64.0] * 3),
    ],
    "double": [v2.CenterCrop(32), v2.ToImage(), v2.ToDtype(torch.float64, scale=True)],
    "two normalisations": [v2.CenterCrop(32), *END, v2.Normalize([0.5], [0.5]), v2.Normalize(*IMAGENET)],
    "mean as a tensor": [v2.CenterCrop(32), *END, v1.Normalize(torch.tensor(IMAGENET[0]), torch.tensor(IMAGENET[1]))],
    "grey of three channels": [v2.Grayscale(3), v2.CenterCrop(32), *END, v2.Normalize(*IMAGENET)],
    "grey of one channel": [v2.Grayscale(1), v2.CenterCrop(32), *END, v2.Normalize([0.5], [0.5])],
    "grey, late": [v2.CenterCrop(32), *END, v2.Grayscale(3)],
    "padded": [v2.Resize(20), v2.Pad(6, fill=(1, 2, 3)), v2.CenterCrop(32), *END],
    "reflected": [v2.Resize(30), v2.Pad([2, 4], padding_mode="reflect"), v2.CenterCrop(32), *END],
    "RGB": [v2.RGB(), v2.CenterCrop(32), *END],
    "PILToTensor": [v2.CenterCrop(32), v2.PILToTensor(), v2.ConvertImageDtype(torch.float32), v2.ToPureTensor()],
    "nested": [v2.Compose([v2.Resize(40), v2.CenterCrop(32)]), v2.Compose(list(END)), nn.Identity()],
    "first version": v1.Compose([v1.Resize(40), v1.CenterCrop(32), v1.ToTensor(), v1.Normalize(*IMAGENET)]),
    "first version, no antialias": v1.Compose([v1.ToTensor(), v1.Resize(40, antialias=False), v1.CenterCrop(32)]),
    "sequential": nn.Sequential(v2.CenterCrop(32), *END),
    "of weights": models.ResNet18_Weights.IMAGENET1K_V1.transforms(crop_size=32, resize_size=40),
    "of newer weights": models.EfficientNet_B1_Weights.IMAGENET1K_V2.transforms(crop_size=32, resize_size=40),
    "of the zoo": model_zoo.preprocess("resnet10t", size=32),
    "of the zoo, squashed": model_zoo.Preprocessing(32, 36, crop_mode="squash").transforms(),
    "of the zoo, from Caffe": model_zoo.Preprocessing(32, 36, channels="BGR").transforms(),
    "of the zoo, grey": model_zoo.Preprocessing(32, 36).transforms(channels=1),
}  # fmt: skip


class Resize(v2.Resize):
    """A transform that has the name of a torchvision transform and does something else."""

    def forward(self, picture):
        return super().forward(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT)


class Brighter(nn.Module):
    def forward(self, picture):
        return picture * 1.1


REFUSED = {
    "a function": ([v2.CenterCrop(32), *END, v2.Lambda(lambda tensor: tensor * 2)], "Lambda can't be written"),
    "at random": ([v2.RandomCrop(32), *END], "RandomCrop can't be written"),
    "a flip": ([v2.CenterCrop(32), v2.RandomHorizontalFlip(), *END], "RandomHorizontalFlip can't be written"),
    "five crops": ([v2.FiveCrop(32), *END], "FiveCrop can't be written"),
    "blurred": ([v2.CenterCrop(32), v2.GaussianBlur(3), *END], "GaussianBlur can't be written"),
    "one's own": ([v2.CenterCrop(32), *END, Brighter()], "Brighter can't be written"),
    "a subclass": ([Resize(40), v2.CenterCrop(32), *END], "Resize can't be written"),
    "a function alone": (lambda picture: v2.functional.to_image(picture), "function can't be written"),
    "types by kind": ([v2.CenterCrop(32), v2.ToImage(), v2.ToDtype({torch.Tensor: torch.float32})], "ToDtype with"),
    "no tensor": ([v2.CenterCrop(32)], "no step that makes a tensor"),
    "tensors": ([v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True)], "no step that makes a tensor"),
    "of the zoo, bordered": (model_zoo.Preprocessing(32, 32, crop_mode="border").transforms(), "ResizeKeepRatio can't"),
}


def drawn(width, height, seed=0):
    """A picture with edges and noise."""
    generator = np.random.default_rng(seed)
    pixels = np.indices((height, width)).sum(0)[..., None] * np.array([2, 3, 5]) % 256
    noise = generator.integers(0, 60, (height, width, 3))
    return Image.fromarray(((pixels + noise) % 256).astype(np.uint8))


def save(picture, mode, path):
    """Write two pictures in a mode."""
    if mode == "EXIF-rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(path.with_suffix(".jpg"), exif=exif, quality=95)
    elif mode == "JPEG":
        picture.save(path.with_suffix(".jpeg"), quality=70)
    elif mode == "P with transparency":
        picture.convert("P").save(path.with_suffix(".png"), transparency=bytes(range(256)))
    elif mode == "CMYK":
        picture.convert(mode).save(path.with_suffix(".tif"))
    else:
        if mode in ("LA", "RGBA"):
            picture = picture.copy()
            picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.convert(mode).save(path.with_suffix(".png"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty pictures of two classes, in all modes."""
    root = tmp_path_factory.mktemp("pictures")
    for index, mode in enumerate(MODES * 2):
        place = root / ("ant", "bee")[index % 2]
        place.mkdir(exist_ok=True)
        save(drawn(60 + 7 * index, 110 - 3 * index, index), mode, place / f"{index:02}")
    return root


def as_transform(steps):
    return v2.Compose(steps) if isinstance(steps, list) else steps


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("kind", WRITTEN)
def test_a_picture_file_becomes_the_tensor_of_the_loader(kind, folder):
    transform = as_transform(WRITTEN[kind])
    data = ImageFolder(folder, transform)
    description = describe_transform(transform)
    again = PictureTransforms.from_values(json.loads(json.dumps(asdict(description))))
    assert len(data) == 20
    for index, (path, _) in enumerate(data.samples):
        with Image.open(path) as picture:
            found = again(picture)
        expected = data[index][0]
        assert found.dtype == expected.dtype
        assert torch.allclose(found, expected.as_subclass(torch.Tensor), rtol=0, atol=1e-5), path


@pytest.mark.parametrize("kind", REFUSED)
def test_a_transform_that_can_not_be_written_is_refused(kind):
    steps, reason = REFUSED[kind]
    with pytest.raises(ValueError, match=reason):
        describe_transform(as_transform(steps))


def test_the_size_is_that_of_the_input():
    for kind, size in (("usual", 32), ("resize to a shape", (32, 48)), ("crop before resize", 48), ("of the zoo", 32)):
        assert kind == "crop before resize" or describe_transform(as_transform(WRITTEN[kind])).size == size


@pytest.mark.parametrize(
    "values",
    [
        None,
        {"mode": "RGB"},
        {"mode": "CMYK", "steps": []},
        {"mode": "RGB", "steps": [["os.system", {"command": "ls"}]]},
        {"mode": "RGB", "steps": [["v2.CenterCrop", {"size": 3, "more": 1}]]},
        {"mode": "RGB", "steps": [["v2.CenterCrop", {"size": "large"}]]},
        {"mode": "RGB", "steps": [["v2.ToDtype", {"dtype": "object", "scale": True}]]},
        {"mode": "RGB", "steps": [["v2.Normalize"]]},
    ],
)
def test_a_malformed_description_is_refused(values):
    with pytest.raises(ValueError, match="the description in the file is malformed"):
        PictureTransforms.from_values(values)


# ---------------------------------------------------------------- through export


def network(channels=3, outputs=2):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, outputs))


@pytest.fixture
def exported(make, tmp_path):
    """A function that exports a network with a data set and opens the file."""

    def export(data, channels=3, outputs=2, **options):
        trainer = make(network(channels, outputs))
        loader = data if isinstance(data, DataLoader) else DataLoader(data, 4)
        return trainer, exporting.load(trainer.export(tmp_path / "net.pt2", loader, **options))

    return export


def wrapped(data):
    """A data set inside other data sets, in every supported way."""
    first, _ = random_split(data, [len(data) - 2, 2])
    return {
        "itself": data,
        "random_split": first,
        "a subset": Subset(data, [3, 1, 2, 7]),
        "a subset of a subset": Subset(Subset(data, range(9)), [4, 1]),
        "two together": ConcatDataset([data, data]),
        "parts together": ConcatDataset([Subset(data, [1, 2]), Subset(data, [5])]),
        "a subset of two together": Subset(ConcatDataset([data, data]), [len(data) + 1, 2]),
    }


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("kind", wrapped(range(20)))
def test_a_transform_inside_a_wrapper_is_found(kind, folder, exported):
    data = ImageFolder(folder, as_transform(WRITTEN["usual"]))
    trainer, predictor = exported(wrapped(data)[kind])
    assert predictor.classes == ("ant", "bee")
    expected = trainer.predict(DataLoader(data, 4)).softmax(1)
    rows = predictor.predict([path for path, _ in data.samples])
    assert np.allclose([list(row["probabilities"].values()) for row in rows], expected, atol=1e-5)


class Wrapper(Dataset):
    def __init__(self, dataset, transform=None):
        self.dataset, self.transform = dataset, transform

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        picture, label = self.dataset[index]
        return (picture * 2 if self.transform is None else self.transform(picture)), label


class Noisy(ImageFolder):
    def __getitem__(self, index):
        picture, label = super().__getitem__(index)
        return picture + 0.5, label


class Joint(ImageFolder):
    """A data set with a joint transform of picture and label, as torchvision's data sets for detection."""

    def __getitem__(self, index):
        path, label = self.samples[index]
        return self.transforms(self.loader(path), label)


def upright(path):
    """A data set that rotates pictures by their EXIF data."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def brighter(samples):
    inputs, labels = torch.utils.data.default_collate(samples)
    return inputs * 1.5, labels


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_changes_besides_the_transform_are_refused(folder, exported):
    usual, other = (as_transform(WRITTEN[kind]) for kind in ("usual", "crop alone"))
    data = ImageFolder(folder, usual)
    joint = Joint(folder)
    joint.transforms = lambda picture, label: (usual(picture), label)
    refused = {
        "wraps a data set with a transform": Wrapper(data),
        "consists of data sets with different transforms": ConcatDataset([data, ImageFolder(folder, other)]),
        "joint transform of inputs and targets": joint,
        "the function 'upright' opens its pictures": ImageFolder(folder, usual, loader=upright),
        "the sample of .* differs from the result of the transform": DataLoader(Noisy(folder, usual), 4, shuffle=True),
        "its first batch differs from the samples of its data set": DataLoader(data, 4, collate_fn=brighter),
    }
    for reason, loader in refused.items():
        with pytest.raises(ValueError, match=reason):
            exported(loader)
        exported(loader, preprocessing=usual)
    _, predictor = exported(Wrapper(ImageFolder(folder), usual))
    assert predictor.preprocessing == describe_transform(usual)


def test_unknown_transforms_are_not_guessed(make, tmp_path):
    """A network of the zoo may also have been trained with other transforms than those of its weights."""
    net = model_zoo.create("resnet10t", num_classes=2)
    loader = DataLoader([(torch.rand(3, 32, 32), 0), (torch.rand(3, 32, 32), 1)], 2)
    predictor = exporting.load(make(net).export(tmp_path / "net.safetensors", loader))
    with pytest.raises(ValueError, match="does not say how a picture becomes an input"):
        predictor.predict(drawn(40, 40))
    predictor = exporting.load(make(net).export(tmp_path / "net.safetensors"))
    assert predictor.preprocessing == describe_transform(model_zoo.preprocess(net))


def test_grey_pictures(make, tmp_path):
    """A data set with pictures of mode L, such as MNIST."""

    class Digits(Dataset):
        transform = v2.Compose([v2.CenterCrop(32), *END])

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return self.transform(drawn(40, 44, index).convert("L")), 0

    trainer = make(network(1))
    predictor = exporting.load(trainer.export(tmp_path / "net.pt2", DataLoader(Digits(), 2)))
    expected = trainer.predict([Digits.transform(drawn(40, 44).convert("L"))[None]]).softmax(1)[0].tolist()
    for mode in ("L", "RGB"):
        (row,) = predictor.predict(drawn(40, 44).convert("L").convert(mode))
        assert list(row["probabilities"].values()) == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def predictor(folder, exported):
    return exported(ImageFolder(folder, as_transform(WRITTEN["crop alone"])), preprocessing=WRITTEN["crop alone"])[1]


def test_damaged_pictures_are_named(predictor, tmp_path):
    whole = tmp_path / "whole.jpg"
    drawn(200, 200).save(whole)
    damaged = {
        "truncated.jpg": whole.read_bytes()[: whole.stat().st_size // 2],
        "text.jpg": b"not a picture",
        "empty.png": b"",
    }
    drawn(200, 200).save(tmp_path / "chunk.png")
    content = bytearray((tmp_path / "chunk.png").read_bytes())
    content[40:60] = bytes(20)
    damaged["broken.png"] = bytes(content)
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=rf"number 1, .*{name}, can't be read"):
            predictor.predict([whole, tmp_path / name, whole])
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        predictor.predict([whole, str(tmp_path / "nothing.png")])


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_pictures_with_more_than_8_bits_are_refused(predictor, tmp_path, kind):
    picture = Image.fromarray(np.random.default_rng(0).integers(1000, 65535, (80, 100)).astype(kind))
    picture.save(tmp_path / "deep.tif")
    for given in (picture, tmp_path / "deep.tif"):
        with pytest.raises(ValueError, match=r"number 0, .* more than 8 bits a pixel"):
            predictor.predict(given)


@pytest.mark.parametrize("wrong", [np.zeros((8, 8, 3), np.uint8), 3, None])
def test_an_object_that_is_no_picture_is_refused(predictor, wrong):
    with pytest.raises(TypeError, match=r"pictures: got a .* give files, PIL pictures, or a tensor"):
        predictor.predict([wrong])


def test_a_folder_of_deep_pictures_is_refused(folder, exported, tmp_path):
    (tmp_path / "deep" / "ant").mkdir(parents=True)
    deep = np.random.default_rng(0).integers(1000, 65535, (80, 100)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep" / "ant" / "0.png")
    with pytest.raises(ValueError, match="more than 8 bits a pixel"):
        exported(ImageFolder(tmp_path / "deep", as_transform(WRITTEN["usual"])))


def test_files_of_other_versions_are_refused():
    for version, message in ((1, "version 1, which was never released"), (99, "upgrade mxtorch")):
        content = {"format": facts.FORMAT, "format_version": version}
        with pytest.raises(ValueError, match=message):
            facts.Facts.from_json(json.dumps(content), "net.onnx")
