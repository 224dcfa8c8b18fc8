"""What pretrained features are worth on your pictures: a linear classifier on them, and the names they are given.

    python benchmarks/linear_probe.py FOLDER [--model efficientnet_lite0]

FOLDER has `train/<class>/` and `val/<class>/`. The probe is fitted by L-BFGS on standardised features. The second line
counts pictures for which a class of ImageNet with the folder's name, such as `ant` for `ants`, comes first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

import model_zoo


def read(folder: Path, net: nn.Module) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Features, logits, labels and class names of a folder of folders."""
    transform, extract = model_zoo.preprocess(net), model_zoo.features(net)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    features, labels = [], []
    for label, name in enumerate(names):
        for path in sorted((folder / name).iterdir()):
            with Image.open(path) as picture, torch.inference_mode():
                features.append(extract(transform(picture.convert("RGB"))[None]))
            labels.append(label)
    stacked = torch.cat(features).clone()
    with torch.inference_mode():
        logits = net.fc(stacked)
    return stacked, logits, torch.tensor(labels), names


def fit(features: Tensor, labels: Tensor, decay: float = 1e-2) -> nn.Linear:
    """A linear classifier."""
    probe = nn.Linear(features.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(probe(features), labels) + decay * probe.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return probe


def main() -> None:
    """Extract, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="efficientnet_lite0")
    options = parser.parse_args()
    torch.manual_seed(0)
    net = model_zoo.create(options.model, pretrained=True).eval()
    train, _, train_labels, names = read(options.folder / "train", net)
    val, logits, val_labels, _ = read(options.folder / "val", net)
    mean, std = train.mean(0), train.std(0) + 1e-6
    probe = fit((train - mean) / std, train_labels)
    right = probe((val - mean) / std).argmax(1) == val_labels
    print(f"linear probe of {', '.join(names)}: {right.double().mean():.3f} ({int(right.sum())} of {len(right)})")
    known = {
        label: net.classes.index(name.rstrip("s"))
        for label, name in enumerate(names)
        if name.rstrip("s") in net.classes
    }
    for label, index in known.items():
        own = logits[val_labels == label]
        first = int((own.argmax(1) == index).sum())
        five = int((own.topk(5).indices == index).any(1).sum())
        print(f"{names[label]}: {net.classes[index]!r} comes first for {first} of {len(own)}, among five for {five}")


if __name__ == "__main__":
    main()
