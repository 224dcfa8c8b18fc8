"""The long trainings, of 600 to 5,000 steps: chosen by hand, recorded on a GPU."""

from __future__ import annotations

import functools
import math
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.lr_bench import long_networks as networks
from benchmarks.lr_bench.data import CACHE, Split, kept_on_disk, split
from benchmarks.lr_bench.flat_optimizers import OptimizerSpec
from benchmarks.lr_bench.recipes import Recipe, squared_error

SYMBOLS, LENGTH = 96, 64


# Data


@functools.cache
def cifar_bytes(folder: Path) -> Split:
    """6,000 training and 1,500 validation images of CIFAR-10 as bytes [N, 3, 32, 32]."""
    raw, parts = np.load(folder / "cifar10_subset.npz"), []
    for part in ("train", "test"):
        labels = torch.from_numpy(raw[f"y_{part}"]).long()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # they lie sorted by class
        parts += [torch.from_numpy(raw[f"x_{part}"]).permute(0, 3, 1, 2)[order].contiguous(), labels[order]]
    return Split(*parts)


def last_classes(folder: Path) -> Split:
    """600 training images of CIFAR-10's classes 5 to 9, and all their validation images."""
    whole = cifar_bytes(folder)
    train, val = whole.train_targets >= 5, whole.val_targets >= 5
    return Split(
        whole.train_inputs[train][:600],
        whole.train_targets[train][:600] - 5,
        whole.val_inputs[val],
        whole.val_targets[val] - 5,
    )


@kept_on_disk
def source_text(folder: Path) -> Split:
    """Python's own library: windows of 64 characters, each to be told the next one; the last files are validation."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(library.glob("*.py"), key=lambda path: path.name[::-1])
    text = "".join(path.read_text(encoding="utf-8", errors="ignore")[:30_000] for path in paths)[:1_600_000]
    codes = torch.tensor([min(max(ord(character) - 31, 0), SYMBOLS - 1) for character in text], dtype=torch.uint8)
    windows = codes[: len(codes) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    inputs, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
    cut = int(0.92 * len(windows))
    order = torch.randperm(len(windows) - cut, generator=torch.Generator().manual_seed(0))[:1500] + cut
    return Split(inputs[:cut], targets[:cut], inputs[order], targets[order])


@kept_on_disk
def photographs(folder: Path) -> Split:
    """243 training and 153 validation photographs of ants and bees as bytes [N, 3, 96, 96]."""
    from PIL import Image

    parts: list[Tensor] = []
    for part in ("train", "val"):
        images, labels = [], []
        for label, kind in enumerate(("ants", "bees")):
            for path in sorted((folder / "hymenoptera" / part / kind).iterdir()):
                image = Image.open(path).convert("RGB")
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                image = image.crop((left, top, left + side, top + side)).resize((96, 96), Image.Resampling.BICUBIC)
                images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
                labels.append(label)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        parts += [torch.stack(images)[order], torch.tensor(labels)[order]]
    return Split(*parts)


@functools.cache
def shapes(folder: Path) -> Split:
    """Noisy images [N, 1, 48, 48] of discs, squares and triangles; the target names the shape of each pixel."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0:48, 0:48]
    images, labels = np.zeros((1700, 48, 48), np.float32), np.zeros((1700, 48, 48), np.int64)
    for image, label in zip(images, labels, strict=True):
        image += generator.normal(0, 0.5) + generator.normal(0, 0.02) * rows + generator.normal(0, 0.02) * columns
        for _ in range(generator.integers(1, 5)):
            kind, size = generator.integers(1, 4), generator.integers(5, 13)
            y, x = generator.integers(4, 44, 2)
            inside = {
                1: (rows - y) ** 2 + (columns - x) ** 2 <= size**2,
                2: (abs(rows - y) <= 0.8 * size) & (abs(columns - x) <= 0.8 * size),
                3: (rows <= y + size) & (rows - y >= 2 * abs(columns - x) - size),
            }[int(kind)]
            image[inside] = generator.normal(0, 1)
            label[inside] = kind
        image += generator.normal(0, 0.3, image.shape)
    whole = torch.from_numpy(images)[:, None], torch.from_numpy(labels)
    return Split(whole[0][:1200], whole[1][:1200], whole[0][1200:], whole[1][1200:])


