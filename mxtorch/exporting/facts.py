"""What goes into a file beside the weights: classes, preprocessing, and how to build the network."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from model_zoo import Preprocessing

FORMAT = "mxtorch.export"
FORMAT_VERSION = 1
KEY = "mxtorch"  # of the facts, in every kind of file

# Names that wrappers put before those of a model's tensors: torch.compile, DistributedDataParallel.
_WRAPPERS = ("_orig_mod.", "module.")
# Steps of a transform that a description implies.
_IMPLIED = (
    "ToImage",
    "ToDtype",
    "ToTensor",
    "PILToTensor",
    "ConvertImageDtype",
    "Grayscale",
    "Identity",
    "ToPureTensor",
)


@dataclass(frozen=True)
class Facts:
    """What a file says of itself.

    Attributes:
        classes: The names of the outputs; empty where they have none.
        preprocessing: How a picture becomes an input; None for inputs that are no pictures.
        channels: Of an input picture.
        zoo_name: The network's name in the model zoo; empty for others.
        outputs: How many there are.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing | None
    channels: int
    zoo_name: str
    outputs: int

    def to_json(self) -> str:
        """As text, for a file's metadata."""
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str | None, path: str | Path) -> Facts:
        """Read them from a file's metadata.

        Raises:
            ValueError: There are none, or they are of a newer version.
        """
        try:
            content = json.loads(text or "{}")
        except json.JSONDecodeError:
            content = {}
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{path} was not written by Trainer.export")
        if content["format_version"] > FORMAT_VERSION:
            raise ValueError(f"{path} has format version {content['format_version']}; upgrade mxtorch to read it")
        made_for = content["preprocessing"]
        if made_for is not None:
            made_for = Preprocessing(**{**made_for, "mean": tuple(made_for["mean"]), "std": tuple(made_for["std"])})
        return cls(tuple(content["classes"]), made_for, content["channels"], content["zoo_name"], content["outputs"])


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors on the CPU, each with memory of its own, under the names they have without wrappers."""
    found = {}
    for name, tensor in model.state_dict().items():
        plain = name
        for wrapper in _WRAPPERS:
            plain = plain.removeprefix(wrapper)
        found[plain.replace("._orig_mod.", ".")] = tensor.detach().cpu().contiguous().clone()
    return found


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`'s and DistributedDataParallel's."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def describe_transform(transform: Any) -> Preprocessing:
    """The description of a transform of torchvision: resize of the shorter side, centre crop, normalisation.

    Raises:
        ValueError: It has other steps, which a description can't hold.
    """
    steps = list(getattr(transform, "transforms", [transform]))
    facts: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    for step in steps:
        name = type(step).__name__
        if name == "Resize" and len(_sizes(step.size)) == 1:
            facts["resize"] = _sizes(step.size)[0]
            facts["interpolation"] = getattr(step.interpolation, "value", str(step.interpolation))
        elif name == "CenterCrop" and len(set(_sizes(step.size))) == 1:
            facts["size"] = _sizes(step.size)[0]
        elif name == "Normalize":
            mean, std = ([float(value) for value in values] for values in (step.mean, step.std))
            facts["mean"], facts["std"] = (tuple(mean * 3)[:3], tuple(std * 3)[:3]) if len(mean) == 1 else (mean, std)
            facts["mean"], facts["std"] = tuple(facts["mean"]), tuple(facts["std"])
        elif name == "ReverseChannels":
            facts["channels"] = "BGR"
        elif name not in _IMPLIED:
            raise ValueError(
                f"preprocessing: {name} can't be written into a file; give preprocessing=model_zoo.Preprocessing(...), "
                "or transforms of Resize(int), CenterCrop and Normalize"
            )
    if "size" not in facts:
        raise ValueError("preprocessing: the transform has no CenterCrop, so the input's size is open")
    return Preprocessing(**{"resize": facts["size"], **facts})


def _sizes(size: Any) -> list[int]:
    return [int(size)] if isinstance(size, int) else [int(value) for value in size]
