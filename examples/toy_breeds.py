"""Dog breeds drawn by a program: a data set for trying the whole pipeline without downloading one.

Breeds differ in ears, snout, legs, tail, coat colour and pattern; pose, size, light and background are random.
Several share their colours, so that a network has to look at shapes.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]

OVERSAMPLING = 2  # drawn larger and scaled down, for smooth outlines
MARKER = "drawn.json"


@dataclass(frozen=True)
class Breed:
    """What makes a breed: lengths are parts of the body's height."""

    name: str
    coat: Colour
    second: Colour
    pattern: str  # plain, spots, saddle, stripes, patches, mask
    ears: str  # pricked, floppy, button, bat
    snout: float
    legs: float
    body: float
    tail: str  # curled, plume, docked, whip


BREEDS: tuple[Breed, ...] = (
    Breed("Bramble Terrier", (196, 146, 92), (72, 50, 36), "saddle", "button", 0.42, 0.55, 1.35, "docked"),
    Breed("Drift Spitz", (236, 228, 214), (206, 190, 166), "plain", "pricked", 0.34, 0.72, 1.25, "curled"),
    Breed("Fenland Hound", (232, 226, 214), (54, 44, 40), "patches", "floppy", 0.60, 0.95, 1.55, "whip"),
    Breed("Harbour Bulldog", (202, 152, 100), (240, 232, 220), "mask", "button", 0.16, 0.48, 1.25, "docked"),
    Breed("Longmoor Dachs", (126, 72, 40), (92, 50, 28), "plain", "floppy", 0.66, 0.26, 2.05, "whip"),
    Breed("Marsh Retriever", (206, 160, 98), (182, 132, 76), "plain", "floppy", 0.50, 0.82, 1.50, "plume"),
    Breed("Northgate Shepherd", (166, 116, 70), (46, 38, 34), "saddle", "pricked", 0.58, 0.92, 1.55, "plume"),
    Breed("Pepper Dane", (238, 236, 232), (38, 36, 38), "spots", "floppy", 0.54, 1.15, 1.45, "whip"),
    Breed("Quarry Boxer", (172, 108, 62), (58, 36, 26), "stripes", "bat", 0.24, 0.92, 1.40, "docked"),
    Breed("Slate Chipper", (112, 122, 142), (74, 80, 96), "mask", "bat", 0.26, 0.50, 1.10, "curled"),
)


def draw(breed: Breed, seed: int, size: int = 160) -> Image.Image:
    """A picture of a dog of this breed, the same for the same seed.

    Args:
        breed: What to draw.
        seed: Decides pose, size, light and background.
        size: Width and height in pixels.
    """
    rng = random.Random(f"{breed.name}/{seed}")
    side = size * OVERSAMPLING
    picture = _background(rng, side)
    dog = _Dog(breed, rng, side).draw()
    dog = dog.rotate(rng.uniform(-9, 9), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        dog = dog.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture.paste(dog, (0, 0), dog)
    picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.7, 1.25))
    picture = ImageEnhance.Color(picture).enhance(rng.uniform(0.6, 1.2))
    picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.8, 1.15))
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    grain = Image.frombytes("L", (size, size), rng.randbytes(size * size)).convert("RGB")
    return Image.blend(picture, grain, rng.uniform(0.0, 0.06))


def write_dataset(
    root: Path, *, train_per_breed: int = 50, val_per_breed: int = 20, size: int = 160, seed: int = 0
) -> None:
    """Write `root/{train,val}/<breed>/*.jpg`, unless the same pictures are there already.

    The marker is written last, so a write that was broken off is done again.
    """
    settings = {
        "breeds": [asdict(breed) for breed in BREEDS],
        "counts": [train_per_breed, val_per_breed],
        "size": size,
        "seed": seed,
    }
    wanted = json.dumps(settings, sort_keys=True)
    marker = root / MARKER
    if marker.is_file() and marker.read_text() == wanted:
        return
    marker.unlink(missing_ok=True)
    for stale in root.glob("*/*/[0-9][0-9][0-9][0-9].jpg"):
        stale.unlink()
    for folder in root.glob("*/*/"):
        if not any(folder.iterdir()):
            folder.rmdir()  # of a breed that there is no more, perhaps
    for part, count, offset in (("train", train_per_breed, 0), ("val", val_per_breed, 1_000_000)):
        for breed in BREEDS:
            folder = root / part / breed.name.lower().replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                picture = draw(breed, seed * 10_000_000 + offset + number, size)
                picture.save(folder / f"{number:04d}.jpg", quality=90)
    marker.write_text(wanted)


