"""What goes into a file beside the weights: classes, preprocessing, and how to build the network."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mxtorch.model_zoo import Preprocessing

FORMAT = "mxtorch.export"
FORMAT_VERSION = 1
KEY = "mxtorch"  # of the facts, in every kind of file

# Steps of a transform that need no description: they convert a picture to a tensor, or keep it.
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
    """What a file says about its model.

    Attributes:
        classes: The names of the outputs; empty if they have none.
        preprocessing: How a picture becomes an input; None if inputs are not pictures.
        channels: How many channels an input picture has.
        zoo_name: The network's name in the model zoo; empty for other networks.
        outputs: How many outputs the model has.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing | None
    channels: int
    zoo_name: str
    outputs: int

    def to_json(self) -> str:
        """As text, for the metadata of a file."""
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str | None, path: str | Path) -> Facts:
        """Read the facts from the metadata of a file.

        Raises:
            ValueError: There are none, or a newer version of mxtorch wrote them.
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
    """The tensors of a model on the CPU, each with its own memory, under the names that they have without wrappers."""
    state = unwrapped(model).state_dict()
    return {
        name.replace("._orig_mod.", "."): tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()
    }


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside the wrappers of `torch.compile`, DistributedDataParallel and DataParallel."""
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
        ValueError: It has other steps, or no centre crop, so that the size of an input is unknown.
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
        raise ValueError(
            "preprocessing: the transform has no CenterCrop, so the size of inputs is unknown; give one with CenterCrop"
        )
    return Preprocessing(**{"resize": facts["size"], **facts})


def _sizes(size: Any) -> list[int]:
    return [int(size)] if isinstance(size, int) else [int(value) for value in size]
