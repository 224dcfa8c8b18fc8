"""Opening folders of labelled pictures, with every fault told before training begins."""

from __future__ import annotations

import csv
import difflib
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
VALIDATION_FOLDERS = ("val", "valid", "validation", "test")
Sample = tuple[Path, int]


class Pictures(Dataset[tuple[Any, int]]):
    """Pictures from a list of files: (transformed picture, label)."""

    def __init__(self, samples: Sequence[Sample], classes: list[str], transform: Callable[[Any], Any]) -> None:
        self.paths = [path for path, _ in samples]
        self.targets = [label for _, label in samples]
        self.classes = classes
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        with Image.open(self.paths[index]) as picture:
            return self.transform(picture.convert("RGB")), self.targets[index]


@dataclass
class Samples:
    """What was found: files with labels, split in two."""

    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    broken: list[Path] = field(default_factory=list)


def find_samples(data: str, *, data_dir: Path, seed: int = 0, val_fraction: float = 0.2) -> Samples:
    """List the pictures of a data set.

    Args:
        data: `toy` (drawn), `oxford-pets` (downloaded by torchvision), or a folder: the Kaggle dog-breed layout
            (`labels.csv`, `train/<id>.jpg`), `train/` and `val/` with a folder for each class, or one folder of such
            folders.
        data_dir: Where drawn and downloaded pictures go.
        seed: Decides the split, where the data have none, and what is drawn.
        val_fraction: Part of each class kept for validation, where the data have no split.

    Raises:
        FileNotFoundError: There is no such folder, or labels.csv names files that are missing.
        ValueError: The folder is in no known layout, a class has no pictures, there is one class only.
    """
    if data == "toy":
        from toy_breeds import write_dataset

        write_dataset(data_dir / "toy_breeds", train_per_breed=40, val_per_breed=16, seed=seed)
        folder = data_dir / "toy_breeds"
    elif data == "oxford-pets":
        return _oxford_pets(data_dir)
    else:
        folder = Path(data).expanduser()
        if not folder.is_dir():
            near = difflib.get_close_matches(data, ("toy", "oxford-pets"), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "give a folder, 'toy' or 'oxford-pets'"
            raise FileNotFoundError(f"--data: there is no folder {data!r}; {hint}")
    if (folder / "labels.csv").is_file():
        samples = _split(*_kaggle(folder), seed, val_fraction)
    elif (folder / "train").is_dir():
        samples = _two_folders(folder)
    else:
        samples = _split(*_class_folders(folder), seed, val_fraction)
    if len(samples.classes) < 2:
        raise ValueError(f"--data: {folder} has one class only, {samples.classes}; at least two are needed")
    return samples


def without_broken(samples: Samples, *, skip: bool) -> Samples:
    """Decode every picture once; raise for those that can't be, or leave them out.

    Raises:
        ValueError: Pictures can't be decoded, and `skip` is off.
    """
    broken = broken_pictures(path for path, _ in [*samples.train, *samples.val])
    if broken and not skip:
        names = "\n".join(f"  {path}: {reason}" for path, reason in list(broken.items())[:10])
        raise ValueError(
            f"{len(broken)} pictures can't be decoded; remove them or go on without them with --skip-broken:\n{names}"
        )
    train = [sample for sample in samples.train if sample[0] not in broken]
    val = [sample for sample in samples.val if sample[0] not in broken]
    return Samples(samples.classes, train, val, list(broken))


def broken_pictures(paths: Iterable[Path]) -> dict[Path, str]:
    """The pictures that can't be decoded, and why; truncated ones too."""

    def fault(path: Path) -> str | None:
        try:
            with Image.open(path) as picture:
                picture.draft("RGB", (64, 64))  # JPEG can be decoded at an eighth of its size, all of its bytes read
                picture.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    paths = list(paths)
    with ThreadPoolExecutor() as pool:
        return {path: reason for path, reason in zip(paths, pool.map(fault, paths), strict=True) if reason}


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _class_folders(folder: Path) -> tuple[list[str], list[Sample]]:
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise ValueError(
            f"--data: {folder} has neither labels.csv nor a folder for each class; see --help for the layouts"
        )
    samples: list[Sample] = []
    for label, path in enumerate(folders):
        pictures = _pictures_in(path)
        if not pictures:
            raise ValueError(f"--data: the class folder {path} has no pictures; fill or remove it")
        samples += [(picture, label) for picture in pictures]
    return [path.name for path in folders], samples


def _two_folders(folder: Path) -> Samples:
    other = next((folder / name for name in VALIDATION_FOLDERS if (folder / name).is_dir()), None)
    if other is None:
        raise ValueError(f"--data: {folder} has train/ but none of {', '.join(VALIDATION_FOLDERS)}")
    classes, train = _class_folders(folder / "train")
    other_classes, val = _class_folders(other)
    if classes != other_classes:
        difference = sorted(set(classes) ^ set(other_classes))
        raise ValueError(f"--data: train/ and {other.name}/ have different classes: {', '.join(difference[:8])}")
    return Samples(classes, train, val)


def _kaggle(folder: Path) -> tuple[list[str], list[Sample]]:
    with open(folder / "labels.csv", newline="") as file:
        reader = csv.DictReader(file)
        if not {"id", "breed"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"--data: {folder / 'labels.csv'} has columns {reader.fieldnames}; id and breed are needed"
            )
        rows = [(row["id"], row["breed"]) for row in reader]
    classes = sorted({breed for _, breed in rows})
    number = {breed: label for label, breed in enumerate(classes)}
    samples = [(folder / "train" / f"{name}.jpg", number[breed]) for name, breed in rows]
    missing = [path.name for path, _ in samples if not path.is_file()]
    if missing:
        names = ", ".join(missing[:5])
        raise FileNotFoundError(f"--data: labels.csv names {len(missing)} files missing in {folder / 'train'}: {names}")
    return classes, samples


def _split(classes: list[str], samples: list[Sample], seed: int, val_fraction: float) -> Samples:
    rng = random.Random(seed)
    train: list[Sample] = []
    val: list[Sample] = []
    for label in range(len(classes)):
        members = [sample for sample in samples if sample[1] == label]
        rng.shuffle(members)
        kept = max(round(len(members) * val_fraction), 1) if len(members) > 1 else 0
        val += members[:kept]
        train += members[kept:]
    return Samples(classes, train, val)


def _oxford_pets(data_dir: Path) -> Samples:
    from torchvision.datasets import OxfordIIITPet

    try:
        parts = [OxfordIIITPet(str(data_dir), split=split, download=True) for split in ("trainval", "test")]
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"--data oxford-pets: the download failed ({error}). By hand: put images/ and annotations/ of the "
            f"Oxford-IIIT Pet data set into {data_dir / 'oxford-iiit-pet'}"
        ) from error
    train, test = (list(zip(map(Path, part._images), part._labels, strict=True)) for part in parts)
    return Samples(list(parts[0].classes), train, test)
