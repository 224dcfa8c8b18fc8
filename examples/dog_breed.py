"""Fine-tune a pretrained network on dog breeds, at a learning rate found for it.

    python examples/dog_breed.py                                  # breeds drawn on the spot, nothing to download
    python examples/dog_breed.py --data dog-breed-identification  # Kaggle's layout: labels.csv and train/
    python examples/dog_breed.py --data oxford-pets --epochs 5
    python examples/dog_breed.py --data my-pictures --model resnet50 --unfreeze-epochs 3

The classifier is trained first, on a frozen network, at a rate that `find_lr` finds; with `--unfreeze-epochs N` all
layers are trained after that, at a rate found anew.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from dog_data import Pictures, Samples, find_samples, without_broken
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import LRFinderResult, ScheduledOptim, Trainer, model_zoo, schedules

CAREFUL_RATE = 1e-3

matplotlib.use("Agg")  # pictures go to files


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="toy", help="'toy', 'oxford-pets', or a folder (default: %(default)s)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="for drawn or downloaded pictures")
    parser.add_argument("--model", default="efficientnet_lite0", help="see python -m model_zoo list (%(default)s)")
    parser.add_argument("--no-pretrained", action="store_true", help="random weights, so all layers are trained")
    parser.add_argument("--epochs", type=_count(0), default=6, help="epochs for the classifier (default: %(default)s)")
    parser.add_argument(
        "--unfreeze-epochs", type=_count(0), default=0, help="further epochs for all layers (default: none)"
    )
    parser.add_argument("--batch-size", type=_count(1), default=16)
    parser.add_argument("--image-size", type=_count(16), help="in pixels (default: 128 for toy, else the model's own)")
    parser.add_argument("--workers", type=_count(0), default=2, help="loader processes (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or fp16")
    parser.add_argument("--log-dir", type=Path, default=Path("runs/dogs"), help="for TensorBoard and the results")
    parser.add_argument("--skip-broken", action="store_true", help="go on without pictures that can't be decoded")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.epochs + options.unfreeze_epochs == 0:
        parser.error("--epochs and --unfreeze-epochs are both 0: there is nothing to train")
    return options


def _count(least: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text!r}; give an integer of at least {least}")
        return int(text)

    return integer


def main() -> None:
    """Find, fit, evaluate, show."""
    options = parse_arguments()
    torch.manual_seed(options.seed)
    samples = find_samples(options.data, data_dir=options.data_dir, seed=options.seed)
    samples = without_broken(samples, skip=options.skip_broken)
    print(f"{len(samples.classes)} classes, {len(samples.train)} + {len(samples.val)} pictures", end="")
    print(f", {len(samples.broken)} broken ones left out" if samples.broken else "")

    net = model_zoo.create(options.model, pretrained=not options.no_pretrained)
    net.fc = nn.Linear(net.fc.in_features, len(samples.classes))
    train_data, val_data = make_loaders(net, samples, options)

    started = time.perf_counter()
    epochs, all_epochs = options.epochs, options.unfreeze_epochs
    if options.no_pretrained:
        epochs, all_epochs = 0, epochs + all_epochs
    if epochs > 0:
        print("\nThe classifier, on the frozen network")
        trainer, found = fine_tune(model_zoo.freeze(net), train_data, val_data, epochs, options)
    if all_epochs > 0:
        print("\nAll layers")
        trainer, found = fine_tune(model_zoo.unfreeze(net), train_data, val_data, all_epochs, options)
    print(f"\ntrained in {time.perf_counter() - started:.0f} s")
    report(trainer, found, val_data, samples, options)


def make_loaders(net: nn.Module, samples: Samples, options: argparse.Namespace) -> tuple[DataLoader, DataLoader]:
    """Loaders with the transforms that the network was pretrained with."""
    size = options.image_size or (128 if options.data == "toy" else None)
    pin = torch.cuda.is_available()
    loaders = []
    for part, train in ((samples.train, True), (samples.val, False)):
        pictures = Pictures(part, samples.classes, model_zoo.preprocess(net, train=train, size=size))
        workers = options.workers
        loaders.append(
            DataLoader(
                pictures, options.batch_size, shuffle=train, num_workers=workers, pin_memory=pin, drop_last=False
            )
        )
    return loaders[0], loaders[1]


def fine_tune(
    net: nn.Module, train_data: DataLoader, val_data: DataLoader, epochs: int, options: argparse.Namespace
) -> tuple[Trainer, LRFinderResult]:
    """Find a learning rate for the trainable layers, then train them at it."""
    # The nearer layers are to the input, the less they need to change; find_lr and schedules keep these ratios. The
    # head comes first: its rate is the one that is found and shown.
    groups = model_zoo.param_groups(net, lr=1e-5)[::-1]
    all_layers = len(groups) > 1
    optimizer = ScheduledOptim(torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=1e-4))
    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        optimizer,
        metrics={"accuracy": MulticlassAccuracy(num_classes=net.fc.out_features, average="micro")},
        log_dir=options.log_dir / ("all_layers" if all_layers else "classifier"),
        device=options.device,
        precision=options.precision,
        log_every=5,
    )
    schedule = schedules.OneCycle()
    found = trainer.find_lr(train_data, start_lr=1e-5, end_lr=10, num_steps=60, schedule=schedule)
    print(found)
    if found.suggestion is None and all_layers:
        # A classifier that is trained already hardly improves in a sweep: then take small, safe steps.
        print(f"going on with a rate of {CAREFUL_RATE:g}")
    lr = CAREFUL_RATE if found.suggestion is None and all_layers else found
    trainer.fit(train_data, val_data, epochs=epochs, lr=lr, schedule=schedule)
    print(f"\n{trainer.history}")
    return trainer, found


def report(
    trainer: Trainer, found: LRFinderResult, val_data: DataLoader, samples: Samples, options: argparse.Namespace
) -> None:
    """The table, the pictures, the saved model, and where to look."""
    import matplotlib.pyplot as plt

    folder = options.log_dir
    probabilities = trainer.predict(val_data).softmax(1)
    labels = torch.tensor([label for _, label in samples.val])
    correct = probabilities.argmax(1) == labels
    print(f"\nvalidation accuracy {correct.double().mean():.4f} ({int(correct.sum())} of {len(correct)})")
    found.plot().figure.savefig(folder / "lr_finder.png", dpi=150, bbox_inches="tight")
    draw_predictions(probabilities, samples).savefig(folder / "predictions.png", dpi=110)
    plt.close("all")
    trainer.save(folder / "model.pt")
    print(f"written: {folder}/lr_finder.png, {folder}/predictions.png, {folder}/model.pt")
    print(f"now type: tensorboard --logdir {folder}")


def draw_predictions(probabilities: torch.Tensor, samples: Samples, count: int = 20) -> matplotlib.figure.Figure:
    """A sheet of validation pictures, mistakes first and framed in red."""
    import matplotlib.pyplot as plt
    from PIL import Image

    confidence, predicted = probabilities.max(1)
    labels = torch.tensor([label for _, label in samples.val])
    mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    order = sorted(mixed, key=lambda index: bool(predicted[index] == labels[index]))[:count]
    figure, axes = plt.subplots(4, 5, figsize=(13, 11.5), layout="constrained")
    for panel, index in zip(axes.flat, order, strict=False):
        right = bool(predicted[index] == labels[index])
        with Image.open(samples.val[index][0]) as picture:
            panel.imshow(picture.convert("RGB"))
        name, truth = (samples.classes[int(label[index])].replace("_", " ") for label in (predicted, labels))
        title = f"{name} {confidence[index]:.0%}" + ("" if right else f"\nis {truth}")
        panel.set_title(title, fontsize=9, color="#2a7f3f" if right else "#c0272d")
        for spine in panel.spines.values():
            spine.set(color="#2a7f3f" if right else "#c0272d", linewidth=2.5)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"dog_breed.py: {error}")
