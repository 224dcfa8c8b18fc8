"""The real data of the tasks, as tensors: training and validation inputs and targets."""

from __future__ import annotations

import functools
import hashlib
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Where prepared data, oracles and suggestions are kept.
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "lr_bench"
CONTEXT = 32  # characters that a language model sees
TEXT_FILES = ("argparse.py", "ast.py", "dataclasses.py", "inspect.py", "pathlib.py", "statistics.py", "typing.py")


class Split(NamedTuple):
    """Inputs and targets of the training and the validation samples."""

    train_inputs: Tensor
    train_targets: Tensor
    val_inputs: Tensor
    val_targets: Tensor

    def digest(self) -> str:
        """A hash of all values."""
        digest = hashlib.sha256()
        for tensor in self:
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def kept_on_disk(prepare: Callable[[Path], Split]) -> Callable[[Path], Split]:
    """Prepare once; the file in the cache is what is used from then on."""

    @functools.cache
    def load(folder: Path) -> Split:
        path = CACHE / "data" / f"{prepare.__name__}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, **{name: part.numpy() for name, part in prepare(folder)._asdict().items()})
        raw = np.load(path)
        return Split(*(torch.from_numpy(raw[name]) for name in Split._fields))

    load.__doc__ = prepare.__doc__
    return load


def split(inputs: Tensor, targets: Tensor, val_fraction: float = 0.3, *, seed: int = 0) -> Split:
    """Shuffle once, then keep the last part for validation."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    cut = int(len(inputs) * (1 - val_fraction))
    return Split(inputs[order[:cut]], targets[order[:cut]], inputs[order[cut:]], targets[order[cut:]])


def standardised(values: Tensor) -> Tensor:
    """Each column with mean 0 and deviation 1."""
    return (values - values.mean(0)) / values.std(0).clamp(min=1e-6)


@kept_on_disk
def digits(folder: Path) -> Split:
    """1,797 handwritten digits, 8 x 8, as 64 columns."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    return split(torch.tensor(raw.data / 16.0 - 0.3, dtype=torch.float32), torch.tensor(raw.target))


@kept_on_disk
def digit_images(folder: Path) -> Split:
    """The digits as images of one channel."""
    flat = digits(folder)
    return flat._replace(train_inputs=flat.train_inputs.view(-1, 1, 8, 8), val_inputs=flat.val_inputs.view(-1, 1, 8, 8))


@kept_on_disk
def breast_cancer(folder: Path) -> Split:
    """569 biopsies, 30 measurements, 2 classes."""
    from sklearn.datasets import load_breast_cancer

    raw = load_breast_cancer()
    return split(standardised(torch.tensor(raw.data, dtype=torch.float32)), torch.tensor(raw.target))


@kept_on_disk
def diabetes(folder: Path) -> Split:
    """442 patients, 10 measurements, progression of the disease as one standardised number."""
    from sklearn.datasets import load_diabetes

    raw = load_diabetes()
    inputs, targets = (torch.tensor(part, dtype=torch.float32) for part in (raw.data, raw.target[:, None]))
    return split(standardised(inputs), standardised(targets))


@functools.cache
def cifar10(folder: Path) -> Split:
    """6,000 training and 1,000 validation images of CIFAR-10, 3 x 32 x 32; where no subset lies, torchvision's."""
    subset = folder / "cifar10_subset.npz"
    if subset.exists():
        raw = np.load(subset)
        parts = [raw["x_train"], raw["y_train"], raw["x_test"], raw["y_test"]]
    else:
        from torchvision.datasets import CIFAR10

        train, test = (CIFAR10(folder, train=train, download=True) for train in (True, False))
        parts = [train.data[:6000], np.array(train.targets[:6000]), test.data[:1500], np.array(test.targets[:1500])]
    x_train, y_train, x_test, y_test = (torch.from_numpy(np.asarray(part)) for part in parts)

    def images(values: Tensor) -> Tensor:
        return ((values.permute(0, 3, 1, 2).float() / 255 - 0.47) / 0.25).contiguous()

    # A subset may lie sorted by class.
    order, val = (torch.randperm(len(y), generator=torch.Generator().manual_seed(0)) for y in (y_train, y_test))
    val = val[:1000]
    return Split(images(x_train[order]), y_train[order].long(), images(x_test[val]), y_test[val].long())


@kept_on_disk
def text(folder: Path) -> Split:
    """Characters of Python's own library: windows of 32 characters, each to be told the next one."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    characters = "".join((folder / name).read_text(encoding="utf-8")[:40_000] for name in TEXT_FILES)
    codes = torch.tensor([min(max(ord(character) - 31, 0), 95) for character in characters])
    windows = codes[: len(codes) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    inputs, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
    whole = split(inputs, targets, 0.2)
    return whole._replace(val_inputs=whole.val_inputs[:500], val_targets=whole.val_targets[:500])


@kept_on_disk
def ants_and_bees(folder: Path) -> Split:
    """Features of a pretrained EfficientNet-Lite0, 1,280 columns, of 243 + 153 photographs of ants and bees."""
    from torchvision.datasets import ImageFolder

    import model_zoo

    network = model_zoo.efficientnet_lite0(pretrained=True).eval()
    network.fc = torch.nn.Identity()
    parts: list[Tensor] = []
    for part in ("train", "val"):
        pictures = ImageFolder(folder / "hymenoptera" / part, transform=model_zoo.preprocess(network))
        loader = torch.utils.data.DataLoader(pictures, batch_size=32)
        with torch.inference_mode():
            batches = [(network(images), labels) for images, labels in loader]
        parts += [torch.cat([features for features, _ in batches]), torch.cat([labels for _, labels in batches])]
    return Split(*parts)