class _Dog:
    """One dog, seen from the side, looking right, on a transparent ground."""

    def __init__(self, breed: Breed, rng: random.Random, side: int) -> None:
        self.breed, self.rng, self.side = breed, rng, side
        self.coat = _varied(breed.coat, rng, 14)
        self.second = _varied(breed.second, rng, 12)
        self.height = side * rng.uniform(0.24, 0.31)  # of the body
        self.length = self.height * breed.body * 1.12
        # From the tip of the tail to the nose it stays within the picture, somewhere.
        behind = 0.9 if breed.tail in ("whip", "plume") else 0.3
        total = self.length + self.height * (behind + 0.7 + breed.snout)
        fitting = min(1.0, 0.94 * side / total)
        self.height, self.length, total = self.height * fitting, self.length * fitting, total * fitting
        self.x = self.height * behind + (side - total) * rng.uniform(0.15, 0.85)  # the rump
        self.y = side * rng.uniform(0.40, 0.52)  # the back
        self.image = Image.new("RGBA", (side, side), (*self.coat, 0))
        self.pen = ImageDraw.Draw(self.image)

    def draw(self) -> Image.Image:
        self._tail()
        self._legs(back=True)
        self._body()
        self._legs(back=False)
        self._head()
        return self.image

    def _oval(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        self.pen.ellipse((x - width / 2, y - height / 2, x + width / 2, y + height / 2), fill=colour)

    def _thick_line(self, points: list[Point], width: float, colour: Colour) -> None:
        self.pen.line(points, fill=colour, width=max(int(width), 1), joint="curve")
        for x, y in (points[0], points[-1]):
            self._oval(x, y, width, width, colour)

    def _body(self) -> None:
        height, length = self.height, self.length
        mask = Image.new("L", (self.side, self.side), 0)
        shape = ImageDraw.Draw(mask)
        shape.rounded_rectangle(
            (self.x, self.y, self.x + length, self.y + height * 0.86), radius=height * 0.42, fill=255
        )
        shape.ellipse(
            (self.x + length - height * 0.8, self.y, self.x + length + height * 0.1, self.y + height), fill=255
        )
        coat = Image.new("RGBA", (self.side, self.side), (*self.coat, 255))
        self._pattern(ImageDraw.Draw(coat))
        self.image.paste(coat, (0, 0), mask)

    def _pattern(self, pen: ImageDraw.ImageDraw) -> None:
        x, y, length, height, rng = self.x, self.y, self.length, self.height, self.rng
        if self.breed.pattern == "saddle":
            pen.ellipse((x + 0.05 * length, y - 0.5 * height, x + 0.85 * length, y + 0.5 * height), fill=self.second)
        elif self.breed.pattern == "stripes":
            for place in range(11):
                left = x + length * (place + rng.uniform(0.0, 0.5)) / 11
                points = [(left, y - 5), (left + height * 0.12, y + height * 0.4), (left - height * 0.02, y + height)]
                pen.line(points, fill=self.second, width=int(height * 0.06), joint="curve")
        elif self.breed.pattern in ("spots", "patches"):
            count, low, high = (26, 0.05, 0.09) if self.breed.pattern == "spots" else (4, 0.22, 0.40)
            for _ in range(count):
                px, py = x + rng.uniform(0, length), y + rng.uniform(0, height)
                width, tall = height * rng.uniform(low, high), height * rng.uniform(low, high)
                pen.ellipse((px - width, py - tall, px + width, py + tall), fill=self.second)

    def _legs(self, *, back: bool) -> None:
        legs = self.height * self.breed.legs
        colour = _shade(self.coat, 0.78 if back else 0.97)
        for place in (0.12, 0.86):
            x = self.x + self.length * place + (self.height * 0.16 if back else 0)
            foot = x + self.rng.uniform(-0.22, 0.22) * legs
            top, ground = self.y + self.height * 0.6, self.y + self.height * 0.82 + legs
            knee = ((x + foot) / 2 + self.height * 0.03, (top + ground) / 2)
            self._thick_line([(x, top), knee, (foot, ground)], self.height * 0.2, colour)
            self._oval(foot + self.height * 0.06, ground, self.height * 0.3, self.height * 0.16, colour)

    def _tail(self) -> None:
        x, y, height = self.x + self.height * 0.12, self.y + self.height * 0.22, self.height
        swing = self.rng.uniform(-0.15, 0.25)
        if self.breed.tail == "docked":
            self._thick_line([(x, y), (x - height * 0.18, y - height * 0.14)], height * 0.14, self.coat)
        elif self.breed.tail == "whip":
            points = [(x - height * t * 0.9, y + height * (0.5 * t * t - (0.5 + swing) * t)) for t in _steps(1.0)]
            self._thick_line(points, height * 0.09, self.coat)
        elif self.breed.tail == "plume":
            for t in _steps(1.0):
                px, py = x - height * 0.85 * t, y + height * (0.55 * t - 0.75 * (swing + 0.6) * t * t)
                self._oval(
                    px, py, height * (0.16 + 0.2 * t * (1.3 - t)), height * 0.34, _shade(self.coat, 0.9 + 0.1 * t)
                )
        else:
            centre_x, centre_y, radius = x + height * 0.06, y - height * 0.34, height * 0.26
            points = [
                (centre_x + radius * math.cos(a), centre_y + radius * math.sin(a))
                for a in (2.2 + 4.9 * t for t in _steps(1.0))
            ]
            self._thick_line(points, height * 0.2, _shade(self.coat, 0.93))

    def _head(self) -> None:
        height, breed, rng = self.height, self.breed, self.rng
        skull = height * 0.62
        x = self.x + self.length + height * 0.22
        y = self.y - height * rng.uniform(0.10, 0.34)
        nod = rng.uniform(-0.10, 0.16)
        self._thick_line(
            [(self.x + self.length - height * 0.25, self.y + height * 0.35), (x, y)], height * 0.5, self.coat
        )
        face = self.second if breed.pattern == "mask" else _shade(self.coat, 1.04)
        head = self.second if breed.pattern in ("spots", "patches") and rng.random() < 0.3 else self.coat
        if breed.ears in ("pricked", "bat"):
            self._ear(x + skull * 0.10, y, skull, _shade(head, 0.7))
        self._oval(x, y, skull, skull * 0.95, head)
        tip_x, tip_y = x + skull * 0.32 + height * breed.snout, y + skull * 0.16 + height * nod
        self._thick_line([(x + skull * 0.16, y + skull * 0.14), (tip_x, tip_y)], skull * 0.42, face)
        self._oval(tip_x + skull * 0.17, tip_y - skull * 0.08, skull * 0.2, skull * 0.17, (30, 24, 24))
        self.pen.line(
            [(tip_x + skull * 0.1, tip_y + skull * 0.12), (x + skull * 0.3, y + skull * 0.3)],
            fill=_shade(face, 0.5),
            width=max(int(skull * 0.03), 1),
        )
        self._oval(x + skull * 0.14, y - skull * 0.12, skull * 0.15, skull * 0.16, (32, 24, 20))
        self._oval(x + skull * 0.17, y - skull * 0.15, skull * 0.05, skull * 0.05, (250, 250, 250))
        self._ear(x - skull * 0.20, y, skull, _shade(head, 0.84))

    def _ear(self, x: float, y: float, skull: float, colour: Colour) -> None:
        lean = self.rng.uniform(-0.06, 0.06) * skull
        if self.breed.ears == "floppy":
            self._oval(x + lean, y + skull * 0.18, skull * 0.34, skull * 0.85, colour)
        elif self.breed.ears == "button":
            top = y - skull * 0.42
            self.pen.polygon(
                [
                    (x - skull * 0.2, top),
                    (x + skull * 0.16, top - skull * 0.04),
                    (x + skull * 0.2 + lean, y - skull * 0.1),
                ],
                fill=colour,
            )
        else:
            tall, wide = (0.55, 0.17) if self.breed.ears == "pricked" else (0.62, 0.22)
            base, tip = y - skull * 0.3, (x + lean, y - skull * (0.35 + tall))
            self.pen.polygon([(x - skull * wide, base), tip, (x + skull * wide, base)], fill=colour)
            if self.breed.ears == "bat":  # large, with round tips
                self._oval(tip[0], tip[1] + skull * 0.3, skull * 0.34, skull * 0.66, colour)


def _background(rng: random.Random, side: int) -> Image.Image:
    sky = (rng.randint(120, 235), rng.randint(130, 235), rng.randint(130, 245))
    ground = rng.choice(((112, 146, 80), (170, 150, 116), (132, 126, 122), (206, 190, 160), (92, 112, 70)))
    ground = _varied(ground, rng, 24)
    picture = Image.new("RGB", (side, side), sky)
    pen = ImageDraw.Draw(picture)
    horizon = int(side * rng.uniform(0.35, 0.75))
    for _ in range(rng.randint(0, 5)):
        x, width, tall = rng.uniform(0, side), rng.uniform(0.05, 0.25) * side, rng.uniform(0.1, 0.4) * side
        shape = pen.rectangle if rng.random() < 0.5 else pen.ellipse
        shape((x - width, horizon - tall, x + width, horizon + tall), fill=_varied(_shade(sky, 0.8), rng, 45))
    pen.rectangle((0, horizon, side, side), fill=ground)
    for _ in range(rng.randint(10, 40)):
        x, y = rng.uniform(0, side), rng.uniform(horizon, side)
        size = rng.uniform(0.005, 0.03) * side
        pen.ellipse((x - 2 * size, y - size, x + 2 * size, y + size), fill=_varied(ground, rng, 22))
    return picture.filter(ImageFilter.GaussianBlur(side * rng.uniform(0.0, 0.012)))


def _steps(end: float, count: int = 14) -> list[float]:
    return [end * step / (count - 1) for step in range(count)]


def _varied(colour: Colour, rng: random.Random, amount: int) -> Colour:
    light = rng.uniform(-amount, amount)
    red, green, blue = (min(max(int(value + light + rng.uniform(-6, 6)), 0), 255) for value in colour)
    return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(int(value * factor), 255) for value in colour)
    return red, green, blue
