"""From JPEG files to a trained network, for `gpu.py`: decoded in worker processes, or on the device."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_loops import RATE, Clock, Setting, build, make_trainer, synthetic
from torch.utils.data import DataLoader, Dataset, RandomSampler

from model_zoo.preprocessing import SMALLEST_TRAINING_CROP
from mxtorch import Trainer, model_zoo

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def _draw(task: tuple[str, int]) -> None:
    sys.path.insert(0, str(EXAMPLES))
    import toy_breeds

    folder, number = task
    breed = toy_breeds.BREEDS[number % len(toy_breeds.BREEDS)]
    toy_breeds.draw(breed, number, 500).save(Path(folder) / f"{number}.jpg", quality=90)


def draw_files(folder: Path, count: int) -> list[Path]:
    """JPEG files of 500 pixels."""
    # Not forked: CUDA and OpenMP run in this process already.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_draw, [(str(folder), number) for number in range(count)], chunksize=8))
    return [folder / f"{number}.jpg" for number in range(count)]


class Files(Dataset[tuple[Any, int]]):
    """Opens a file with a function; the label is of no matter here."""

    def __init__(self, paths: list[Path], open_file: Callable[[Path], Any]) -> None:
        self.paths, self.open_file = paths, open_file

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.open_file(self.paths[index]), index % 1000


def with_pillow(transform: Any, path: Path) -> torch.Tensor:
    """Decoded and augmented by Pillow, as most people do."""
    from PIL import Image

    with Image.open(path) as picture:
        return transform(picture.convert("RGB"))


def with_torchvision(transform: Any, path: Path) -> torch.Tensor:
    """Decoded by torchvision, augmented as tensors, on the CPU."""
    from torchvision.io import ImageReadMode, decode_image

    return transform(decode_image(str(path), ImageReadMode.RGB))


def read_bytes(path: Path) -> Any:
    """The file as it is, to be decoded on the device; no tensor, so that the trainer leaves it on the host."""
    return np.fromfile(path, dtype=np.uint8)


def keep_apart(samples: list[tuple[Any, int]]) -> tuple[list[Any], torch.Tensor]:
    """Files have different lengths: a list of them, and the labels as a tensor."""
    files, labels = zip(*samples, strict=True)
    return list(files), torch.tensor(labels)


class DecodingTrainer(Trainer):
    """Takes batches of encoded files; decodes and augments them on the device."""

    size = 224

    @functools.cached_property
    def stream(self) -> torch.cuda.Stream:
        """Where pictures are decoded."""
        return torch.cuda.Stream(self.engine.device)

    def training_step(self, batch: Any) -> Any:
        """Decode, crop, flip, normalise; then as ever."""
        files, labels = batch
        return super().training_step((self.augmented(files), labels))

    def augmented(self, files: list[Any]) -> torch.Tensor:
        """JPEG files to a batch of pictures, each with a crop of its own."""
        from torchvision.io import ImageReadMode, decode_jpeg

        encoded = [torch.from_numpy(file) for file in files]
        # A stream of its own: the decoder writes without waiting for the current stream, into memory that queued
        # work of that stream may still use. And so the last step goes on while this one's pictures are decoded.
        self.stream.synchronize()
        with torch.cuda.stream(self.stream):
            batch = random_crops(decode_jpeg(encoded, ImageReadMode.RGB, device=self.engine.device), self.size)
        training = torch.cuda.current_stream()
        training.wait_stream(self.stream)
        batch.record_stream(training)
        return batch


def random_crops(pictures: list[torch.Tensor], size: int) -> torch.Tensor:
    """A crop of each picture, resized, flipped by chance and normalised: all of a batch by the same few kernels.

    What `torchvision.transforms.v2` does one picture after the other, half a dozen kernels for each.

    Args:
        pictures: Each (3, height, width), uint8, on the device.
        size: Height and width of the result, in pixels.

    Returns:
        (N, 3, size, size), float32, channels-last.
    """
    from torchvision.ops import roi_align
    from torchvision.transforms.v2 import functional

    count, device = len(pictures), pictures[0].device
    heights, widths = torch.tensor([picture.shape[1:] for picture in pictures], dtype=torch.float32).T
    area = heights * widths * torch.empty(count).uniform_(SMALLEST_TRAINING_CROP, 1)
    ratio = torch.empty(count).uniform_(math.log(3 / 4), math.log(4 / 3)).exp()
    width, height = torch.minimum((area * ratio).sqrt(), widths), torch.minimum((area / ratio).sqrt(), heights)
    left, top = torch.rand(count) * (widths - width), torch.rand(count) * (heights - height)
    boxes = torch.stack([torch.arange(count), left, top, left + width, top + height], dim=1)
    flips = torch.rand(count, 1, 1, 1) < 0.5
    if device.type == "cuda":
        boxes, flips = (drawn.pin_memory().to(device, non_blocking=True) for drawn in (boxes, flips))
    canvas = torch.zeros(count, 3, int(heights.max()), int(widths.max()), device=device)
    for place, picture in zip(canvas, pictures, strict=True):
        place[:, : picture.shape[1], : picture.shape[2]] = picture
    crops = roi_align(canvas, boxes, size, sampling_ratio=2, aligned=True)  # the mean of four points a pixel
    crops = torch.where(flips, crops.flip(-1), crops)
    mean, std = [[255 * value for value in values] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    return functional.normalize(crops, mean, std).to(memory_format=torch.channels_last)


def measure_files(setting: Setting, device: torch.device, *, count: int, steps: int) -> list[dict[str, Any]]:
    """Images a second from files to trained for each way of decoding, and of pictures that lie on the device."""
    transform = model_zoo.preprocess(setting.name, train=True, size=setting.size)
    ways: dict[str, tuple[Any, Any, type[Trainer]]] = {
        "Pillow in workers": (functools.partial(with_pillow, transform), None, Trainer),
        "torchvision in workers": (functools.partial(with_torchvision, transform), None, Trainer),
        "decoded on the device": (read_bytes, keep_apart, DecodingTrainer),
    }
    net = build(setting, device)

    def images_per_second(data: Any, kind: type[Trainer]) -> float:
        clock = Clock(data, warm_up=8)  # the workers start, their queues fill
        make_trainer(net, device, kind).fit(clock, lr=RATE)
        return setting.batch / clock.seconds_per_step

    synthetic_rate = images_per_second([synthetic(setting, device)] * steps, Trainer)
    rows = [{"source": "synthetic, on the device", "images_per_second": synthetic_rate, "fraction": 1.0}]
    with tempfile.TemporaryDirectory() as folder:
        paths = draw_files(Path(folder), count)
        for name, (open_file, collate, kind) in ways.items():
            if kind is DecodingTrainer and device.type != "cuda":
                continue
            files = Files(paths, open_file)
            loader = DataLoader(
                files,
                setting.batch,
                sampler=RandomSampler(files, replacement=True, num_samples=setting.batch * steps),
                num_workers=os.cpu_count() or 1,
                collate_fn=collate,
                pin_memory=device.type == "cuda",
                prefetch_factor=4,
            )
            rate = images_per_second(loader, kind)
            rows.append({"source": name, "images_per_second": rate, "fraction": rate / synthetic_rate})
    return rows
