"""The facts that a file holds in addition to the weights: classes, preprocessing, and how to build the network."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from mxtorch.exporting.outputs import OUTPUTS
from mxtorch.exporting.transforms import PictureTransforms

FORMAT = "mxtorch.export"
FORMAT_VERSION = 2
KEY = "mxtorch"  # the key of the facts in the metadata of every format


@dataclass(frozen=True)
class Facts:
    """The description of a model in its file.

    Attributes:
        classes: The names of the outputs; empty if they have no names. A single output may have two names: the output
            is then the probability of the second class.
        preprocessing: How a picture becomes an input; None if inputs are not pictures.
        channels: The number of channels of an input picture.
        zoo_name: The network's name in the model zoo; empty for other networks.
        outputs: The number of outputs of the model.
        activation: What the outputs are; see `mxtorch.exporting.outputs.Outputs`.
    """

    classes: tuple[str, ...]
    preprocessing: PictureTransforms | None
    channels: int
    zoo_name: str
    outputs: int
    activation: str = "softmax"

    def to_json(self) -> str:
        """The facts as text, for the metadata of a file."""
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str | None, path: str | Path) -> Facts:
        """The facts in the metadata of a file.

        Raises:
            ValueError: There are none, or another version of mxtorch wrote them.
        """
        try:
            content = json.loads(text or "{}")
        except json.JSONDecodeError:
            content = {}
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{path} was not written by Trainer.export")
        if content["format_version"] > FORMAT_VERSION:
            raise ValueError(f"{path} has format version {content['format_version']}; upgrade mxtorch to read it")
        if content["format_version"] < FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {content['format_version']}, which was never released; export the model "
                "again"
            )
        facts = cls(**{field.name: content[field.name] for field in dataclasses.fields(cls)})
        if facts.activation not in OUTPUTS:
            raise ValueError(f"{path} has outputs of an unknown kind: {facts.activation!r}")
        described = None if facts.preprocessing is None else PictureTransforms.from_values(facts.preprocessing)
        return dataclasses.replace(facts, classes=tuple(facts.classes), preprocessing=described)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model on the CPU, each with its own memory. Their names are those without wrappers."""
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