@functools.cache
def two_views(folder: Path) -> Split:
    """CIFAR-10 without labels; of the validation images two views each [N, 2, 3, 32, 32]."""
    whole = cifar_bytes(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        views, targets = make_two_views(whole.val_inputs[:1024], whole.val_targets[:1024])
    return Split(whole.train_inputs, whole.train_targets, views, targets)


@functools.cache
def noisy_images(folder: Path) -> Split:
    """CIFAR-10; of the validation images noisy ones, and clean ones as targets."""
    whole = cifar_bytes(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        noisy, clean = add_noise(whole.val_inputs, whole.val_inputs)
    return Split(whole.train_inputs, whole.train_inputs, noisy, clean)


@functools.cache
def reversed_symbols(folder: Path) -> Split:
    """Twelve symbols out of twelve, and the same from the end to the beginning."""
    source = torch.randint(12, (9000, 12), generator=torch.Generator().manual_seed(0))
    target = source.flip(1)
    shifted = torch.cat([torch.full((9000, 1), 12), target[:, :-1]], 1)
    return split(torch.stack([source, shifted], 1), target, 1 / 9)


@functools.cache
def ratings(folder: Path) -> Split:
    """50,000 ratings that 2,000 users gave 500 items, standardised, with noise."""
    generator = np.random.default_rng(0)
    users, items = generator.normal(size=(2000, 6)), generator.normal(size=(500, 6)) / math.sqrt(6)
    pairs = np.stack([generator.integers(2000, size=55_000), generator.integers(500, size=55_000)], 1)
    scores = (users[pairs[:, 0]] * items[pairs[:, 1]]).sum(1) + 0.5 * users[pairs[:, 0], 0] + items[pairs[:, 1], 1]
    scores = (scores - scores.mean()) / scores.std() + generator.normal(0, 0.4, len(scores))
    return split(torch.from_numpy(pairs), torch.from_numpy(scores[:, None]).float(), 1 / 11)


@functools.cache
def table(folder: Path) -> Split:
    """12 numbers and 4 categories of 8 levels, 12,000 + 3,000 rows; a drawn network and rules decide the class."""
    generator = np.random.default_rng(0)
    numbers, levels = generator.normal(size=(15_000, 12)), generator.integers(8, size=(15_000, 4))
    effects = generator.normal(size=(4, 8))
    hidden = np.tanh(numbers @ generator.normal(size=(12, 24)))
    score = hidden @ generator.normal(size=24) / 2 + sum(effects[index, levels[:, index]] for index in range(4))
    score += 1.5 * np.sign(numbers[:, 0]) * effects[0, levels[:, 1]]
    labels = (score + generator.logistic(size=15_000) > np.median(score)).astype(np.int64)
    return split(torch.from_numpy(np.concatenate([numbers, levels], 1)).float(), torch.from_numpy(labels), 0.2)


# What is done to a training batch


def crop_and_flip(images: Tensor, targets: Tensor, pad: int = 4) -> tuple[Tensor, Tensor]:
    """Shift each image by up to `pad` pixels and mirror half of them."""
    count, channels, height, width = images.shape
    device = images.device
    padded = nn.functional.pad(images, (pad, pad, pad, pad))
    rows = torch.randint(2 * pad + 1, (count, 1), device=device) + torch.arange(height, device=device)
    columns = torch.randint(2 * pad + 1, (count, 1), device=device) + torch.arange(width, device=device)
    columns = torch.where(torch.rand(count, 1, device=device) < 0.5, columns, columns.flip(1))
    which = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return padded[which, channel, rows[:, None, :, None], columns[:, None, None, :]], targets


def make_two_views(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Two views [N, 2, C, H, W] of each image: shifted, mirrored, other brightness and contrast, sometimes grey."""
    pixels, views = networks.Pixels(), []
    for _ in range(2):
        view = pixels(crop_and_flip(images, targets, pad=8)[0])
        noise = torch.randn(3, len(view), 1, 1, 1, device=view.device)
        view = view * (0.4 * noise[0]).exp() + 0.4 * noise[1]
        view = torch.where(noise[2] > 0.84, view.mean(1, keepdim=True).expand_as(view), view)
        views.append(view)
    return torch.stack(views, 1), targets


def add_noise(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Noise of deviation 0.5; the target is the clean image."""
    clean = networks.Pixels()(images)
    return clean + 0.5 * torch.randn_like(clean), clean


def contrastive(views: Tensor, targets: Tensor) -> Tensor:
    """For each image: its two views among all others, by cross-entropy at a temperature of 0.5."""
    count = len(views)
    vectors = views.transpose(0, 1).flatten(0, 1)
    scores = vectors @ vectors.T / 0.5
    scores = scores.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=views.device), -1e9)
    partner = (torch.arange(2 * count, device=views.device) + count) % (2 * count)
    return nn.functional.cross_entropy(scores, partner, reduction="none").view(2, count).mean(0)


# Networks that were trained before


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet's weights and a new head; pixels are scaled to -1 to 1."""
    import timm
    from safetensors.torch import load_file

    network = timm.create_model("tf_efficientnet_lite0", num_classes=2)
    weights = load_file(PRETRAINED / "tf_efficientnet_lite0.in1k.safetensors")
    weights = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    missing = network.load_state_dict(weights, strict=False)
    if missing.unexpected_keys or {name.split(".")[0] for name in missing.missing_keys} != {"classifier"}:
        raise RuntimeError(f"the weights do not fit: {missing}")
    network.classifier = nn.Linear(network.classifier.in_features, 2)  # timm starts it thirty times larger
    return nn.Sequential(Bytes(), network)


class Bytes(nn.Module):
    """Bytes to -1 to 1."""

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return images.float() / 127.5 - 1


PRETRAINED = CACHE / "data"


def pretrained_resnet() -> nn.Module:
    """A ResNet that saw CIFAR-10's classes 0 to 4, with a new head for five others."""
    network = networks.ResNet(16, outputs=5)
    head = {name: value for name, value in network.state_dict().items() if name.startswith("head")}
    network.load_state_dict({**torch.load(PRETRAINED / "resnet16_first_classes.pt"), **head})
    return network


def pretrain(folder: Path) -> None:
    """Write the weights of `pretrained_resnet`: 450 steps on classes 0 to 4."""
    torch.manual_seed(0)
    network, whole = networks.ResNet(16, outputs=5), cifar_bytes(folder)
    chosen = whole.train_targets < 5
    images, labels = whole.train_inputs[chosen], whole.train_targets[chosen]
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, 450, cycle_momentum=False)
    for _ in range(450):
        index = torch.randint(len(images), (64,))
        inputs, targets = crop_and_flip(images[index], labels[index])
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
        schedule.step()
    PRETRAINED.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), PRETRAINED / "resnet16_first_classes.pt")


