"""What goes into a file beside the weights: classes, preprocessing, and how to build the network."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from mxtorch.exporting.outputs import OUTPUTS
from mxtorch.exporting.transforms import PictureTransforms, describe_transform
from mxtorch.model_zoo import Preprocessing

FORMAT = "mxtorch.export"
FORMAT_VERSION = 2
KEY = "mxtorch"  # of the facts, in every kind of file


@dataclass(frozen=True)
class Facts:
    """What a file says about its model.

    Attributes:
        classes: The names of the outputs; empty if they have none. A single output may have two names: it is the
            probability of the second class.
        preprocessing: How a picture becomes an input; None if inputs are not pictures.
        channels: How many channels an input picture has.
        zoo_name: The network's name in the model zoo; empty for other networks.
        outputs: How many outputs the model has.
        activation: What the outputs are; see `mxtorch.exporting.outputs.Outputs`.
    """

    classes: tuple[str, ...]
    preprocessing: PictureTransforms | None
    channels: int
    zoo_name: str
    outputs: int
    activation: str = "softmax"

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
        if made_for is not None and content["format_version"] == 1:
            old = Preprocessing(**{**made_for, "mean": tuple(made_for["mean"]), "std": tuple(made_for["std"])})
            made_for = describe_transform(old, content["channels"])
        elif made_for is not None:
            made_for = PictureTransforms.from_values(made_for)
        activation = content.get("activation", "softmax")  # version 1 knew nothing else
        if activation not in OUTPUTS:
            raise ValueError(f"{path} has outputs of an unknown kind: {activation!r}")
        names, channels = tuple(content["classes"]), content["channels"]
        return cls(names, made_for, channels, content["zoo_name"], content["outputs"], activation)


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
