"""Fine-tune a pretrained network on dog breeds, at a learning rate found for it.

    python examples/dog_breed.py                                  # breeds drawn on the spot, nothing to download
    python examples/dog_breed.py --data dog-breed-identification  # Kaggle's layout: labels.csv and train/
    python examples/dog_breed.py --data oxford-pets --epochs 5
    python examples/dog_breed.py --data my-pictures --model resnet50 --unfreeze-epochs 3

The classifier is trained first, at a rate that is found for it, on features that the frozen network computes once; with
`--unfreeze-epochs N` all layers are trained after that, at a rate found anew. `Trainer.fine_tune` does both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from dog_data import Pictures, Samples, find_samples, without_broken
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import ScheduledOptim, Trainer, exporting, model_zoo
from mxtorch.fine_tuning import FineTuning

matplotlib.use("Agg")  # pictures go to files


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="toy", help="'toy', 'oxford-pets', or a folder (default: %(default)s)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="for drawn or downloaded pictures")
    parser.add_argument("--model", default="efficientnet_lite0", help="python -m mxtorch.model_zoo list (%(default)s)")
    parser.add_argument("--no-pretrained", action="store_true", help="random weights, so all layers are trained")
    parser.add_argument("--epochs", type=_count(0), default=10, help="epochs for the classifier (default: %(default)s)")
    parser.add_argument(
        "--unfreeze-epochs", type=_count(0), default=0, help="further epochs for all layers (default: none)"
    )
    parser.add_argument(
        "--views",
        type=_count(1),
        default=2,
        help="random crops of each picture for the classifier (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=_count(1), default=16)
    parser.add_argument("--image-size", type=_count(16), help="in pixels (default: 128 for toy, else the model's own)")
    parser.add_argument("--workers", type=_count(0), default=2, help="loader processes (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or fp16")
    parser.add_argument(
        "--log-dir", type=Path, help="for TensorBoard and the results (default: runs/ and the name of the data)"
    )
    parser.add_argument("--skip-broken", action="store_true", help="go on without pictures that can't be decoded")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.name = {"toy": "dogs", "oxford-pets": "pets"}.get(options.data) or Path(options.data).resolve().name
    options.log_dir = free_folder(options.log_dir or Path("runs") / options.name)
    if options.epochs + options.unfreeze_epochs == 0:
        parser.error("--epochs and --unfreeze-epochs are both 0: there is nothing to train")
    return options


def free_folder(folder: Path) -> Path:
    """The folder, or one with a number, in which no earlier run has left its results."""
    number, free = 1, folder
    while free.is_dir() and any(free.iterdir()):
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


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
    if options.log_dir.name != options.name:
        print(f"earlier results are kept; those of this run go to {options.log_dir}")

    net = model_zoo.create(options.model, pretrained=not options.no_pretrained)
    print(f"weights: {net.zoo_file or 'random'}")
    net.fc = nn.Linear(net.fc.in_features, len(samples.classes))
    train_data, val_data = make_loaders(net, samples, options)

    trainer = make_trainer(net, samples, options)
    frozen, rest = options.epochs, options.unfreeze_epochs
    if options.no_pretrained:  # there is nothing worth freezing
        frozen, rest = 0, frozen + rest
    tuned = trainer.fine_tune(train_data, val_data, epochs=rest, freeze_epochs=frozen, views=options.views)
    print(f"\n{tuned.history}\n\n{tuned}")
    report(trainer, tuned, train_data, val_data, options)


def make_loaders(net: nn.Module, samples: Samples, options: argparse.Namespace) -> tuple[DataLoader, DataLoader]:
    """Loaders with the transforms that the network was pretrained with."""
    size = options.image_size or (128 if options.data == "toy" else None)
    with Image.open(samples.train[0][0]) as first:
        print(f"pictures: the first has {first.width} x {first.height} pixels", end="")
    print(f", all are read at {size} x {size}" if size else ", all are read at the size of the weights")
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


def make_trainer(net: nn.Module, samples: Samples, options: argparse.Namespace) -> Trainer:
    """A trainer for all layers; `fine_tune` freezes what it must, and sets rates by layer."""
    optimizer = ScheduledOptim(
        torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)
    )
    return Trainer(
        net,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        optimizer,
        metrics={"accuracy": MulticlassAccuracy(num_classes=len(samples.classes), average="micro")},
        log_dir=options.log_dir,
        device=options.device,
        precision=options.precision,
        log_every=5,
    )


def report(
    trainer: Trainer, tuned: FineTuning, train_data: DataLoader, val_data: DataLoader, options: argparse.Namespace
) -> None:
    """The figures, the pictures, the saved model, and where to look."""
    folder = options.log_dir
    result = trainer.interpret(val_data, pictures=20)
    right = int((result.predictions == result.targets).sum())
    print(f"\nvalidation accuracy {result.accuracy:.4f} ({right} of {len(result.targets)})\n{result}")
    for phase, found in tuned.found.items():
        name = f"lr_finder_{phase.replace(' ', '_')}.png"
        found.plot().figure.savefig(folder / name, dpi=150, bbox_inches="tight")
    result.plot().savefig(folder / "confusion.png", dpi=110)
    result.plot_top_losses().savefig(folder / "hardest.png", dpi=110)
    trainer.save(folder / "checkpoint.pt")
    model = trainer.export(
        folder / f"{options.name}.safetensors",
        val_data,
        train_data=train_data,
        about=about(val_data.dataset.classes, options),
    )
    picture = val_data.dataset.paths[0]
    answer = exporting.load(model).predict(picture)[0]
    print(f"\n{model} says of {picture}: {answer['class']}, {answer['probability']:.0%}")
    print(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir() if path.suffix != '.0'))}")
    print(f"now type: tensorboard --logdir {folder}")


def about(classes: list[str], options: argparse.Namespace) -> str:
    """What the data are, for the model card."""
    if options.data == "toy":
        return "Breeds of dogs that were drawn by a program: they are no real breeds, and no real dogs."
    named = ", ".join(classes[:10]) + (" and others" if len(classes) > 10 else "")
    return f"Pictures of {len(classes)} classes: {named}."


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"dog_breed.py: {error}")