# The trainings


def _spec(kind: str, **settings: Any) -> OptimizerSpec:
    return OptimizerSpec(kind, settings)


def _long(name: str, steps: int, **fields: Any) -> Recipe:
    features = fields.pop("features", {})
    data, architecture = name.split(", ")[:2]
    features = {"data": data, "architecture": architecture, **features}
    return Recipe(f"{name}, {steps} steps", "long", steps=steps, features=tuple(features.items()), **fields)


BATCH, LAYER = {"normalisation": "batch"}, {"normalisation": "layer"}
TUNED = {**BATCH, "pretrained": True}

RECIPES = (
    _long(
        "CIFAR-10, ResNet, augmented, momentum with decay", 2000,
        load=cifar_bytes, network=lambda: networks.ResNet(16), augment=crop_and_flip, batch_size=128,
        optimizer=_spec("SGD", momentum=0.9, weight_decay=5e-4), features=BATCH,
    ),
    _long(
        "CIFAR-10, wider ResNet, augmented, bfloat16, AdamW", 1500,
        load=cifar_bytes, network=lambda: networks.ResNet(24), augment=crop_and_flip, batch_size=64, bfloat16=True,
        optimizer=_spec("AdamW", weight_decay=0.05), features=BATCH,
    ),
    _long(
        "CIFAR-10, ConvMixer, augmented, dropout, NAdam", 1500,
        load=cifar_bytes, network=lambda: networks.conv_mixer(64, 4, 0.1), augment=crop_and_flip, batch_size=64,
        optimizer=_spec("NAdam"), features=BATCH,
    ),
    _long(
        "CIFAR-10, ViT, augmented, dropout, bfloat16, Adam", 1500,
        load=cifar_bytes, network=lambda: networks.VisionTransformer(96, 4, 0.1), augment=crop_and_flip,
        batch_size=128, bfloat16=True, optimizer=_spec("Adam"), features=LAYER,
    ),
    _long(
        "CIFAR-10, VGG without normalisation, dropout, RMSprop", 1200,
        load=cifar_bytes, network=lambda: networks.vgg(16, 0.3), batch_size=64, optimizer=_spec("RMSprop"),
    ),
    _long(
        "source text, GPT, Muon", 1500,
        load=source_text, network=lambda: networks.LanguageModel(SYMBOLS, LENGTH, 128, 4), batch_size=32,
        optimizer=_spec("Muon", weight_decay=0.01), features=LAYER,
    ),
    _long(
        "source text, post-norm Transformer, Adam", 2000,
        load=source_text, network=lambda: networks.LanguageModel(SYMBOLS, LENGTH, 128, 4, post_norm=True),
        batch_size=32, optimizer=_spec("Adam"), features=LAYER,
    ),
    _long(
        "source text, deeper GPT, dropout, clipped, bfloat16, AdamW", 2500,
        load=source_text, network=lambda: networks.LanguageModel(SYMBOLS, LENGTH, 96, 6, dropout=0.1), batch_size=32,
        clip=1.0, bfloat16=True, optimizer=_spec("AdamW", weight_decay=0.1, betas=(0.9, 0.95)), features=LAYER,
    ),
    _long(
        "source text, two-layer LSTM, dropout, clipped at 0.25, SGD", 1500,
        load=source_text, network=lambda: networks.LSTM(SYMBOLS, 128, 0.2), batch_size=32, clip=0.25,
        optimizer=_spec("SGD"), shift=4,
    ),
    _long(
        "shapes, U-Net, Adam", 1000,
        load=shapes, network=lambda: networks.UNet(8, 1, 4), batch_size=16, optimizer=_spec("Adam"), features=BATCH,
    ),
    _long(
        "CIFAR-10, SimCLR with a ResNet, Nesterov with decay", 800,
        load=two_views, network=lambda: networks.TwoViews(8, 64), augment=make_two_views, losses=contrastive,
        batch_size=128, optimizer=_spec("SGD", momentum=0.9, nesterov=True, weight_decay=1e-4), features=BATCH,
    ),
    _long(
        "CIFAR-10, denoising autoencoder, AdamW", 1500,
        load=noisy_images, network=lambda: networks.autoencoder(16, 64), augment=add_noise, losses=squared_error,
        batch_size=64, optimizer=_spec("AdamW", weight_decay=0.01),
    ),
    _long(
        "ants and bees, EfficientNet-Lite0 with all layers, augmented, momentum", 600,
        load=photographs, network=efficientnet, augment=crop_and_flip, batch_size=32,
        optimizer=_spec("SGD", momentum=0.9, weight_decay=1e-4), features=TUNED,
    ),
    _long(
        "CIFAR-10 classes 5-9, ResNet from classes 0-4 with all layers, AdamW", 600,
        load=last_classes, network=pretrained_resnet, augment=crop_and_flip, batch_size=32,
        optimizer=_spec("AdamW", weight_decay=0.05), features=TUNED,
    ),
    _long(
        "reversed symbols, GRU to GRU, clipped, Adam", 2500,
        load=reversed_symbols, network=lambda: networks.SequenceToSequence(12, 96), batch_size=64, clip=1.0,
        optimizer=_spec("Adam"),
    ),
    _long(
        "ratings, factorisation, Adagrad", 2000,
        load=ratings, network=lambda: networks.Factorisation(2000, 500, 32), losses=squared_error, batch_size=256,
        optimizer=_spec("Adagrad"),
    ),
    _long(
        "table, MLP with embeddings, dropout, AdamW", 5000,
        load=table, network=lambda: networks.Tabular(12, 4, 8, 128, 0.1), batch_size=128,
        optimizer=_spec("AdamW", weight_decay=0.01), features=BATCH,
    ),
    _long(
        "table, wide MLP with embeddings, momentum", 3000,
        load=table, network=lambda: networks.Tabular(12, 4, 8, 256, 0.0), batch_size=64,
        optimizer=_spec("SGD", momentum=0.9), features=BATCH,
    ),
)  # fmt: skip
